"""The tables of the Networked MoE paper on a scenario: extractors and gates beside controls, over partitions and seeds.

Extractor and experts are trained once for each partition and seed; the gates start from that run's model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..ledger import tail
from ..scenario import Scenario
from .grid import Done, Grid, Key, over_seeds

EXTRACTORS = ("none", "fedce", "fedsc")
"""``none`` is never trained: the floor of all that extractors give."""
RUNGS = {"central": "central gate", "all": "all experts", "oracle": "oracle", "probe": "probe"}
"""What stands beside gates on the same extractor and experts, by its name in a run's ledger."""
GATES = ("random", "rolling", "federated")
METRICS = ("accuracy", "macro_f1", "macro_auc")
IID = "iid"
CENTRAL = "central"


def partitions(text: str) -> list[str]:
    """Partitions as the command line names them: ``iid``, or τ.

    Raises:
        InputError: a word is neither.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    for word in words or [text]:
        try:
            good = word == IID or 0 < float(word) <= 1
        except ValueError:
            good = False
        if not good:
            raise InputError(f"--tau {word!r}: must be iid or a number above 0 and up to 1, such as iid,0.5,0.3,0.2")
    return list(dict.fromkeys(words))


def on(scenario: Scenario, partition: str) -> Scenario:
    """The scenario with its clusters' data dealt like this."""
    clusters = []
    for cluster in scenario.model_dump(exclude_none=True)["cluster"]:
        cluster.pop("tau", None)
        own = {"partition": "iid"} if partition == IID else {"partition": "tau", "tau": float(partition)}
        clusters.append({**cluster, **own})
    return scenario.changed(cluster=clusters)


def trained(scenario: Scenario, names: Sequence[str], seeds: int) -> dict[Key, Scenario]:
    """Runs that start from nothing, by method, partition and seed: extractors with their experts, and the controls.

    All make equally many gradient steps on the extractor; the centralised MoE makes those of all clients together, and is there
    for the even partition alone. A projection is only FedSC's.
    """
    table = scenario.networked
    named: dict[tuple[str, ...], Scenario] = {}
    for name in names:
        dealt = on(scenario, name)
        for extractor in EXTRACTORS:
            named[extractor, name] = _trained(dealt, extractor)
        for control in ("local", "fedavg"):
            own = dealt.changed(networked={"control": control}, train={"cycles": table.extractor_cycles})
            one = {"num_experts": 1, "num_experts_per_tok": 1} if control == "fedavg" else {}
            named[control, name] = _with(own, projection_size=0, **one)
    if IID in names:
        named[CENTRAL, IID] = _with(_central(on(scenario, IID)), projection_size=0)
    return over_seeds(named, seeds)


def _trained(scenario: Scenario, extractor: str) -> Scenario:
    """Stages 1 and 2; of an extractor that is never trained the second alone."""
    table = scenario.networked
    rounds = 0 if extractor == EXTRACTORS[0] else table.extractor_cycles
    stages = {"extractor": "fedsc" if extractor == "fedsc" else "fedce", "extractor_cycles": rounds}
    own = scenario.changed(
        networked={**stages, "gate": "random", "gate_cycles": 0}, train={"cycles": rounds + table.expert_cycles}
    )
    return own if extractor == "fedsc" else _with(own, projection_size=0)


def gated(scenario: Scenario, model: Path, gate_cycles: int) -> dict[str, Scenario]:
    """Stage 3 alone, from a run's model, for the two gates that are trained, over equally many cycles."""
    document = scenario.model_dump(exclude_none=True)
    document["model"] = {k: v for k, v in document["model"].items() if k != "config"} | {"path": str(model.resolve())}
    table = {"extractor_cycles": 0, "expert_cycles": 0}
    jobs = {}
    for gate in GATES[1:]:
        document["networked"] = {**document["networked"], **table, "gate": gate, "gate_cycles": gate_cycles}
        document["train"] = {**document["train"], "cycles": gate_cycles}
        jobs[gate] = Scenario.parse(document, scenario.base)
    return jobs


def _clients(scenario: Scenario) -> int:
    return sum(cluster.devices for cluster in scenario.cluster)


def _with(scenario: Scenario, **config: int) -> Scenario:
    return scenario.changed(model={"config": {**(scenario.model.config or {}), **config}})


def _central(scenario: Scenario) -> Scenario:
    """All data in one place, all parts trained together, as many steps as all clients make."""
    clients, document = _clients(scenario), scenario.model_dump(exclude_none=True)
    document["cluster"] = [{**cluster, "devices": 1} for cluster in document["cluster"]]
    document["train"] |= {
        "cycles": scenario.networked.extractor_cycles,
        "local_steps": scenario.train.local_steps * clients,
        "shared": ["gate", "backbone"],
        "seconds_per_round": scenario.plan.slot_s,  # one round a slot, as its clients make
    }
    return Scenario.parse({**document, "protocol": "sync"}, scenario.base)


def resized(scenario: Scenario, clients: int) -> Scenario:
    """The same data on so many clients, each with an expert.

    Raises:
        InputError: the clients are in several clusters, and it is not known which to change.
    """
    if len(scenario.cluster) != 1:
        raise InputError("--clients: needs a scenario with a single [[cluster]], whose devices are then changed")
    document = scenario.model_dump(exclude_none=True)
    document["cluster"] = [{**document["cluster"][0], "devices": clients}]
    document["model"]["config"] = {**document["model"]["config"], "num_experts": clients}
    return Scenario.parse(document, scenario.base)


