"""The scenario: everything a run depends on, read from TOML and checked before any work starts.

Paths in a scenario are relative to its file. Unknown keys are errors. Each command uses only the tables it needs.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from .errors import InputError

Name = Annotated[str, Field(min_length=1, pattern=r"^[A-Za-z0-9_.\-]+$")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]


BY_CLIENT = frozenset({"aligned", "networked"})
"""Protocols that treat clients one by one."""


class Table(BaseModel):
    """A TOML table: no unknown keys, no silent conversion of strings to numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Plan(Table):
    """``[plan]``: who can talk when. ``start``, ``days`` and ``min_elevation_deg`` belong to ``kind = "orbit"``."""

    kind: Literal["orbit", "round-robin", "always-on", "file"] = "round-robin"
    path: str | None = None
    slot_s: Positive = 60.0
    idle_slots: Annotated[int, Field(ge=0)] = 0
    start: AwareDatetime | None = None
    days: Positive = 1.0
    min_elevation_deg: Annotated[float, Field(ge=0, lt=90)] = 10.0

    @model_validator(mode="after")
    def _path(self) -> Plan:
        if (self.kind == "file") != (self.path is not None):
            raise ValueError('kind = "file" needs a path, and a path needs kind = "file"')
        if self.kind == "orbit" and self.start is None:
            raise ValueError('kind = "orbit" needs a start, for example start = 2026-01-01T00:00:00Z')
        return self


class Walker(Table):
    """A Walker shell: ``total`` satellites in ``planes`` planes."""

    total: Annotated[int, Field(ge=1)]
    planes: Annotated[int, Field(ge=1)]
    phasing: Annotated[int, Field(ge=0)] = 0
    altitude_km: float
    inclination_deg: float
    kind: Literal["delta", "star"] = "delta"


class Satellite(Table):
    """``[satellite]`` or ``[[satellite]]``: a circular orbit, a TLE or OMM file, or a Walker shell."""

    name: Name = "satellite"
    altitude_km: float | None = None
    inclination_deg: float | None = None
    raan_deg: float = 0.0
    mean_anomaly_deg: float = 0.0
    epoch: AwareDatetime | None = None
    tle: str | None = None
    omm: str | None = None
    satellite_name: str | None = None
    walker: Walker | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Satellite:
        if sum(x is not None for x in (self.altitude_km, self.tle, self.omm, self.walker)) != 1:
            raise ValueError("give exactly one of altitude_km (a circular orbit), tle, omm or walker")
        if (self.altitude_km is None) != (self.inclination_deg is None):
            raise ValueError("a circular orbit needs altitude_km and inclination_deg")
        return self


