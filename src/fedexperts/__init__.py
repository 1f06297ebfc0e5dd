"""FedExperts: federated tuning of Mixture-of-Experts models over networks that come and go."""

__version__ = "0.1.0"

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import Diverged, InputError, InputWarning, RunError

if TYPE_CHECKING:
    from .planned import plan
    from .recorded import Run
    from .runs.advise import advise
    from .runs.answers import ask
    from .runs.compare import Comparison, compare
    from .runs.export import export
    from .runs.forecast import forecast as check
    from .runs.judge import judge_model as evaluate
    from .runs.run import Result, run
    from .scenario import Scenario
    from .theory import Constants, Setting
    from .theory import bounds as bound

__all__ = [
    "Comparison",
    "Constants",
    "Diverged",
    "InputError",
    "InputWarning",
    "Result",
    "Run",
    "RunError",
    "Scenario",
    "Setting",
    "__version__",
    "advise",
    "ask",
    "bound",
    "check",
    "compare",
    "evaluate",
    "export",
    "plan",
    "run",
]
_WHERE = {
    "Comparison": "runs.compare",
    "Result": "runs.run",
    "Run": "recorded",
    "Constants": "theory",
    "Scenario": "scenario",
    "Setting": "theory",
    "advise": "runs.advise",
    "ask": "runs.answers",
    "bound": "theory:bounds",
    "check": "runs.forecast:forecast",
    "compare": "runs.compare",
    "evaluate": "runs.judge:judge_model",
    "export": "runs.export",
    "plan": "planned",
    "run": "runs.run",
}


def __getattr__(name: str) -> Any:
    """Scenarios, and what computes with torch, are loaded by whoever uses them."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, other = _WHERE[name].partition(":")
    return getattr(import_module(f".{module}", __name__), other or name)
