"""FedExperts: federated tuning of Mixture-of-Experts models over networks that come and go."""

__version__ = "0.1.0"

from .drive.run import Result, run
from .errors import InputError
from .scenario import Scenario

__all__ = ["InputError", "Result", "Scenario", "__version__", "run"]
