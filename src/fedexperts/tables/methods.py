"""Tables that belong to single methods."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .fields import Count, Fraction, NonNegative, Positive, Table, Whole


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