class Radio(Table):
    """``[radio]``: a preset, and any field of `contact.radio.Radio` beside it, which checks them."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    preset: str = "paper"

    def changes(self) -> dict[str, Any]:
        """The fields that differ from the preset."""
        return dict(self.model_extra or {})


class Adapters(Table):
    """``model.lora``: experts are trained through low-rank adapters, scaled by ``alpha / rank``."""

    rank: Annotated[int, Field(ge=1)]
    alpha: Positive
    average: Literal["refactor", "merge", "factors"] = "refactor"


class Model(Table):
    """``[model]``: a checkpoint folder or hub name, or a config to start from random weights; adapters and uploads; routing.

    ``uplink`` is how the numbers of an upload are written; ``"exact"`` sends them as they are.
    """

    path: str | None = None
    config: dict[str, Any] | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    accelerator: Literal["cpu", "cuda"] = "cpu"
    lora: Adapters | None = None
    uplink: Literal["exact", "bf16", "int8"] = "bf16"
    tokenizer: str | None = None
    top1: Literal["straight-through", "switch", "paper"] = "straight-through"
    mask: Literal["-inf", "zero"] = "-inf"
    noise_std: NonNegative = 0.0

    @model_validator(mode="after")
    def _one_source(self) -> Model:
        if (self.path is None) == (self.config is None):
            raise ValueError("give either path (a checkpoint folder) or config (a model to start from random weights)")
        return self


class Task(Table):
    """``[task]``: what the model is to do; ``task = { … }`` in a cluster changes it for that cluster's data.

    ``label`` is the column of labels, or of answers: ``"label"`` and ``"answer"`` if nothing is given. Without ``text``
    samples of a classification are token numbers already, and labels are the head's outputs.
    Of ``kind = "image"`` ``image`` is the column of encoded images; files ``.npz`` have arrays x and y instead of columns.
    Clusters whose tables are equal share the rows of a classifier's head; others have rows of their own.
    """

    kind: Literal["classification", "multiple-choice", "causal-lm", "image"] = "classification"
    text: str | None = None
    text_pair: str | None = None
    image: str = "image"
    label: str | None = None
    labels: Annotated[tuple[str | int, ...], Field(min_length=2, strict=False)] | None = None
    prompt: str = "Question: {question}\nAnswer:"
    options: str | Annotated[tuple[str, ...], Field(min_length=2, strict=False)] = "choices"
    normalise: Literal["tokens", "characters"] = "tokens"
    max_length: Annotated[int, Field(ge=2)] = 128
    metric: Literal["accuracy", "f1", "matthews", "spearman", "pearson"] = "accuracy"

    @property
    def label_column(self) -> str:
        """Where labels or answers are."""
        return self.label or ("answer" if self.kind == "multiple-choice" else "label")

    @property
    def classifies(self) -> bool:
        """Whether the model is a classifier: its head has one output for each class, or one of a regression."""
        return self.kind in ("classification", "image")

    @model_validator(mode="after")
    def _fits(self) -> Task:
        if self.text_pair is not None and self.text is None:
            raise ValueError(f"text_pair = {self.text_pair!r}: needs text, the column of the first sequence")
        if self.kind == "causal-lm" and self.text is None:
            raise ValueError('kind = "causal-lm" needs text, the column to learn from')
        if self.kind == "image" and self.text is not None:
            raise ValueError(f'text = {self.text!r}: kind = "image" reads no text; leave it out, or correct the kind')
        if self.kind == "image" and self.metric in ("spearman", "pearson"):
            raise ValueError(f'metric = {self.metric!r}: kind = "image" has classes; use "accuracy", "f1" or "matthews"')
        if not self.classifies and self.metric != "accuracy":
            raise ValueError(f"metric = {self.metric!r}: kind = {self.kind!r} is judged by accuracy")
        return self


class Warmup(Table):
    """``[warmup]``: training of the whole model on a small shared set before the run.

    ``gate_fit`` weighs a loss that ties the gate to the domains, one group of experts for each entry of ``data``. ``parts``
    says what is trained, for example ["gate"] as in the paper's Sec. V-B; nothing means everything.
    """

    data: Annotated[tuple[str, ...], Field(min_length=1, strict=False)]
    samples: Annotated[int, Field(ge=1)] = 100
    steps: Annotated[int, Field(ge=1)] = 100
    batch_size: Annotated[int, Field(ge=1)] = 32
    lr: Positive = 1e-3
    weight_decay: NonNegative = 0.0
    token_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    gate_fit: NonNegative = 0.0
    parts: Annotated[frozenset[Literal["gate", "backbone", "head", "experts"]], Field(strict=False)] = frozenset()


def _batch_size(value: Any) -> Any:
    if value != "full" and (type(value) is not int or value < 1):
        raise ValueError('must be a whole number, 1 or above, or "full" for one batch of all samples')
    return value


class Train(Table):
    """``[train]``: rounds and local training.

    ``bucketing`` makes batches of samples of similar length, so that there is less padding to compute. ``cache_MB`` is for
    outputs of frozen layers, which are then computed once for each sample; it is shared out evenly to all devices of the run.
    ``seconds_per_round = "device"`` takes a round's FLOPs at the speed of the device's class.
    """

    cycles: Annotated[int, Field(ge=1)]
    local_steps: Annotated[int, Field(ge=1)] = 1
    batch_size: Annotated[int | Literal["full"], BeforeValidator(_batch_size)] = 32
    bucketing: bool = True
    cache_MB: NonNegative = 1000.0
    optimizer: Literal["sgd", "adamw"] = "adamw"
    lr_expert: Positive = 1e-3
    lr_gate: Positive = 1e-3
    weight_decay: NonNegative = 0.0
    shared: Annotated[frozenset[Literal["gate", "backbone", "head"]], Field(strict=False)] = frozenset({"gate"})
    seconds_per_round: Positive | Literal["device"] = 60.0
    max_rounds: Annotated[int, Field(ge=1)] | None = None
    gate_tail_cycles: Annotated[int, Field(ge=0)] = 1
    final_flush: bool = True


class Assignment(Table):
    """``[assignment]``: who owns which expert."""

    policy: Literal["algorithm-1", "balanced", "optimal"] = "algorithm-1"
    threshold: Fraction | None = None
    trial_samples: Annotated[int, Field(ge=1)] = 64
    trial: Literal["device", "server"] = "device"
    every_cycles: Annotated[int, Field(ge=0)] = 0
    granularity: Literal["global", "layer"] = "global"
    order: Literal["shuffled", "literal"] = "shuffled"
    repair: bool = True


class Alignment(Table):
    """``[alignment]``: who trains which expert in a round of ``protocol = "aligned"``.

    ``fitness_weight`` is λ, ``fitness_rate`` α, ``usage_decay`` β and ``loss_weight`` w of docs/decisions.md. ``prior`` is the
    fitness that a pair starts with and drifts back to. Loads are clients of one expert in a round; without bounds of its own
    ``optimal`` deals all loads as evenly as they go. ``patience`` is the number of rounds that an expert may go untrained
    before it comes first (balanced, optimal). ``capacity = "estimated"`` begins with one expert a client and learns their
    speed from how long they took.
    """

    policy: Literal["random", "greedy", "balanced", "optimal"] = "balanced"
    fitness_weight: Fraction = 0.5
    fitness_rate: Fraction = 0.3
    usage_decay: Fraction = 0.8
    loss_weight: Fraction = 0.5
    drift: Fraction = 0.05
    prior: Fraction = 0.5
    usage: Literal["samples", "flops"] = "samples"
    gate: Literal["rows", "per-client", "frozen"] = "rows"
    ties: Literal["random", "first"] = "random"
    cold_start: bool = True
    patience: Annotated[int, Field(ge=1)] = 3
    participation: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_experts: Annotated[int, Field(ge=1)] | None = None
    min_load: Annotated[int, Field(ge=0)] | None = None
    max_load: Annotated[int, Field(ge=1)] | None = None
    capacity: Literal["profile", "estimated"] = "profile"
    deadline_s: Positive | None = None
    appraisal_samples: Annotated[int, Field(ge=1)] = 64

    @model_validator(mode="after")
    def _bounds(self) -> Alignment:
        if self.min_load is not None and self.max_load is not None and self.min_load > self.max_load:
            raise ValueError(f"min_load = {self.min_load}: must be at most max_load = {self.max_load}")
        return self


class Networked(Table):
    """``[networked]``: the stages of ``protocol = "networked"``, each so many cycles; together they are ``train.cycles``.

    ``gate_lr`` is the learning rate of the gate's stage, ``gate_top_k`` how many experts a sample meets while a federated gate
    is trained; inference takes the model's own number. ``share`` is RollGate's p, ``prior`` RanGate's distribution over clients
    (uniform if not given). ``norm`` and ``sigma`` clip FedSC's representations and set the noise on shared correlation
    matrices, in sensitivities; ``delta`` is that of its (ε, δ); each is estimated on ``correlation_samples`` images.
    ``control`` trains classifiers without a network instead: each client its own, or one for all by FedAvg.
    """

    extractor: Literal["fedce", "fedsc"] = "fedce"
    extractor_cycles: Annotated[int, Field(ge=0)] = 10
    expert_cycles: Annotated[int, Field(ge=0)] = 5
    gate: Literal["random", "rolling", "federated"] = "federated"
    gate_cycles: Annotated[int, Field(ge=0)] = 5
    gate_lr: Positive = 1e-2
    gate_top_k: Annotated[int, Field(ge=1)] = 1
    gate_participation: Annotated[float, Field(gt=0, le=1)] = 0.7
    gate_patience: Annotated[int, Field(ge=1)] = 2
    balance: NonNegative = 0.01
    share: Fraction = 0.7
    prior: Annotated[tuple[NonNegative, ...], Field(strict=False)] | None = None
    expert_cache: bool = False
    norm: Positive = 1.0
    sigma: NonNegative = 0.0
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    correlation_samples: Annotated[int, Field(ge=1)] = 256
    control: Literal["local", "fedavg"] | None = None

    @property
    def cycles(self) -> int:
        """Of all stages."""
        return self.extractor_cycles + self.expert_cycles + self.gate_cycles


class Evaluation(Table):
    """``[evaluation]``: when to test the global model, and the accuracy to reach.

    A run is on its plateau from the first evaluation whose accuracy none of the next ``patience`` exceed by ``min_gain``.
    """

    target: Fraction | None = None
    every_cycles: Annotated[int, Field(ge=1)] = 1
    patience: Annotated[int, Field(ge=1)] = 5
    min_gain: Fraction = 0.005


class Faults(Table):
    """``[faults]``: probabilities of what goes wrong on the links, drawn from the scenario's seed."""

    drop: Annotated[float, Field(ge=0, lt=1)] = 0.0
    corrupt: Annotated[float, Field(ge=0, lt=1)] = 0.0
    early_close: Annotated[float, Field(ge=0, lt=1)] = 0.0


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, dict) else value