def by_clients(scenario: Scenario, counts: Sequence[int], partition: str, seeds: int) -> dict[Key, Scenario]:
    """Fig. 4a: both extractors with their experts, for other numbers of clients; the key's partition names these too."""
    jobs = {}
    for n in counts:
        for (method, _, seed), job in trained(resized(scenario, n), [partition], seeds).items():
            if method in EXTRACTORS[1:]:
                jobs[method, _among(n, partition), seed] = job
    return jobs


def _among(clients: int, partition: str) -> str:
    return f"{partition}, {clients} clients"


def grid(scenario: Scenario, names: Sequence[str], clients: Sequence[int], seeds: int) -> Grid:
    """All that is trained on these partitions, and on the last of them by other numbers of ``clients``, if any.

    Filled in, ``tables`` has ``same`` (test data like the training data: Table I) and ``even`` (Table II), each by method and
    partition with the metrics' values over seeds; ``clients``, where other numbers are asked for, FedGate's accuracy on the
    last partition by number, the scenario's own among them.

    Raises:
        InputError: the scenario is not one that can be trained from its config.
    """
    if scenario.model.config is None:
        raise InputError("model.path: the comparison trains from nothing; give model.config instead")
    if len(scenario.cluster) != 1 or scenario.train.max_rounds != 1 or scenario.plan.kind != "always-on":
        raise InputError(
            'the comparison needs a single [[cluster]], plan.kind = "always-on" and train.max_rounds = 1, so that all methods '
            "make the same steps"
        )
    others = by_clients(scenario, clients, names[-1], seeds)

    jobs = trained(scenario, names, seeds) | others

    def then(done: Mapping[Key, Done]) -> dict[Key, Scenario]:
        """The gates that start from a run's model; none for controls, and FedGate alone for other numbers of clients."""
        found: dict[Key, Scenario] = {}
        for key in (key for key in done if key[0] in EXTRACTORS):
            method, name, seed = key
            stages = gated(jobs[key], done[key].directory / "model", scenario.networked.gate_cycles)
            wanted = [gate for gate in stages if key not in others or gate == GATES[-1]]
            found |= {(f"{method}, {gate}", name, seed): stages[gate] for gate in wanted}
        return found

    def fill(done: Mapping[Key, Done]) -> dict[str, Any]:
        ends = {key: _end(one.directory) for key, one in done.items()}
        dealt = [(_clients(scenario), names[-1]), *((n, _among(n, names[-1])) for n in dict.fromkeys(clients))]
        found = _by_clients(ends, dealt) if clients else {}
        ours = {key: end for key, end in ends.items() if key[1] in names}
        return {"partitions": list(names), "seeds": seeds, **_tables(ours), "clients": found}

    return Grid("tables", jobs, fill, then)


def _end(directory: Path) -> dict[str, Any]:
    end = tail(directory / "ledger.jsonl", "end")
    assert end is not None  # the run has ended
    return end


def _by_clients(ends: Mapping[Key, dict[str, Any]], dealt: Sequence[tuple[int, str]]) -> dict[str, dict[str, list[float]]]:
    """FedGate's accuracy by number of clients and method, over seeds; ``dealt``: numbers, and names of their partitions."""
    found: dict[str, dict[str, list[float]]] = {}
    for n, partition in sorted(dealt):
        for (method, name, _), end in ends.items():
            if name == partition and method.endswith(GATES[-1]) and not method.startswith(EXTRACTORS[0]):
                found.setdefault(str(n), {}).setdefault(method, []).append(end["accuracy"])
    return found


def _tables(ends: Mapping[Key, dict[str, Any]]) -> dict[str, Any]:
    same: dict[str, dict[str, dict[str, list[float]]]] = {}
    even: dict[str, dict[str, dict[str, list[float]]]] = {}
    network: dict[str, dict[str, dict[str, list[Any]]]] = {}

    def put(table: dict[str, dict[str, dict[str, list[Any]]]], method: str, name: str, facts: Mapping[str, Any]) -> None:
        cell = table.setdefault(method, {}).setdefault(name, {})
        for key, value in facts.items():
            cell.setdefault(key, []).append(value)

    for (method, name, _), end in ends.items():
        label = f"{method}, random" if method in EXTRACTORS else method
        if method == CENTRAL:
            put(same, label, name, _of_one(end))
            continue
        put(same, label, name, {key: end[key] for key in METRICS})
        put(even, label, name, {key: end["even_test"][key] for key in METRICS})
        if method in EXTRACTORS:
            for table, ladder in ((same, end.get("ladder", {})), (even, end["even_test"].get("ladder", {}))):
                rungs = {f"{method}, {RUNGS[rung]}": rung for rung in RUNGS if rung in ladder}
                rungs |= {"majority": "majority"} if "majority" in ladder and method == "fedce" else {}
                for row, rung in rungs.items():
                    put(table, row, name, {key: value for key, value in ladder[rung].items() if key in METRICS})
        keys = ("local_ratio", "inference_B", "personal_accuracy", "accuracy_by_k", "routing")
        put(network, label, name, {key: end[key] for key in keys if key in end})
        if "one_shot" in end:
            put(same, "fedavg, one-shot", name, {key: end["one_shot"][key] for key in METRICS})
            put(even, "fedavg, one-shot", name, {key: end["one_shot"]["even_test"][key] for key in METRICS})
    return {"tables": {"same": same, "even": even}, "network": network}


def _of_one(end: Mapping[str, Any]) -> dict[str, float | None]:
    """A single cluster's metrics."""
    (metrics,) = end["metrics_by_cluster"].values()
    return {key: metrics[key] for key in METRICS}
