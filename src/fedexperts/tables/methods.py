"""Tables that belong to single methods."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .fields import Count, Fraction, NonNegative, Positive, Share, Table, Whole


class Assignment(Table):
    """``[assignment]``: who owns which expert; ems-fl and ems-fl-enhanced. For sync it is reported, and nothing follows."""

    policy: Literal["algorithm-1", "balanced", "optimal"] = "algorithm-1"
    """The paper's random split by relevance, a greedy one on balanced loads, or the optimal one."""
    threshold: Fraction | None = None
    """Relevance below it counts as none in (28); half the even share K / M if left out."""
    trial_samples: Count = 64
    """Samples of each device in the trial pass that measures relevance."""
    trial: Literal["device", "server"] = "device"
    """Whether devices run the trial and upload counts, or upload the samples; it changes bytes alone."""
    every_cycles: Whole = 0
    """Orbital cycles after which experts are split anew; 0: never."""
    granularity: Literal["global", "layer"] = "global"
    """Whether a cluster owns the same expert numbers in all layers, or others in each."""
    order: Literal["shuffled", "literal"] = "shuffled"
    """Whether algorithm-1 takes experts in a seeded order, or by their numbers."""
    repair: bool = True
    """Whether a cluster left without an expert gets the least relevant surplus one of another."""


class Server(Table):
    """``[server]``: what the server makes of the changes that arrive; η, β and τ are those of Reddi et al. (2021), Algorithm 2.

    Of sync, sync-c-rounds and fedbuff for all that is trained, of ems-fl and ems-fl-enhanced for shared parts: an expert with
    one owner becomes what its owner has. Protocols central and local have no server.
    """

    optimizer: Literal["sgd", "momentum", "adam", "yogi"] = "sgd"
    """Whether a mean change is added (FedAvg), or goes through momentum (FedAvgM), Adam (FedAdam) or Yogi (FedYogi)."""
    lr: Positive | None = None
    """η: what a step is multiplied by; left out, 1 of sgd and momentum, 0.01 of adam and yogi."""
    beta1: Share = 0.9
    """β₁: what remains of the mean of changes; of momentum, adam and yogi."""
    beta2: Share = 0.99
    """β₂: what remains of the mean of their squares; of adam and yogi."""
    tau: Positive = 1e-3
    """τ: added to the root of that mean, which starts at τ²; of adam and yogi."""
    mixing: Annotated[float, Field(gt=0, le=1)] = 0.6
    """α: share of the arriving model in the new one, times s; fedasync."""
    staleness_exponent: NonNegative = 0.5
    """The a of s = (1 + τ)^−a, where τ are the updates since the model that was trained from; fedasync and fedbuff."""
    buffer: Count = 2
    """K: clusters whose changes make an update together; fedbuff."""


class EmsFl(Table):
    """``[ems_fl]``: parts of EMS-FL to be switched off, so that its gain is taken apart; ems-fl and ems-fl-enhanced."""

    away: bool = True
    """Whether clusters train on while they are out of contact (asynchrony)."""
    disjoint: bool = True
    """Whether an expert has one owner; else all clusters train all experts, whose changes are averaged as those of the gate."""
    mask: bool = True
    """Whether the gate may pick the own experts alone, before the gate tail; ems-fl-enhanced."""
    joint_rounds: Count | None = None
    """Local rounds in a contact, at most; as many as fit if left out."""