class Device(Table):
    """``[device.<class>]``: numbers that replace those of a built-in class of devices, or all of a new class.

    ``compute_J_per_FLOP`` is what computing adds to the idle power. ``memory_B`` is what training may use, ``flops_per_s`` the
    speed that training reaches; ``up_bps`` and ``down_bps`` count where the contact plan has no rates of its own.
    ``availability`` is the share of contacts for which a client is there (protocols that treat clients one by one).
    """

    tx_power_W: NonNegative | None = None
    rx_power_W: NonNegative | None = None
    compute_J_per_FLOP: NonNegative | None = None
    idle_power_W: NonNegative | None = None
    memory_B: Positive | None = None
    flops_per_s: Positive | None = None
    up_bps: Positive | None = None
    down_bps: Positive | None = None
    availability: Annotated[float, Field(gt=0, le=1)] | None = None


class Place(Table):
    """``[[cluster]]``: devices in one place. An orbital plan needs the place; training needs the data.

    ``partition`` deals the data to the devices, see `data.partition.deal`; each way needs its own number beside it.
    ``test_partition`` deals the test data to clients that are judged one by one, like their training data or evenly.
    ``samples`` and ``test_samples`` take so many images, drawn from the seed; clusters with the same ``data`` then take
    different ones. ``device`` is a class, or classes with weights from which each device is drawn; ``from_cycle`` and
    ``until_cycle`` say when clients join and leave. These are for protocols that treat clients one by one.
    """

    name: Name
    devices: Annotated[int, Field(ge=1)] = 1
    latitude_deg: float | None = None
    longitude_deg: float | None = None
    altitude_m: float = 0.0
    min_elevation_deg: Annotated[float, Field(ge=0, lt=90)] | None = None
    data: str | None = None
    test: str | None = None
    samples: Annotated[int, Field(ge=1)] | None = None
    test_samples: Annotated[int, Field(ge=1)] | None = None
    partition: Literal["iid", "by-label", "classes", "tau", "dirichlet"] = "iid"
    classes_per_device: Annotated[int, Field(ge=1)] | None = None
    tau: Annotated[float, Field(gt=0, le=1)] | None = None
    tau_mode: Literal["table", "prose"] = "table"
    dirichlet_alpha: Positive | None = None
    test_partition: Literal["same", "iid"] = "same"
    device: Name | Annotated[dict[Name, Positive], Field(min_length=1)] = "phone"
    from_cycle: Annotated[int, Field(ge=0)] = 0
    until_cycle: Annotated[int, Field(ge=1)] | None = None
    task: dict[str, Any] = {}

    @model_validator(mode="after")
    def _partition(self) -> Self:
        for how, name in (("classes", "classes_per_device"), ("tau", "tau"), ("dirichlet", "dirichlet_alpha")):
            if (self.partition == how) != (getattr(self, name) is not None):
                raise ValueError(f'partition = "{how}" needs {name}, and {name} needs partition = "{how}"')
        return self


