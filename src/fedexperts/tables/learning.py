"""Tables of what is learnt: model, task, warm-up, training, evaluation, and each cluster's data."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from .fields import LONGEST_S, MOST, Count, Fraction, NonNegative, OwnName, Positive, Share, Table, Whole
from .network import Place

SHORTEST_S = 1e-3
Seconds = Annotated[float, Field(ge=SHORTEST_S, le=LONGEST_S)]


class Adapters(Table):
    """``model.lora``: experts are trained through low-rank adapters, scaled by ``alpha / rank``."""

    rank: Annotated[int, Field(ge=1, le=2**20)]
    """Rank of the two factors of each projection's change."""
    alpha: Positive
    """Adapters are scaled by alpha / rank."""
    average: Literal["refactor", "merge", "factors"] = "refactor"
    """Mean of the products, factored again; of the weights with adapters merged in; or of each factor apart."""


class Model(Table):
    """``[model]``: a checkpoint folder or hub name, or a config to start from random weights; adapters and uploads; routing."""

    path: str | None = None
    """A folder with a checkpoint in safetensors, or a name on the Hugging Face hub; this or config is needed."""
    config: dict[str, Any] | None = None
    """What a config.json holds, model_type among it: a model that starts from random weights; this or path is needed."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Type of weights and activations; adapters are float32."""
    accelerator: Literal["cpu", "cuda"] = "cpu"
    """Where the model computes."""
    lora: Adapters | None = None
    """Experts are trained through low-rank adapters; left out, in full."""
    uplink: Literal["exact", "bf16", "int8"] = "bf16"
    """How an upload's numbers are written: as they are, in bf16, or in 8 bits with a scale for each slice."""
    tokenizer: str | None = None
    """A tokenizer's folder or hub name; the model's own if left out."""
    top1: Literal["straight-through", "switch", "paper"] = "straight-through"
    """What a single pick weighs: 1, its gradient that of the softmax; the softmax (switch); or 1 without gradient (paper)."""
    mask: Literal["-inf", "zero"] = "-inf"
    """Whether masked experts are out, or get the logit 0, with which they can still win (the paper's (39) to the letter)."""
    noise_std: NonNegative = 0.0
    """Standard deviation of the Gaussian noise on gate logits in training, ℰ of (9)."""

    @model_validator(mode="after")
    def _one_source(self) -> Model:
        if (self.path is None) == (self.config is None):
            raise ValueError("give either path (a checkpoint folder) or config (a model to start from random weights)")
        return self


class TaskTable(Table):
    """``[task]``: what the model is to do; ``task = { … }`` in a cluster changes it for that cluster's data.

    Clusters whose tables are equal share the rows of a classifier's head; others have rows of their own.
    """

    kind: Literal["classification", "multiple-choice", "causal-lm", "image"] = "classification"
    """Classes of sequences, options of questions by likelihood, the next token, or classes of images."""
    text: str | None = None
    """Column of texts; without it samples of a classification are token numbers, and labels the head's outputs."""
    text_pair: str | None = None
    """Column of second sequences, for pairs."""
    image: str = "image"
    """Column of encoded images; .npz files have arrays x and y instead."""
    label: str | None = None
    """Column of labels or answers; label, of multiple choice answer, if left out."""
    labels: Annotated[tuple[str | int, ...], Field(min_length=2, strict=False)] | None = None
    """Classes in the order of the head's outputs; if left out, texts in the data are sorted, and numbers are outputs."""
    prompt: str = "Question: {question}\nAnswer:"
    """What precedes the options of a question; {column} stands for a column's text."""
    options: str | Annotated[tuple[str, ...], Field(min_length=2, strict=False)] = "choices"
    """Column with a list of options, or the columns of the options."""
    normalise: Literal["tokens", "characters"] = "tokens"
    """Whether an option's log-likelihood is divided by its tokens or its characters."""
    max_length: Annotated[int, Field(ge=2)] = 128
    """Tokens to which sequences are cut."""
    metric: Literal["accuracy", "f1", "matthews", "spearman", "pearson"] = "accuracy"
    """What the model is judged by; of classifications. f1 is of the second of two labels, or the mean over
    more. Spearman and Pearson make it a regression."""

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
    """``[warmup]``: training of the whole model on a small shared set before the run."""

    data: Annotated[tuple[str, ...], Field(min_length=1, strict=False)]
    """What is trained on; each entry, named as a cluster's data, is a domain."""
    samples: Count = 100
    """Samples taken of each entry of data, at most."""
    steps: Count = 100
    """Gradient steps."""
    batch_size: Count = 32
    """Samples of a step."""
    lr: Positive = 1e-3
    """Learning rate of AdamW at the start; it falls linearly to 0."""
    weight_decay: NonNegative = 0.0
    """Weight decay of AdamW."""
    token_dropout: Share = 0.0
    """Share of tokens that padding replaces, against overfitting a small set."""
    gate_fit: NonNegative = 0.0
    """Weight of a loss that ties the gate to the domains, a group of experts for each entry of data."""
    parts: Annotated[frozenset[Literal["gate", "backbone", "head", "experts"]], Field(strict=False)] = frozenset()
    """What is trained, for example ["gate"] as in the paper's Sec. V-B; nothing means everything."""


