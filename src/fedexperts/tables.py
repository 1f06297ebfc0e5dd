"""The tables of a scenario: each field with its bounds. What ties tables together is in `scenario`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Name = Annotated[str, Field(min_length=1, pattern=r"^[A-Za-z0-9_.\-]+$")]
Positive = Annotated[float, Field(ge=1e-30, le=1e30)]
NonNegative = Annotated[float, Field(ge=0, le=1e30)]
"""Products and quotients of a few such numbers are finite."""
Load = Literal["all", "own", "stream"]
Fraction = Annotated[float, Field(ge=0, le=1)]
MOST = 10**9
"""Of anything that is counted: above what fits any machine, and sums of it stay whole numbers of 64 bits."""
Count = Annotated[int, Field(ge=1, le=MOST)]
Whole = Annotated[int, Field(ge=0, le=MOST)]
LONGEST_S = 1e10
"""Of a plan and of all within it: three hundred years."""


class Table(BaseModel):
    """A TOML table: no unknown keys, no silent conversion of strings to numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Plan(Table):
    """``[plan]``: who can talk when. ``days`` and ``min_elevation_deg`` belong to ``kind = "orbit"``.

    ``start`` is what seconds count from: of an orbit, and of absolute times in a file. ``nodes`` are the node numbers of the
    server and the clusters in HDTN's and ION's files, read and written: ``nodes = { server = 1, lisbon = 10 }``.
    """

    kind: Literal["orbit", "round-robin", "always-on", "file"] = "round-robin"
    path: str | None = None
    nodes: dict[Name, Annotated[int, Field(ge=1, lt=2**63)]] | None = None
    slot_s: Annotated[float, Field(ge=1e-3, le=1e8)] = 60.0
    idle_slots: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    start: AwareDatetime | None = None
    days: Annotated[float, Field(ge=1e-4, le=100_000)] = 1.0
    min_elevation_deg: Annotated[float, Field(ge=0, lt=90)] = 10.0

    @model_validator(mode="after")
    def _path(self) -> Plan:
        if (self.kind == "file") != (self.path is not None):
            raise ValueError('kind = "file" needs a path, and a path needs kind = "file"')
        if self.kind == "orbit" and self.start is None:
            raise ValueError('kind = "orbit" needs a start, for example start = 2026-01-01T00:00:00Z')
        if self.start is not None and not 1957 <= self.start.year < 2200:
            raise ValueError(f"start = {self.start.isoformat()}: must be within 1957..2199")
        return self


class Walker(Table):
    """A Walker shell: ``total`` satellites in ``planes`` planes."""

    total: Count
    planes: Count
    phasing: Whole = 0
    altitude_km: float
    inclination_deg: float
    kind: Literal["delta", "star"] = "delta"


class Satellite(Table):
    """``[satellite]`` or ``[[satellite]]``: a circular orbit, a TLE or OMM file, or a Walker shell.

    Of a file with several satellites ``satellite_name`` is the one to fly, or ``all = true`` flies them all.
    """

    name: Name = "satellite"
    altitude_km: float | None = None
    inclination_deg: float | None = None
    raan_deg: float = 0.0
    mean_anomaly_deg: float = 0.0
    epoch: AwareDatetime | None = None
    tle: str | None = None
    omm: str | None = None
    satellite_name: str | None = None
    all: bool = False
    walker: Walker | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Satellite:
        if sum(x is not None for x in (self.altitude_km, self.tle, self.omm, self.walker)) != 1:
            raise ValueError("give exactly one of altitude_km (a circular orbit), tle, omm or walker")
        if (self.altitude_km is None) != (self.inclination_deg is None):
            raise ValueError("a circular orbit needs altitude_km and inclination_deg")
        if (self.all or self.satellite_name is not None) and self.tle is None and self.omm is None:
            raise ValueError("satellite_name and all choose from a file; they need tle or omm")
        if self.all and self.satellite_name is not None:
            raise ValueError("give satellite_name (one satellite of the file) or all = true (every one of them), not both")
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

    rank: Annotated[int, Field(ge=1, le=2**20)]
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


class TaskTable(Table):
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
    def _fits(self) -> TaskTable:
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
    samples: Count = 100
    steps: Count = 100
    batch_size: Count = 32
    lr: Positive = 1e-3
    weight_decay: NonNegative = 0.0
    token_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    gate_fit: NonNegative = 0.0
    parts: Annotated[frozenset[Literal["gate", "backbone", "head", "experts"]], Field(strict=False)] = frozenset()