class Alignment(Table):
    """``[alignment]``: who trains which expert in a round of ``protocol = "aligned"``.

    λ, α, β and w are those of docs/decisions.md, 45 to 49. Loads are clients of one expert in a round; without bounds of its
    own ``optimal`` deals all loads as evenly as they go. ``capacity = "estimated"`` begins with one expert a client.
    """

    policy: Literal["random", "greedy", "balanced", "optimal"] = "balanced"
    """Who trains what: at random, the most desired expert, one after another on balanced loads, or the optimum."""
    fitness_weight: Fraction = 0.5
    """λ: what fitness counts in desirability; usage counts 1 − λ."""
    fitness_rate: Fraction = 0.3
    """α: how far a pair's fitness moves to a new reward."""
    usage_decay: Fraction = 0.8
    """β: what remains of an expert's usage after a round."""
    loss_weight: Fraction = 0.5
    """w: what the loss counts in a reward; the gate's share of picks counts 1 − w."""
    drift: Fraction = 0.05
    """How far fitness of pairs not trained in a round moves to the mean of rewards."""
    prior: Fraction = 0.5
    """Fitness that every pair starts with, and the mean of rewards at the start."""
    usage: Literal["samples", "flops"] = "samples"
    """Whether usage counts the samples or the FLOPs that an expert was trained with."""
    gate: Literal["rows", "per-client", "frozen"] = "rows"
    """Rows of the gate averaged over their experts' holders; a gate for each client; or a gate that is not trained."""
    ties: Literal["random", "first"] = "random"
    """Whether greedy draws among equally desired experts, or takes the first."""
    cold_start: bool = True
    """Whether the first round deals out experts in turn, as nothing is known yet."""
    patience: Count = 3
    """Rounds that an expert may go untrained before it comes first; of policies balanced and optimal."""
    participation: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the present clients that a round draws."""
    max_experts: Count | None = None
    """Experts of a client in a round, at most; as many as it can carry if left out."""
    min_load: Whole | None = None
    """Clients of an expert in a round, at least; of policy = "optimal"."""
    max_load: Count | None = None
    """Clients of an expert in a round, at most; of policies balanced and optimal."""
    capacity: Literal["profile", "estimated"] = "profile"
    """Whether what clients can carry follows from their class, or is learnt from how long they took."""
    deadline_s: Positive | None = None
    """What a client has for each of download, training and upload, in s; a slot or a median contact if left out."""
    appraisal_samples: Count = 64
    """Samples of a client on which an expert's reward is measured."""

    @model_validator(mode="after")
    def _bounds(self) -> Alignment:
        if self.min_load is not None and self.max_load is not None and self.min_load > self.max_load:
            raise ValueError(f"min_load = {self.min_load}: must be at most max_load = {self.max_load}")
        return self


class NetworkedTable(Table):
    """``[networked]``: the stages of ``protocol = "networked"``, each so many cycles; together they are ``train.cycles``.

    ``schedule``: "falling" lets a client's own weight fall from 1 to 0.2 and FedSC's learning rate to 0, as its release does;
    "plain" is (4) to the letter, with q_i and a constant rate. The rest of the release (its optimiser, clipping, batches and
    who takes part) is the scenario's own business, so that "official", as "falling" was called in earlier runs, says too much.
    """

    extractor: Literal["fedce", "fedsc"] = "fedce"
    """How the shared feature extractor is trained: by cross-entropy, or by contrast."""
    extractor_cycles: Whole = 10
    """Cycles of stage 1, the extractor."""
    expert_cycles: Whole = 5
    """Cycles of stage 2, the experts at home."""
    gate: Literal["random", "rolling", "federated"] = "federated"
    """How the gate comes about: drawn at random, handed from client to client, or by federated averaging."""
    gate_cycles: Whole = 5
    """Cycles of stage 3, the gate."""
    gate_lr: Positive = 0.1
    """Length of the first steps of a federated gate, which fall by a cosine; those of a rolling one are 0.3 times as long."""
    gate_top_k: Count | None = None
    """Experts that a sample meets while a federated gate is trained, all if left out; inference takes the model's own."""
    gate_participation: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Share of the present clients that a cycle of a federated gate draws."""
    gate_patience: Count = 2
    """Rolls without a lower loss, as all clients judge it after each, after which a rolling gate rests."""
    balance: NonNegative = 0.0
    """Weight of the load-balance loss of a federated gate, with the load over all clients."""
    share: Fraction = 0.7
    """p: part of its samples that a client's rolling gate is to keep at home."""
    prior: Annotated[tuple[NonNegative, ...], Field(strict=False)] | None = None
    """Weight of each client in a random gate's draws; alike if left out."""
    expert_cache: bool = False
    """Whether others' experts are fetched once, instead of being asked for every sample; it changes bytes alone."""
    norm: Positive = 1.0
    """Norm to which fedsc clips representations."""
    sigma: NonNegative = 0.0
    """Standard deviation of the noise on shared correlation matrices, in sensitivities; fedsc. 0: none."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """δ of the (ε, δ) that this noise gives; fedsc."""
    correlation_samples: Count = 256
    """Images on which a client estimates its correlation matrix; fedsc."""
    schedule: Literal["falling", "plain", "official"] = "falling"
    """The release's own weights and rates over stage 1 (falling; once official), or (4) to the letter (plain); fedsc."""
    control: Literal["local", "fedavg"] | None = None
    """Classifiers without a network instead: each client its own, or one for all by FedAvg."""

    @property
    def cycles(self) -> int:
        """Of all stages."""
        return self.extractor_cycles + self.expert_cycles + self.gate_cycles