def _batch_size(value: Any) -> Any:
    if value != "full" and (type(value) is not int or not 1 <= value <= MOST):
        raise ValueError(f'must be a whole number from 1 to {MOST:,}, or "full" for one batch of all samples')
    return value


def _seconds(value: Any) -> Any:
    if value != "device" and (type(value) not in (int, float) or not SHORTEST_S <= value <= LONGEST_S):
        raise ValueError(
            f'must be from {SHORTEST_S} to {LONGEST_S:g}, or "device" for what a round takes at the speed of the device\'s '
            "class"
        )
    return value if value == "device" else float(value)


class Train(Table):
    """``[train]``: rounds and local training.

    ``overlap`` is for a version of a shared part that several clusters train at once:
    ``"mean"`` averages what they make of it, as in (6), ``"add"`` adds up their changes; left out, it is the mean in an
    always-on plan and the sum in others.
    """

    cycles: Count
    """Orbital cycles of the run; a cycle ends when every reachable cluster has been served since it began."""
    local_steps: Count = 1
    """Gradient steps of a device in a local round."""
    batch_size: Annotated[Count | Literal["full"], BeforeValidator(_batch_size)] = 32
    """Samples of a step; full is one batch of all of a device's samples."""
    bucketing: bool = True
    """Whether batches hold samples of similar length, so that there is less padding to compute."""
    cache_MB: Annotated[float, Field(ge=0, le=1e9)] = 1000.0
    """For outputs of frozen layers, computed once a sample, in MB; shared out evenly to all devices of the run."""
    optimizer: Literal["sgd", "adamw"] = "adamw"
    """Optimiser of local training."""
    lr_expert: Positive = 1e-3
    """Learning rate of experts, η^E."""
    lr_gate: Positive = 1e-3
    """Learning rate of the gate and other shared parts, η^U."""
    weight_decay: NonNegative = 0.0
    """Weight decay of AdamW; with sgd an L2 penalty."""
    local_loss: OwnName | None = None
    """A function of your own, from a batch's loss to what is minimised, as examples/fedprox.py; left out, it is that loss."""
    proximal_mu: NonNegative | None = None
    """µ of FedProx: the loss gains µ/2 times the squared distance of what is trained from what was received; left out, 0. Not
    of central and local, which receive nothing."""
    shared: Annotated[frozenset[Literal["gate", "backbone", "head"]], Field(strict=False)] = frozenset({"gate"})
    """Parts beside experts that whoever is in contact trains; of all protocols but networked."""
    cohort: Literal["one-by-one", "batched"] | None = None
    """How a cluster's devices are computed: batched computes them as one, where models are small many times as fast, and equal
    up to rounding; left out, one-by-one. Not of aligned and networked."""
    seconds_per_round: Annotated[Seconds | Literal["device"], BeforeValidator(_seconds)] = 60.0
    """Length of a local round, in s; device takes its FLOPs at the speed of the device's class."""
    max_rounds: Count | None = None
    """Local rounds at most between two contacts, with aligned and networked also in one; left out, as many as fit."""
    gate_tail_cycles: Whole = 1
    """Cycles at the end, part of cycles, that tune the gate with experts frozen; ems-fl-enhanced."""
    final_flush: bool = True
    """Whether one further contact a cluster, without training, collects what was not uploaded."""
    first_cycle: Literal["met", "paper"] = "met"
    """Whether clusters rest until they are met, or train from the start; ems-fl, ems-fl-enhanced, fedasync, fedbuff."""
    weights: Literal["devices", "samples"] = "devices"
    """Whether devices weigh alike or by their samples in (26), (31) and (32); of protocols whose links are clusters."""
    overlap: Literal["add", "mean"] | None = None
    """Changes of clusters that train one version at once add up, or are averaged; sync, sync-c-rounds and EMS-FL's."""
    max_update_norm: Positive | None = None
    """An update is refused whose change of a part has a larger root mean square, in units of that of the part as it was
    sent, of at least 1; left out, 100, which lets all training that works through."""


def _validation(value: Any) -> Any:
    if isinstance(value, str) and value:
        return value
    if type(value) not in (int, float) or not 0 <= value < 1:
        raise ValueError("must be a share of each cluster's training data from 0 to below 1, or the name of a file")
    return float(value)


class Evaluation(Table):
    """``[evaluation]``: when to judge the global model, on what, and the accuracy to reach.

    Targets, plateaus and the evaluations of all cycles read the validation data; the test data are judged once, at the end. A
    run is on its plateau from the first evaluation whose accuracy no later one exceeds by ``min_gain``, if at least
    ``patience`` evaluations follow.
    """

    target: Fraction | None = None
    """Accuracy, or the task's metric, to reach on validation data; costs are told up to there."""
    validation: Annotated[Share | str, BeforeValidator(_validation)] = 0.2
    """Share of each cluster's training data held out, drawn from the seed, or a file; with 0 test data stand in."""
    every_cycles: Count = 1
    """Orbital cycles from one evaluation to the next."""
    patience: Count = 5
    """Evaluations that must follow a plateau's first."""
    min_gain: Fraction = 0.005
    """What a later evaluation must exceed a plateau's first by to end it, as accuracy."""


class Cluster(Place):
    """``[[cluster]]``: devices in one place and their data; ``fedexperts plan`` needs the place alone."""

    data: str