def _batch_size(value: Any) -> Any:
    if value != "full" and (type(value) is not int or not 1 <= value <= MOST):
        raise ValueError(f'must be a whole number from 1 to {MOST:,}, or "full" for one batch of all samples')
    return value


def _seconds(value: Any) -> Any:
    if value != "device" and (type(value) not in (int, float) or not 1e-3 <= value <= LONGEST_S):
        raise ValueError(
            f'must be from 0.001 to {LONGEST_S:g}, or "device" for what a round takes at the speed of the device\'s class'
        )
    return value if value == "device" else float(value)


class Train(Table):
    """``[train]``: rounds and local training.

    ``bucketing`` makes batches of samples of similar length, so that there is less padding to compute. ``cache_MB`` is for
    outputs of frozen layers, which are then computed once for each sample; it is shared out evenly to all devices of the run.
    ``seconds_per_round = "device"`` takes a round's FLOPs at the speed of the device's class.
    ``first_cycle = "paper"`` lets clusters of EMS-FL train before they are met. ``weights = "samples"`` weighs devices by their
    samples in (26), (31) and (32). ``overlap`` is for a version of a shared part that several clusters train at once:
    ``"mean"`` averages what they make of it, as in (6), ``"add"`` adds up their changes; left out, it is the mean in an
    always-on plan and the sum in others.
    """

    cycles: Count
    local_steps: Count = 1
    batch_size: Annotated[int | Literal["full"], BeforeValidator(_batch_size)] = 32
    bucketing: bool = True
    cache_MB: Annotated[float, Field(ge=0, le=1e9)] = 1000.0
    optimizer: Literal["sgd", "adamw"] = "adamw"
    lr_expert: Positive = 1e-3
    lr_gate: Positive = 1e-3
    weight_decay: NonNegative = 0.0
    shared: Annotated[frozenset[Literal["gate", "backbone", "head"]], Field(strict=False)] = frozenset({"gate"})
    seconds_per_round: Annotated[float | Literal["device"], BeforeValidator(_seconds)] = 60.0
    max_rounds: Count | None = None
    gate_tail_cycles: Whole = 1
    final_flush: bool = True
    first_cycle: Literal["met", "paper"] = "met"
    weights: Literal["devices", "samples"] = "devices"
    overlap: Literal["add", "mean"] | None = None


class Assignment(Table):
    """``[assignment]``: who owns which expert."""

    policy: Literal["algorithm-1", "balanced", "optimal"] = "algorithm-1"
    threshold: Fraction | None = None
    trial_samples: Count = 64
    trial: Literal["device", "server"] = "device"
    every_cycles: Whole = 0
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
    patience: Count = 3
    participation: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_experts: Count | None = None
    min_load: Whole | None = None
    max_load: Count | None = None
    capacity: Literal["profile", "estimated"] = "profile"
    deadline_s: Positive | None = None
    appraisal_samples: Count = 64

    @model_validator(mode="after")
    def _bounds(self) -> Alignment:
        if self.min_load is not None and self.max_load is not None and self.min_load > self.max_load:
            raise ValueError(f"min_load = {self.min_load}: must be at most max_load = {self.max_load}")
        return self


class NetworkedTable(Table):
    """``[networked]``: the stages of ``protocol = "networked"``, each so many cycles; together they are ``train.cycles``.

    ``gate_lr`` is the learning rate of the gate's stage, ``gate_top_k`` how many experts a sample meets while a federated gate
    is trained; inference takes the model's own number. ``share`` is RollGate's p, ``prior`` RanGate's distribution over clients
    (uniform if not given). ``norm`` and ``sigma`` clip FedSC's representations and set the noise on shared correlation
    matrices, in sensitivities; ``delta`` is that of its (ε, δ); each is estimated on ``correlation_samples`` images.
    ``schedule``: "official" lets a client's own weight fall from 1 to 0.2 and FedSC's learning rate to 0, as its release does;
    "plain" is (4) to the letter, with q_i and a constant rate.
    ``control`` trains classifiers without a network instead: each client its own, or one for all by FedAvg.
    """

    extractor: Literal["fedce", "fedsc"] = "fedce"
    extractor_cycles: Whole = 10
    expert_cycles: Whole = 5
    gate: Literal["random", "rolling", "federated"] = "federated"
    gate_cycles: Whole = 5
    gate_lr: Positive = 1e-2
    gate_top_k: Count = 1
    gate_participation: Annotated[float, Field(gt=0, le=1)] = 0.7
    gate_patience: Count = 2
    balance: NonNegative = 0.01
    share: Fraction = 0.7
    prior: Annotated[tuple[NonNegative, ...], Field(strict=False)] | None = None
    expert_cache: bool = False
    norm: Positive = 1.0
    sigma: NonNegative = 0.0
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    correlation_samples: Count = 256
    schedule: Literal["official", "plain"] = "official"
    control: Literal["local", "fedavg"] | None = None

    @property
    def cycles(self) -> int:
        """Of all stages."""
        return self.extractor_cycles + self.expert_cycles + self.gate_cycles


