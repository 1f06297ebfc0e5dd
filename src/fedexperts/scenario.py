"""The scenario: everything a run depends on, read from TOML and checked before any work starts.

Paths in a scenario are relative to its file. Unknown keys are errors. Each command uses only the tables it needs.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar, get_args, get_origin

import tomli_w
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from .errors import InputError, unknown_key
from .overrides import override, why
from .own import is_own, label
from .reading import MOST_DEPTH, leaves, read_text, short
from .tables import (
    Alignment,
    Assignment,
    Cluster,
    Device,
    EmsFl,
    Evaluation,
    Faults,
    Model,
    Name,
    NetworkedTable,
    Place,
    Plan,
    Radio,
    Satellite,
    Server,
    Table,
    TaskTable,
    Train,
    Warmup,
)
from .tables.fits import misfit, misfit_cohort, misfit_rank
from .tables.protocols import BY_CLIENT, Protocol

MOST_TOML_B = 2**20


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, dict) else value


class Network(Table):
    """What a contact plan depends on; ``fedexperts plan`` reads this and leaves the tables of training alone."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    name: Name
    """What the scenario is called, in titles and folders."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """All chance of a run is drawn from it: equal seeds, equal bytes."""
    plan: Plan = Plan()
    """Who can talk when."""
    satellite: Annotated[tuple[Satellite, ...], BeforeValidator(_listed), Field(strict=False)] = ()
    """What flies over the clusters."""
    radio: Radio = Radio()
    """How fast the link to a satellite is."""
    model: Model | None = None
    """What is tuned."""
    cluster: Annotated[tuple[Place, ...], Field(min_length=1, strict=False)]
    """Places with devices and their data."""
    base: Annotated[Path, Field(exclude=True)] = Path()
    """The folder that relative paths start from; it is not part of the file."""

    @model_validator(mode="after")
    def _places(self) -> Network:
        counts = Counter(cluster.name for cluster in self.cluster)
        if twice := {name for name, times in counts.items() if times > 1}:
            raise ValueError(f"[[cluster]] name = {', '.join(sorted(twice))}: given twice; every cluster needs its own name")
        if self.plan.kind == "orbit":
            if not self.satellite:
                raise ValueError('[satellite]: is missing; plan.kind = "orbit" needs one, for example altitude_km = 600')
            if lost := [c.name for c in self.cluster if c.latitude_deg is None or c.longitude_deg is None]:
                raise ValueError(f'[[cluster]] {", ".join(lost)}: plan.kind = "orbit" needs latitude_deg and longitude_deg')
        return self

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Self:
        """Read and check a file; ``overrides`` are ``section.key=value`` with values in TOML.

        Raises:
            InputError: with one line per fault.
        """
        return cls.parse(overridden(Path(path), overrides), Path(path).resolve().parent)

    @classmethod
    def parse(cls, document: dict[str, Any], base: Path = Path()) -> Self:
        """Check a scenario given as plain data."""
        known = set(Scenario.model_fields) - {"base"}
        if "base" in document or (cls is not Scenario and not set(document) <= known):
            unknown = sorted(set(document) - known)
            raise InputError("\n".join(unknown_key(key, key, sorted(known)) for key in unknown))
        return table_of(cls, {**document, "base": base})

    def changed(self, **tables: Any) -> Self:
        """A checked copy with other values, e.g. ``changed(seed=2, train={"cycles": 3})`` (tables are merged)."""
        document = self.model_dump(exclude_none=True)
        for key, value in tables.items():
            document[key] = {**document.get(key, {}), **value} if isinstance(value, dict) else value
        return type(self).parse(document, self.base)

    def overridden(self, changes: Sequence[str], option: str = "--set") -> Self:
        """A checked copy with values changed as the command line does it, e.g. ``overridden(["train.cycles=3"])``.

        Raises:
            InputError: a change is none, or what it makes cannot be; ``option`` heads what is said of its form.
        """
        return type(self).parse(_with(_plain(self.model_dump(exclude_none=True)), changes, option), self.base)

    def to_toml(self) -> str:
        """The scenario with every default filled in."""
        return tomli_w.dumps(_plain(self.model_dump(exclude_none=True)))

    def file(self, path: str) -> Path:
        """A path of the scenario, resolved.

        Raises:
            InputError: it is no path.
        """
        try:
            return (self.base / path).resolve()
        except (OSError, ValueError, RuntimeError) as error:  # too long, a null byte, links in a circle
            raise InputError(f"{path[:80]!r}: is no path ({error})") from error


class Prospect(Network):
    """What ``fedexperts plan`` reads beside the network where it is there: what a method would send, hold and spend."""

    protocol: Protocol = "ems-fl"
    task: TaskTable = TaskTable()
    train: Train | None = None
    assignment: Assignment = Assignment()
    alignment: Alignment = Alignment()
    networked: NetworkedTable = NetworkedTable()
    server: Server | None = None
    ems_fl: EmsFl | None = None
    device: dict[Name, Device] = Field(default={})

    @model_validator(mode="after")
    def _fits(self) -> Prospect:
        return _fitting(self)


class Tasks(Network):
    """A model and what it is judged by; ``fedexperts eval`` reads this and leaves the tables of training alone."""

    model: Model
    task: TaskTable = TaskTable()
    """What the model is to do."""
    warmup: Warmup | None = None
    """Training on a shared set before the run; left out, there is none."""
    evaluation: Evaluation = Evaluation()
    """When the model is judged, and what is to be reached."""
    cluster: Annotated[tuple[Cluster, ...], Field(min_length=1, strict=False)]

    def task_of(self, i: int) -> TaskTable:
        """The task of the i-th cluster: ``[task]``, and over it what the cluster's own table changes."""
        return TaskTable.model_validate({**self.task.model_dump(exclude_none=True), **self.cluster[i].task})

    @model_validator(mode="after")
    def _tasks(self) -> Self:
        for i in range(len(self.cluster)):
            try:
                kind = self.task_of(i).kind
            except ValidationError as error:
                raise ValueError("; ".join(f"cluster[{i}].task.{_explain(dict(e))}" for e in error.errors())) from error
            if kind != self.task.kind:
                raise ValueError(
                    f"cluster[{i}].task.kind = {kind!r}: must be task.kind = {self.task.kind!r}; all clusters tune one model"
                )
        return self


