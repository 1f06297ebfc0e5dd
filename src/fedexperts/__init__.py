"""FedExperts: federated tuning of Mixture-of-Experts models over networks that come and go."""

__version__ = "0.1.0"

from typing import TYPE_CHECKING, Any

from .errors import InputError

if TYPE_CHECKING:
    from .runs.run import Result, run
    from .scenario import Scenario

__all__ = ["InputError", "Result", "Scenario", "__version__", "run"]


def __getattr__(name: str) -> Any:
    """Scenarios, and training with torch, are loaded by whoever uses them."""
    if name == "Scenario":
        from .scenario import Scenario

        return Scenario
    if name in ("Result", "run"):
        from .runs import run as module

        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