class Cluster(Place):
    """``[[cluster]]`` of a training scenario."""

    data: str


class Network(Table):
    """What a contact plan depends on; ``fedexperts plan`` reads this and leaves the tables of training alone."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    name: Name
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    plan: Plan = Plan()
    satellite: Annotated[tuple[Satellite, ...], BeforeValidator(_listed), Field(strict=False)] = ()
    radio: Radio = Radio()
    model: Model | None = None
    cluster: Annotated[tuple[Place, ...], Field(min_length=1, strict=False)]
    base: Annotated[Path, Field(exclude=True)] = Path()

    @model_validator(mode="after")
    def _places(self) -> Network:
        names = [cluster.name for cluster in self.cluster]
        if twice := {name for name in names if names.count(name) > 1}:
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
        document = read_toml(Path(path))
        for override in overrides:
            _override(document, override)
        return cls.parse(document, Path(path).resolve().parent)

    @classmethod
    def parse(cls, document: dict[str, Any], base: Path = Path()) -> Self:
        """Check a scenario given as plain data."""
        known = set(Scenario.model_fields) - {"base"}
        if "base" in document or (cls is not Scenario and not set(document) <= known):
            unknown = sorted(set(document) - known)
            raise InputError("\n".join(f"{key}: unknown key; remove it or correct its spelling" for key in unknown))
        try:
            return cls.model_validate({**document, "base": base})
        except ValidationError as error:
            raise InputError("\n".join(dict.fromkeys(_explain(dict(e)) for e in error.errors()))) from error

    def changed(self, **tables: Any) -> Self:
        """A checked copy with other values, e.g. ``changed(seed=2, train={"cycles": 3})`` (tables are merged)."""
        document = self.model_dump(exclude_none=True)
        for key, value in tables.items():
            document[key] = {**document.get(key, {}), **value} if isinstance(value, dict) else value
        return type(self).parse(document, self.base)

    def to_toml(self) -> str:
        """The scenario with every default filled in."""
        return tomli_w.dumps(_plain(self.model_dump(exclude_none=True)))

    def file(self, path: str) -> Path:
        """A path of the scenario, resolved."""
        return (self.base / path).resolve()


class Tasks(Network):
    """A model and what it is judged by; ``fedexperts eval`` reads this and leaves the tables of training alone."""

    model: Model
    task: Task = Task()
    warmup: Warmup | None = None
    cluster: Annotated[tuple[Cluster, ...], Field(min_length=1, strict=False)]

    def task_of(self, i: int) -> Task:
        """The task of the i-th cluster: ``[task]``, and over it what the cluster's own table changes."""
        return Task.model_validate({**self.task.model_dump(exclude_none=True), **self.cluster[i].task})

    @model_validator(mode="after")
    def _tasks(self) -> Self:
        for i, cluster in enumerate(self.cluster):
            if self.task.kind != "image" and (cluster.samples or cluster.test_samples):
                raise ValueError(f'cluster[{i}].samples: is for task.kind = "image"; leave it out')
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
    """A whole scenario.

    ``base`` is the folder that relative paths start from; it is not part of the file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    protocol: Literal["sync", "ems-fl", "ems-fl-enhanced", "aligned", "networked"] = "ems-fl"
    train: Train
    assignment: Assignment = Assignment()
    alignment: Alignment = Alignment()
    networked: Networked = Networked()
    evaluation: Evaluation = Evaluation()
    faults: Faults = Faults()
    device: dict[Name, Device] = {}

    @property
    def by_client(self) -> bool:
        """Whether the protocol treats clients one by one, each with a link of its own."""
        return self.protocol in BY_CLIENT

    @model_validator(mode="after")
    def _clients(self) -> Scenario:
        for i, cluster in enumerate(self.cluster):
            if cluster.until_cycle is not None and cluster.until_cycle <= cluster.from_cycle:
                raise ValueError(
                    f"cluster[{i}].until_cycle = {cluster.until_cycle}: must be above from_cycle = {cluster.from_cycle}"
                )
            if self.by_client:
                continue
            if isinstance(cluster.device, dict) or cluster.from_cycle or cluster.until_cycle is not None:
                raise ValueError(
                    f"cluster[{i}]: a mix of device classes, from_cycle and until_cycle are for protocols that treat clients "
                    f"one by one ({', '.join(sorted(BY_CLIENT))}); protocol = {self.protocol!r} does not"
                )
        return self

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
        return self


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as plain data.

    Raises:
        InputError: it cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not TOML ({error})") from error


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return sorted(value) if isinstance(value, frozenset) else value


def _override(document: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set {override}: must look like section.key=value, for example train.cycles=5")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word is a string
    *tables, last = key.strip().split(".")
    table = document
    for name in tables:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise InputError(f"--set {override}: {name} is not a table")
    table[last] = value


def _explain(error: dict[str, Any]) -> str:
    """One line of pydantic's findings in a user's words: field, value, bound, remedy."""
    where = ".".join(f"[{at}]" if isinstance(at, int) else str(at) for at in error["loc"]).replace(".[", "[")
    kind, given = error["type"], error["input"]
    if kind == "extra_forbidden":
        return f"{where}: unknown key; remove it or correct its spelling"
    if kind == "missing":
        return f"{where}: is missing; add it"
    message = error["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        shown = "" if isinstance(given, (dict, BaseModel)) else f" = {given!r}"
        return f"{where}{shown}: {message}" if where else message
    return f"{where} = {given!r}: {message[0].lower()}{message[1:]}"