class Scenario(Tasks):
    """A whole scenario."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    protocol: Protocol = "ems-fl"
    """The synchronous baseline, also with C times as many local rounds; FedAsync and FedBuff; EMS-FL and its enhanced form;
    client–expert alignment; Networked MoE; all data in one place, or each cluster alone; or a class of your own."""
    train: Train
    """Rounds and local training."""
    assignment: Assignment = Assignment()
    """Who owns which expert."""
    alignment: Alignment = Alignment()
    """Who trains which expert in a round."""
    networked: NetworkedTable = NetworkedTable()
    """The stages of a Networked MoE."""
    server: Server | None = None
    """What the server makes of changes that arrive; its defaults if left out."""
    ems_fl: EmsFl | None = None
    """Parts of EMS-FL switched off; none if left out."""
    faults: Faults = Faults()
    """What goes wrong on the links."""
    device: dict[Name, Device] = Field(default={})
    """Classes of devices: numbers that replace those of a built-in class, or all of a new one."""

    @property
    def by_client(self) -> bool:
        """Whether the protocol treats clients one by one, each with a link of its own; one of the user's own says so itself."""
        return self.protocol in BY_CLIENT

    @property
    def label(self) -> str:
        """The protocol's name in ledgers, tables and folders."""
        return label(self.protocol)

    @model_validator(mode="after")
    def _clients(self) -> Scenario:
        for i, cluster in enumerate(self.cluster):
            if cluster.until_cycle is not None and cluster.until_cycle <= cluster.from_cycle:
                raise ValueError(
                    f"cluster[{i}].until_cycle = {cluster.until_cycle}: must be above from_cycle = {cluster.from_cycle}"
                )
        if not (self.by_client or is_own(self.protocol)) and (fault := self.needs_clients()):
            raise ValueError(fault)
        return self

    def needs_clients(self) -> str | None:
        """What of the clusters only protocols can have that treat clients one by one."""
        for i, cluster in enumerate(self.cluster):
            if isinstance(cluster.device, dict) or cluster.from_cycle or cluster.until_cycle is not None:
                return (
                    f"cluster[{i}]: a mix of device classes, from_cycle and until_cycle are for protocols that treat clients "
                    f"one by one ({', '.join(sorted(BY_CLIENT))}); protocol = {self.protocol!r} does not"
                )
        return None

    @model_validator(mode="after")
    def _stages(self) -> Scenario:
        table = self.networked
        if self.protocol == "networked" and table.control is None and table.cycles != self.train.cycles:
            raise ValueError(
                f"train.cycles = {self.train.cycles}: must be the stages' {table.extractor_cycles} + {table.expert_cycles} + "
                f"{table.gate_cycles} = {table.cycles} (networked.extractor_cycles, expert_cycles, gate_cycles)"
            )
        if self.protocol == "networked" and self.task.kind != "image":
            raise ValueError(f'task.kind = {self.task.kind!r}: protocol = "networked" is for images; use kind = "image"')
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Scenario:
        if self.protocol == "ems-fl-enhanced" and self.train.gate_tail_cycles >= self.train.cycles:
            raise ValueError(
                f"train.gate_tail_cycles = {self.train.gate_tail_cycles}: must be below train.cycles = {self.train.cycles}, "
                "or no expert is ever trained"
            )
        return _fitting(self)


_S = TypeVar("_S", "Scenario", "Prospect")