def _validation(value: Any) -> Any:
    if isinstance(value, str) and value:
        return value
    if type(value) not in (int, float) or not 0 <= value < 1:
        raise ValueError("must be a share of each cluster's training data from 0 to below 1, or the name of a file")
    return float(value)


class Evaluation(Table):
    """``[evaluation]``: when to judge the global model, on what, and the accuracy to reach.

    ``validation`` is a share of each cluster's training data, held out and drawn from the seed, or a file. Targets, plateaus
    and the evaluations of all cycles read these data; the test data are judged once, at the end. With 0 there are none, and
    everything reads the test data. A run is on its plateau from the first evaluation whose accuracy no later one exceeds by
    ``min_gain``, if at least ``patience`` evaluations follow.
    """

    target: Fraction | None = None
    validation: Annotated[float | str, BeforeValidator(_validation)] = 0.2
    every_cycles: Count = 1
    patience: Count = 5
    min_gain: Fraction = 0.005


class Faults(Table):
    """``[faults]``: probabilities of what goes wrong on the links, drawn from the scenario's seed."""

    drop: Annotated[float, Field(ge=0, lt=1)] = 0.0
    corrupt: Annotated[float, Field(ge=0, lt=1)] = 0.0
    early_close: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Device(Table):
    """``[device.<class>]``: numbers that replace those of a built-in class of devices, or all of a new class.

    ``compute_J_per_FLOP`` is what computing adds to the idle power. ``memory_B`` is what training may use, ``flops_per_s`` the
    speed that training reaches; ``up_bps`` and ``down_bps`` count where the contact plan has no rates of its own.
    ``availability`` is the share of contacts for which a client is there (protocols that treat clients one by one). ``load`` is
    how much of the model a device that has a process of its own holds: all of it, its ``own`` experts, or these while others
    are read from the checkpoint, ``stream``, when a token meets them.
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
    load: Load | None = None


def _classes(value: Any) -> Any:
    if isinstance(value, dict) and value:
        if wrong := [weight for weight in value.values() if type(weight) not in (int, float) or not 1e-9 <= weight <= MOST]:
            raise ValueError(f"a weight is {wrong[0]!r}: weights of classes must be numbers from 1e-9 to {MOST:,}")
        return value
    if not isinstance(value, str) or not value:
        raise ValueError("must be a class of devices, or classes with weights such as { phone = 0.7, jetson = 0.3 }")
    return value


class Place(Table):
    """``[[cluster]]``: devices in one place. An orbital plan needs the place; training needs the data.

    ``partition`` deals the data to the devices, see `data.partition.deal`; each way needs its own number beside it.
    ``test_partition`` deals the test data to clients that are judged one by one, like their training data or evenly.
    ``validation`` is a file of the cluster's own in place of ``[evaluation] validation``.
    ``samples`` and ``test_samples`` take so many images, drawn from the seed; clusters with the same ``data`` then take
    different ones. ``device`` is a class, or classes with weights from which each device is drawn; ``from_cycle`` and
    ``until_cycle`` say when clients join and leave. These are for protocols that treat clients one by one.
    """

    name: Name
    devices: Count = 1
    latitude_deg: float | None = None
    longitude_deg: float | None = None
    altitude_m: float = 0.0
    min_elevation_deg: Annotated[float, Field(ge=0, lt=90)] | None = None
    data: str | None = None
    test: str | None = None
    validation: str | None = None
    samples: Count | None = None
    test_samples: Count | None = None
    partition: Literal["iid", "by-label", "classes", "tau", "dirichlet"] = "iid"
    classes_per_device: Count | None = None
    tau: Annotated[float, Field(gt=0, le=1)] | None = None
    tau_mode: Literal["table", "prose"] = "table"
    dirichlet_alpha: Positive | None = None
    test_partition: Literal["same", "iid"] = "same"
    device: Annotated[str | dict[str, Any], BeforeValidator(_classes)] = "phone"
    from_cycle: Whole = 0
    until_cycle: Count | None = None
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
