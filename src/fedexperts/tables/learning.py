"""Tables of what is learnt: model, task, warm-up, training, evaluation, and each cluster's data."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from .fields import LONGEST_S, MOST, Count, Fraction, NonNegative, Positive, Table, Whole
from .network import Place


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


class Cluster(Place):
    """``[[cluster]]`` of a training scenario."""

    data: str
