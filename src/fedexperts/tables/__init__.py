"""The tables of a scenario: each field with its bounds. What ties tables together is in `scenario`."""

from .fields import LONGEST_S, MOST, Count, Fraction, Load, Name, NonNegative, OwnName, Positive, Table, Whole
from .learning import Adapters, Cluster, Evaluation, Model, TaskTable, Train, Warmup
from .methods import Alignment, Assignment, EmsFl, NetworkedTable, Server
from .network import Device, Faults, Place, Plan, Radio, Satellite, Walker

__all__ = [
    "LONGEST_S",
    "MOST",
    "Adapters",
    "Alignment",
    "Assignment",
    "Cluster",
    "Count",
    "Device",
    "EmsFl",
    "Evaluation",
    "Faults",
    "Fraction",
    "Load",
    "Model",
    "Name",
    "NetworkedTable",
    "NonNegative",
    "OwnName",
    "Place",
    "Plan",
    "Positive",
    "Radio",
    "Satellite",
    "Server",
    "Table",
    "TaskTable",
    "Train",
    "Walker",
    "Warmup",
    "Whole",
]
