"""The ledger's events: all that is written, field by field, with types, units and meaning.

`EVENTS` is the one table of them, of what is in `values`. `lines` holds writers and readers to it, and ``docs/ledger.md`` is
made from it. A field with a default stands in some lines only. A protocol of one's own may write events that are not here,
through its link.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .values import Count, Joules, Matrix, Metrics, Names, Number, Scores, Values

FORMAT = 2
"""Of what a run writes: its ledger, its folder and its checkpoints. What names no format is of format 1."""


class Line(Values):
    """Every line."""

    t_s: Annotated[Number, "Simulated seconds since the plan's start."]
    event: Annotated[str, "Its name."]


class OfCluster(Line):
    """A line of one contact, or of what a cluster does between two."""

    cluster: Annotated[str, "The link: a cluster or, where every device is a client of its own, a client."]


class Run(Line):
    """What is run; the first line."""

    format: Annotated[Count, Field(ge=1), "Of the ledger, folder and checkpoints; a line without it is of format 1."]
    name: Annotated[str, "The scenario's name."]
    protocol: Annotated[str, "Its name, or that of a class of one's own."]
    seed: Annotated[Count, "The scenario's seed."]
    version: Annotated[str, "Of FedExperts."]
    clusters: Annotated[
        dict[str, Annotated[list[Count], Field(min_length=1)]], "Of each link the training samples of its devices."
    ]
    used: Annotated[
        dict[str, list[Count]], "Of each cluster the training samples that its devices hold, and all that it has."
    ] = {}  # noqa: RUF012  # pydantic copies it
    links: Annotated[
        Literal["clusters", "clients"], "What links are: whole clusters, or clients, every device one of its own."
    ] = "clusters"
    parts_B: Annotated[dict[str, Count], "Bytes of each part as it is sent down."]
    upload_B: Annotated[
        dict[str, Count], "Bytes of each part as a device uploads it; of adapters of several ranks those of the highest."
    ]
    ranks: Annotated[
        dict[str, Annotated[Count, Field(ge=1)]], "Of adapters on each link's devices, where classes have ranks of their own."
    ] = {}  # noqa: RUF012  # pydantic copies it
    shared: Annotated[Names, "Parts that whoever is in contact trains."]
    cycles: Annotated[Count, "As the scenario asked; a plan may end before, and a longer line raises it."]
    local_steps: Annotated[Count, "Gradient steps of a device in a local round."]
    target: Annotated[Number | None, "The accuracy to reach on validation data, if one is set."]
    validation: Annotated[float | str | None, "The share of training data that is held out for it, or where it comes from."]
    plateau: Annotated[
        list[Number],
        Field(min_length=2, max_length=2),
        "Evaluations that must follow a plateau's first, and the gain that would end it.",
    ]


class Rates(Line):
    """The run goes on from here with other learning rates than before; those that changed."""

    lr_expert: Annotated[Number, "Of experts."] = Field(0, alias="train.lr_expert")
    lr_gate: Annotated[Number, "Of the gate and other shared parts."] = Field(0, alias="train.lr_gate")
    gate_lr: Annotated[Number, "Of the gate of a Networked MoE."] = Field(0, alias="networked.gate_lr")


class Warn(Line):
    """What the terminal warned of as the run was made ready. Before the first contact."""

    text: Annotated[str, "In words, with the place and the remedy."]


class Longer(Line):
    """A run that had ended goes on from here, as one that was to make so many cycles from the beginning."""

    cycle: Annotated[Count, "Whole cycles so far."]
    before: Annotated[Count, "Cycles that it was to make."]
    cycles: Annotated[Count, "Cycles that it is to make now."]


class Baselines(Line):
    """Beside results on text and images: what needs no model. Before the first contact."""

    clusters: Annotated[dict[str, Scores], "Of each cluster with a task on text; of images of each link."]


class Assignment(Line):
    """Who owns which expert, from a trial pass and Algorithm 1 or a policy. Before the first contact."""

    trial_uplink_B: Annotated[Count, "Uploads of all devices for the trial; 0 where nothing is made of it."]
    experts: Annotated[Names, "Rows of the matrices."]
    clusters: Annotated[Names, "Columns of the matrices."]
    top_k: Annotated[Count, "Experts that a token is sent to."]
    threshold: Annotated[Number, "Relevance below it is taken for none."]
    relevance: Annotated[Matrix, "(27): the share of a cluster's tokens that an expert gets."]
    truncated: Annotated[Matrix, "(28): relevance, where it reaches the threshold."]
    probability: Annotated[Matrix, "(29): that a cluster gets an expert."]
    classes: Annotated[Names, "Of each expert (Remark 2): shared, domain or rare."]
    assignment: Annotated[
        dict[str, list[int | str]], "Of each cluster the numbers of its experts; layer.number where they are split by layers."
    ]
    alpha: Annotated[dict[str, Number], "Of each cluster: the share of its own tokens that its experts get."]
    beta: Annotated[dict[str, Number], "Of each cluster: the same share of all clusters' tokens, the mean."]
    gamma: Annotated[dict[str, Number], "α / β: above 1 experts are specialised."]
    idle: Annotated[Names, "Clusters without an expert."]
    advice: Annotated[str, "Whether EMS-FL pays, in words."]


class Privacy(Line):
    """What the correlation matrices that clients share in a run tell of one sample. Before the first contact."""

    sigma: Annotated[Number, "The noise multiplier; 0: no noise."]
    epsilon: Annotated[Number | None, "ε of all matrices of the run; null without noise."]
    note: Annotated[str, "The guarantee, and its limits, in words."]
    delta: Annotated[Number, "δ; not without noise."] = 0


class Contact(OfCluster):
    """A contact begins."""

    satellite: Annotated[str, "Its name in the plan."]
    until_s: Annotated[Number, "When the plan ends it; faults may end it before."]


class Flush(Contact):
    """A contact after the last cycle begins, which collects what is left (``train.final_flush``)."""


class Send(OfCluster):
    """A broadcast to all devices of the cluster is over, or was cut off."""

    parts: Annotated[Names, "Those that have arrived whole."]
    downlink_B: Annotated[Count, "All that was sent, in vain or not; one copy, whoever listens."]
    versions: Annotated[list[Count], "Of the parts."]


class Train(OfCluster):
    """Local rounds of all devices of the cluster are done."""

    phase: Annotated[Literal["connected", "disconnected"], "In contact, or between contacts."]
    parts: Annotated[Names, "Those that were trained."]
    rounds: Annotated[Count, "Of each device."]
    steps: Annotated[Count, "Gradient steps, summed over the devices."]
    peer_B: Annotated[Count, "Sent between clients that ask each other's experts, where they do."] = 0
    loss: Annotated[
        Number, "Before each of these steps, on its batch: the mean over steps and devices; not where none is finite."
    ] = 0
    goal: Annotated[str, "What the loss is of, if not of the task: contrast (FedSC) or own-id (a rolling gate)."] = "task"


class Trial(OfCluster):
    """A trial pass for another split of the experts."""

    tokens: Annotated[Count, "Routed, on all devices."]
    uplink_B: Annotated[Count, "Of the counts."]


class Collect(OfCluster):
    """An upload of all devices of the cluster is over, or was cut off."""

    parts: Annotated[Names, "Those that have arrived whole from every device; none after a cut."]
    uplink_B: Annotated[Count, "All that was sent, in vain or not, summed over the devices."]
    rounds: Annotated[Count, "Local rounds that the updates carry, the most of one device."]


class Part(OfCluster):
    """What became of a part."""

    part: Annotated[str, "Its name."]


class Aggregated(Part):
    """A part of the global model has become another."""

    digest: Annotated[str, "Of the new part."]
    truncation: Annotated[
        Number, "What factoring averaged adapters has lost, as a share of their products' norm, where that was done."
    ] = 0


class Aggregate(Aggregated):
    """EMS-FL and the baseline, on an arrival: (26), (31), (32), (38)."""

    version: Annotated[Count, "That the devices had trained from."]
    behind: Annotated[Count, "Versions that have come since."]


class AggregateRound(Aggregated):
    """Protocols in rounds, at the end of one: all who trained the part together."""

    clients: Annotated[Count, "How many they are."]


class AggregateLate(Aggregated):
    """Protocols in rounds: what missed its round moves the part when it arrives."""

    behind: Annotated[Count, "Rounds since its own."]


class Wait(Part):
    """FedBuff, on an arrival: it waits until there are ``server.buffer`` of them, which make an update together."""

    version: Annotated[Count, "That the devices had trained from."]
    behind: Annotated[Count, "Updates that have come since."]
    waiting: Annotated[Count, "How many wait now, this one among them."]


class Pooled(Line):
    """All data in one place: what it takes to bring them there, once. Before the first contact."""

    uplink_B: Annotated[Count, "Of the samples, as numbers in memory."]
    samples: Annotated[Count, "Of all devices."]


class Refuse(Part):
    """EMS-FL: an update that no version sent belongs to."""

    version: Annotated[Count, "That it was trained from."]


class RefuseLate(Part):
    """Networked MoE: an extractor that missed its stage."""

    behind: Annotated[Count, "Rounds since its own."]


class RefuseNumbers(OfCluster):
    """What has left the finite numbers on a device is given up there."""

    device: Annotated[str, "Its name."]
    parts: Annotated[Names, "Those that are not finite, or further from what was sent than any update may be."]
    reason: Annotated[str, "In words."]


class RefuseUpdate(Part):
    """An update that the server does not let in (`Admission`); the run goes on without it."""

    device: Annotated[str, "That was asked for it."]
    reason: Annotated[str, "In words, the bound among them."]


class Lost(OfCluster):
    """A contact ends before the protocol is done with it."""

    reason: Annotated[str, "In words, where it is not the signal."] = ""


class Split(OfCluster):
    """Experts are split again, as this cluster's trial was the last; owners change at their next contacts."""

    owned: Annotated[dict[str, Names], "Of each cluster its experts from then on."]


