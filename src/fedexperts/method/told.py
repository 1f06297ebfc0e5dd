"""What the servers of our protocols are told of a scenario: for a run, which has measured it, as for a plan, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..assign.scores import Need
from ..contact.plan import ContactPlan
from ..errors import InputError
from ..moe.parts import GATE, Fitted, Piece, unfitted
from ..protocol.aligned import Alignment, Client
from ..protocol.alone import Alone
from ..protocol.asynchronous import FedAsync, FedBuff
from ..protocol.ems_fl import WHOLE, Parts
from ..protocol.link import ServerProtocol, Start
from ..protocol.networked import Stages
from ..protocol.step import Step
from ..protocol.sync import Sync
from ..scenario import Prospect, Scenario
from ..setup.clients import default_deadline_s
from ..tables import Server, Train

if TYPE_CHECKING:
    from ..moe.lora import LoRA

ADAPTIVE_LR = 0.01
"""η of FedAdam and FedYogi where it is not given."""
STAGES = (
    *("extractor", "extractor_cycles", "expert_cycles", "gate", "gate_cycles", "gate_participation", "gate_patience"),
    *("control", "schedule"),
)


def start(
    scenario: Scenario | Prospect,
    train: Train,
    model: Mapping[str, Piece],
    owned: Mapping[str, frozenset[str]],
    cycles: int,
    samples: Mapping[str, int],
    lora: LoRA | None = None,
    fitted: Fitted = unfitted,
) -> Start:
    """What every protocol is told; ``samples`` are those of each link, in order."""
    return Start(
        model=model,
        clusters=tuple(samples),
        shared=frozenset(train.shared),
        owned=owned,
        cycles=cycles,
        samples=samples,
        lora=lora,
        fitted=fitted,
        weights=train.weights,
        overlap=train.overlap or ("mean" if scenario.plan.kind == "always-on" else "add"),
        first_cycle=train.first_cycle,
        max_rounds=train.max_rounds,
    )


def step(scenario: Scenario | Prospect) -> Step:
    """The server's own step."""
    table = scenario.server or Server()
    usual = 1.0 if table.optimizer in ("sgd", "momentum") else ADAPTIVE_LR
    lr = usual if table.lr is None else table.lr
    return Step(table.optimizer, lr, table.beta1, table.beta2, table.tau)


def parts(scenario: Scenario | Prospect) -> Parts:
    """What of EMS-FL is there."""
    return WHOLE if scenario.ems_fl is None else Parts(**scenario.ems_fl.model_dump())


def whole(scenario: Scenario | Prospect, start: Start) -> ServerProtocol:
    """The server's side where everybody trains the whole model: it needs nothing but the scenario."""
    table = scenario.server or Server()
    match scenario.protocol:
        case "sync":
            return Sync(start, step(scenario))
        case "sync-c-rounds":
            return Sync(start, step(scenario), speed=len(start.clusters))
        case "fedasync":
            return FedAsync(start, table.mixing, table.staleness_exponent)
        case "fedbuff":
            return FedBuff(start, table.buffer, table.staleness_exponent, step(scenario))
        case "central":
            return Alone(start, away=False)
        case "local":
            return Alone(start, away=True)
    raise AssertionError(f"{scenario.protocol}: has more to be told")


def aligned_shared(scenario: Scenario | Prospect, train: Train) -> frozenset[str]:
    """Shared parts that clients of an alignment train."""
    return frozenset(train.shared) - ({GATE} if scenario.alignment.gate == "frozen" else set())


def alignment(scenario: Scenario | Prospect, plan: ContactPlan, clients: Mapping[str, Client], need: Need) -> Alignment:
    """What a server of alignment is told."""
    table = scenario.alignment
    return Alignment(
        clients=clients,
        need=need,
        deadline_s=table.deadline_s or default_deadline_s(scenario, plan),
        seed=scenario.seed,
        estimated=table.capacity == "estimated",
        **table.model_dump(exclude={"capacity", "deadline_s"}),
    )


def stages(scenario: Scenario | Prospect, samples: Mapping[str, int], representation_size: int, latent_size: int) -> Stages:
    """What the server of a Networked MoE is told."""
    given = {name: getattr(scenario.networked, name) for name in STAGES}
    return Stages(samples, representation_size, scenario.seed, latent_size, **given)


def check_experts(scenario: Scenario | Prospect, experts: int, clients: int) -> None:
    """Whether a Networked MoE has an expert for each client.

    Raises:
        InputError: it has not.
    """
    fedavg = scenario.networked.control == "fedavg"
    if experts != (wanted := 1 if fedavg else clients):
        raise InputError(
            f"model.config.num_experts = {experts}: must be {wanted}, one for each client"
            f"{' of one averaged classifier' if fedavg else ''}; change it or the number of devices"
        )