def _fitting(scenario: _S) -> _S:
    """Raises: ValueError, where tables of methods ask for what the protocol cannot do."""
    server, parts = scenario.server or Server(), scenario.ems_fl or EmsFl()
    fault = misfit(scenario.protocol, server, parts, scenario.assignment, scenario.train, scenario.model)
    fault = fault or misfit_rank(scenario.protocol, parts, scenario.device, scenario.model)
    if fault := fault or misfit_cohort(scenario.protocol, scenario.train, scenario.device, scenario.task.kind, scenario.model):
        raise ValueError(fault)
    return scenario


def overridden(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """A scenario file as plain data, with values changed.

    Raises:
        InputError: it cannot be read, or a change is none.
    """
    return _with(read_toml(path), overrides, "--set")


def _with(document: dict[str, Any], changes: Sequence[str], option: str) -> dict[str, Any]:
    for change in changes:
        override(document, change, option)
    _check_sizes(document, option)
    return document


_T = TypeVar("_T", bound=BaseModel)


def table_of(cls: type[_T], document: dict[str, Any], where: str = "") -> _T:
    """A table from plain data; ``where`` heads each message.

    Raises:
        InputError: with one line per fault.
    """
    try:
        return cls.model_validate(document)
    except ValidationError as error:
        found = error.errors()
        inner = [e for e in found if not any(o["loc"][: len(e["loc"])] == e["loc"] != o["loc"] for o in found)]
        lines = dict.fromkeys(_explain(dict(e), cls) for e in inner)
        raise InputError("\n".join(f"{where}: {line}" if where else line for line in lines)) from error


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as plain data.

    Raises:
        InputError: it cannot be read, or is not TOML.
    """
    text = read_text(path, "", MOST_TOML_B)
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also an integer of thousands of digits
        raise InputError(f"{path}: is not TOML ({why(error)})") from error
    _check_sizes(document, str(path))
    return document


def _check_sizes(document: dict[str, Any], where: str) -> None:
    """Refuse what is nested too deep, and whole numbers that TOML does not have; those of thousands of digits cannot be shown.

    Raises:
        InputError: with ``where`` and, of a number, its place.
    """
    if _deep(document):
        raise InputError(f"{where}: is nested deeper than {MOST_DEPTH} levels; is it the right file?")
    for at, value in leaves(document):
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise InputError(f"{where}: {at} = {short(value)}: must be a whole number of 64 bits, -2⁶³ to 2⁶³ - 1")


def _deep(document: Any) -> bool:
    level = [document]
    for _ in range(MOST_DEPTH):
        level = [inner for value in level if isinstance(value, (dict, list)) for inner in _inside(value)]
    return bool(level)


def _inside(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return sorted(value) if isinstance(value, frozenset) else value


def _known(kind: Any, at: Sequence[str | int]) -> list[str]:
    """Keys of the table at a place of another; nothing where no table is there."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        if at and at[0] in kind.model_fields:
            return _known(kind.model_fields[str(at[0])].annotation, at[1:])
        return [] if at else [name for name in kind.model_fields if name != "base"]
    inner = get_args(kind)
    rest = at[1:] if at and inner and get_origin(kind) in (dict, tuple, list) else at
    return next((found for one in inner if (found := _known(one, rest))), [])


def _of_table(where: str, kind: str, known: Sequence[str]) -> str:
    """What a table would have where there is none; a key of one of several with names lacks that name."""
    *table, key = where.split(".")
    if table and key in known:
        return f"; say of which, as {'.'.join([*table, 'NAME', key])}"
    return f" of {', '.join(known)}" if known and kind == "model_type" else ""


def _explain(error: dict[str, Any], cls: type[BaseModel] | None = None) -> str:
    """One line of pydantic's findings in a user's words: field, value, bound, remedy."""
    where = ".".join(f"[{at}]" if isinstance(at, int) else str(at) for at in error["loc"]).replace(".[", "[")
    kind, given = error["type"], error["input"]
    if kind == "extra_forbidden":
        return unknown_key(where, str(error["loc"][-1]), _known(cls, error["loc"][:-1]) if cls else [])
    if kind == "missing":
        return f"{where}: is missing; add it"
    message = error["msg"].removeprefix("Value error, ")
    for bound in error.get("ctx", {}).values():  # which pydantic writes with all its zeros
        if isinstance(bound, float) and bound and not 1e-4 <= abs(bound) < 1e16:
            message = f"{message.rpartition(' ')[0]} {bound:g}"
    if kind in ("model_type", "dict_type"):
        message = f"must be a table{_of_table(where, kind, _known(cls, error['loc']) if cls else [])}"
    if kind == "value_error":
        shown = "" if isinstance(given, (dict, BaseModel)) else f" = {short(given)}"
        return f"{where}{shown}: {message}" if where else message
    near: list[str] = []
    if kind == "literal_error" and isinstance(given, str):
        near = get_close_matches(given, re.findall("'([^']*)'", error["ctx"]["expected"]), 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{where} = {short(given)}: {message[0].lower()}{message[1:]}{hint}"