class HandOver(OfCluster):
    """A cluster's experts are others from now on."""

    released: Annotated[Names, "Those that it no longer owns."]
    gained: Annotated[Names, "Those that it owns now."]


class Stage(OfCluster):
    """A round of a Networked MoE begins, with this client's contact."""

    cycle: Annotated[Count, "The round, counted from 0."]
    stage: Annotated[
        str, "What is trained: fedce or fedsc, experts, rolling or federated (the gate), a control's name, or rest."
    ]
    clients: Annotated[Names, "Those that take part."]


class Roll(OfCluster):
    """All clients have judged a rolling gate: before the first roll, and after each."""

    held_loss: Annotated[Number, "Of the same gate on what each of them holds back, the mean, in nats."]
    stalled: Annotated[Count, "Rolls in a row without a gain."]


class Align(OfCluster):
    """Who trains what in a round, which begins with this client's contact."""

    cycle: Annotated[Count, "The round, counted from 0."]
    assigned: Annotated[dict[str, list[Count]], "Of each client that takes part the numbers of its experts."]
    sat_out: Annotated[dict[str, str], "Of the others why not."]


class Round(OfCluster):
    """What was trained of each expert in a round, which is over."""

    cycle: Annotated[Count, "The round, counted from 0."]
    load: Annotated[list[Number], "Samples or FLOPs of each expert, as ``alignment.usage`` says."]
    usage: Annotated[list[Number], "Of each expert, with all rounds before it in ever smaller shares."]


class Energy(Line):
    """What devices have used since the last such line."""

    cycle: Annotated[Count, "That ends here, counted from 1; one more for what comes after the last."]
    per_device: Annotated[dict[str, Joules], "Of each link."]


class Judged(Line, Metrics):
    """The global model judged, and what it has cost so far."""

    steps: Annotated[Count, "Gradient steps, summed over all devices."]
    uplink_B: Annotated[Count, "Sent up by all devices."]
    downlink_B: Annotated[Count, "Sent down; a broadcast counts once."]
    peer_B: Annotated[Count, "Sent between clients, where they ask each other."] = 0


class Evaluate(Judged):
    """The end of a cycle, on validation data, or test data where there are none; cycle 0 is before the first contact."""

    cycle: Annotated[Count, "Whole cycles so far."]


class End(Judged):
    """All is over; the model on test data."""

    cycles: Annotated[Count, "Whole cycles."]
    late: Annotated[bool, "Whether something has arrived after the last of them."]
    unsent_rounds: Annotated[Count, "Local rounds that no contact has carried."]
    energy_per_device: Annotated[dict[str, Joules], "Of each link, over the whole run."]
    validation: Annotated[Metrics, "The same model on validation data, where there are some."] = Metrics()


EVENTS: dict[str, tuple[type[Line], ...]] = {
    "run": (Run,),
    "warning": (Warn,),
    "baselines": (Baselines,),
    "assignment": (Assignment,),
    "privacy": (Privacy,),
    "pooled": (Pooled,),
    "rates": (Rates,),
    "longer": (Longer,),
    "contact": (Contact,),
    "flush": (Flush,),
    "send": (Send,),
    "train": (Train,),
    "trial": (Trial,),
    "collect": (Collect,),
    "aggregate": (Aggregate, AggregateRound, AggregateLate),
    "wait": (Wait,),
    "refuse": (Refuse, RefuseLate, RefuseNumbers, RefuseUpdate),
    "lost": (Lost,),
    "split": (Split,),
    "hand_over": (HandOver,),
    "stage": (Stage,),
    "roll": (Roll,),
    "align": (Align,),
    "round": (Round,),
    "energy": (Energy,),
    "evaluate": (Evaluate,),
    "end": (End,),
}
"""Of each event its forms; a line has one of them."""
