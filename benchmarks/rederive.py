"""What `fedexperts.run` ends with, against EMS-FL derived once more from its paper alone (`paper.py`, without fedexperts).

Two or three clusters, each with two devices that have unequal data and labels of their own; the paper's round, one full-batch
gradient step in each slot of the round robin. Runs are in float32 and must end with the same experts and gate to 1e-5, both
absolute and of the largest movement, and have the same loss, accuracy and gradient steps at every evaluation; every part must
have moved. Of Algorithm 1 the exact distribution is derived, by all orders and picks, and draws over many seeds must agree with
it within five standard deviations. Of Remark 1, merged adapters must change projections by the ranks that were added, and
nothing else. Exits with 1 when a bound is broken. Usage: python benchmarks/rederive.py [--draws 300] [--cycles 3]
"""

import argparse
import itertools
import json
import math
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paper
import torch
import torch.nn.functional as F
from paper import Devices, Owned, Reading, Samples, Theta
from safetensors.torch import load_file
from transformers import MixtralConfig, MixtralForSequenceClassification

from fedexperts import Scenario, run
from fedexperts.ledger import read
from fedexperts.method.owners import split_experts

BOUND = 1e-5
LENGTH, RANGE, VOCABULARY = 6, 12, 64  # of a sequence, of a cluster's own tokens, of all and padding
CASES: list[tuple[str, Reading]] = [
    ("sync", "met"),
    *((protocol, reading) for protocol in ("ems-fl", "ems-fl-enhanced") for reading in ("met", "paper")),
]


@dataclass(frozen=True)
class World:
    """Files for the product, and the same as tensors."""

    folder: Path
    scenario: Scenario
    theta: Theta
    devices: Devices
    test: Samples

    @property
    def cycles(self) -> int:
        return self.scenario.train.cycles


def make_world(folder: Path, clusters: int, devices: int = 2, cycles: int = 3, seed: int = 7) -> World:
    """Clusters with tokens of their own, whose devices have two labels each and unequally many samples."""
    folder.mkdir(parents=True)
    rng = torch.Generator().manual_seed(seed)

    def draw(n: int, c: int, labels: list[int]) -> Samples:
        tokens = torch.randint(RANGE * c, RANGE * (c + 1) + 3, (n, LENGTH), generator=rng)  # a few are the next cluster's
        return tokens, torch.tensor(labels * n)[:n]

    data = [[draw(5 + 2 * c + 7 * j, c, [2 * j, 2 * j + 1]) for j in range(devices)] for c in range(clusters)]
    test = [draw(9 + 4 * c, c, list(range(2 * devices))) for c in range(clusters)]
    for c in range(clusters):
        _write(folder / f"train{c}.jsonl", data[c])
        _write(folder / f"test{c}.jsonl", [test[c]])
    _new_model(clusters, 2 * devices, seed).save_pretrained(folder / "start")
    place: dict[str, Any] = {"devices": devices, "partition": "classes", "classes_per_device": 2}
    rates = {"lr_expert": paper.LR_EXPERT, "lr_gate": paper.LR_GATE}
    scenario: dict[str, Any] = {
        "name": "rederive",
        "seed": 4,
        "model": {"path": "start", "uplink": "exact"},
        "train": {"cycles": cycles, "batch_size": "full", "optimizer": "sgd", **rates},
        "evaluation": {"validation": 0},
        "assignment": {"trial_samples": 1000},  # all
        "cluster": [place | {"name": f"c{c}", "data": f"train{c}.jsonl", "test": f"test{c}.jsonl"} for c in range(clusters)],
    }
    pooled = torch.cat([tokens for tokens, _ in test]), torch.cat([labels for _, labels in test])
    return World(folder, Scenario.parse(scenario, folder), checkpoint(folder / "start"), data, pooled)


def _write(path: Path, sets: list[Samples]) -> None:
    rows = [row for tokens, labels in sets for row in zip(tokens.tolist(), labels.tolist(), strict=True)]
    path.write_text("".join(json.dumps({"input_ids": tokens, "label": label}) + "\n" for tokens, label in rows))


def _new_model(clusters: int, labels: int, seed: int) -> MixtralForSequenceClassification:
    """Random weights; tokens of a cluster share a direction, so that a random gate tells clusters apart."""
    config = MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=paper.HIDDEN,
        intermediate_size=paper.HIDDEN,
        num_hidden_layers=paper.LAYERS,
        num_attention_heads=paper.HEADS,
        num_key_value_heads=paper.KV_HEADS,
        num_local_experts=paper.EXPERTS,
        num_experts_per_tok=paper.TOP_K,
        num_labels=labels,
        pad_token_id=VOCABULARY - 1,
        max_position_embeddings=2 * LENGTH,
        initializer_range=0.3,
        rms_norm_eps=paper.EPSILON,
        rope_parameters={"rope_type": "default", "rope_theta": paper.ROPE},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MixtralForSequenceClassification(config)
        directions = torch.randn(clusters, paper.HIDDEN)
    with torch.no_grad():
        for c in range(clusters):
            model.model.embed_tokens.weight[RANGE * c : RANGE * (c + 1)] += 0.5 * directions[c]
    return model


def checkpoint(folder: Path) -> Theta:
    return {name: tensor.double() for name, tensor in load_file(folder / "model.safetensors").items()}


@dataclass(frozen=True)
class Ended:
    """What a run of the product came to: the global model and the ledger."""

    theta: Theta
    lines: list[dict[str, Any]]

    def __getitem__(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == event]

    @property
    def owned(self) -> Owned:
        return [set(group) for line in self["assignment"] for group in line["assignment"].values()]


def product(world: World, protocol: str, first_cycle: Reading = "met", **tables: dict[str, Any]) -> Ended:
    tables["train"] = tables.get("train", {}) | {"first_cycle": first_cycle}
    out = world.folder / f"{protocol}-{first_cycle}"
    run(world.scenario.changed(protocol=protocol, **tables), out)
    return Ended(checkpoint(out / "model"), list(read(out / "ledger.jsonl")))


def derive(world: World, protocol: str, owned: Owned, first_cycle: Reading = "met", **reading: Reading) -> list[Theta]:
    """The global model at the start, after every cycle and at the end."""
    if protocol == "sync":
        return [world.theta, *paper.baseline(world.theta, world.devices, world.cycles)]
    algorithm = paper.algorithm_2 if protocol == "ems-fl" else paper.algorithm_3
    return [world.theta, *algorithm(world.theta, world.devices, owned, world.cycles, first_cycle, **reading)]


@dataclass(frozen=True)
class Comparison:
    difference: float
    """The largest of all experts and the gate."""
    loss_difference: float
    """The largest of all evaluations."""
    movement: float
    """The largest since the start."""
    least_movement: float
    """That of the part that moved least."""
    faults: list[str]


def steps_before(world: World, protocol: str, slot: int, first_cycle: Reading) -> int:
    """Gradient steps of all devices before a slot begins: who trains when."""
    C, tail = len(world.devices), (world.cycles - 1) * len(world.devices)

    def trains(t: int, c: int) -> bool:
        if protocol == "sync":
            return t % C == c
        return (t >= c or first_cycle == "paper") and (protocol == "ems-fl" or t <= tail + c)

    return sum(len(world.devices[c]) for t in range(slot) for c in range(C) if trains(t, c))


def step_faults(world: World, protocol: str, ended: Ended, first_cycle: Reading) -> list[str]:
    C, end = len(world.devices), ended["end"][0]
    points = {point["cycle"] * C: point for point in ended["evaluate"]}
    wanted = {t: steps_before(world, protocol, t, first_cycle) for t in (*points, world.cycles * C)}
    faults = [f"{p['steps']} steps before slot {t}, not {wanted[t]}" for t, p in points.items() if p["steps"] != wanted[t]]
    last = wanted[world.cycles * C]
    return faults + ([f"{end['steps']} steps in all, not {last}"] if end["steps"] != last else [])


def compare(world: World, ended: Ended, derived: list[Theta]) -> Comparison:
    """Models at the end, tensors that nobody trains, and test losses and accuracies all along."""

    def apart(a: Theta, b: Theta, names: Any) -> float:
        return max(float((a[name] - b[name]).abs().max()) for name in names)

    parts = [paper.expert_rates(world.theta, {m}) for m in range(paper.EXPERTS)] + [paper.gate_rates(world.theta)]
    tuned = {name for part in parts for name in part}
    moved = [apart(derived[-1], world.theta, part) for part in parts]
    off = apart(ended.theta, derived[-1], tuned)
    faults = [f"{n} has moved" for n in world.theta if n not in tuned and not torch.equal(ended.theta[n], world.theta[n])]
    losses = []
    for point, theta in zip(ended["evaluate"] + ended["end"], derived, strict=True):
        logits = paper.outputs(theta, world.test[0])
        losses.append(abs(point["loss"] - float(F.cross_entropy(logits, world.test[1]))))
        right = float((logits.argmax(-1) == world.test[1]).double().mean())
        if abs(point["accuracy"] - right) > 1e-9:
            faults.append(f"accuracy {point['accuracy']:.3f}, not {right:.3f}, at t = {point['t_s']:g} s")
    faults += ["experts or gate differ"] if not off <= BOUND * min(1, max(moved)) else []
    faults += ["losses differ"] if not max(losses) <= BOUND else []
    faults += ["a part has hardly moved"] if not min(moved) > 1e-2 else []
    return Comparison(off, max(losses), max(moved), min(moved), faults)


def split_faults(world: World, ended: Ended) -> list[str]:
    """(27)-(29) and γ of a run, to the ledger's six digits, and whether Algorithm 1 can draw its split."""
    line, p_MC = ended["assignment"][0], paper.relevance(world.theta, world.devices)
    pairs = {"relevance": p_MC, "truncated": paper.truncated(p_MC), "probability": paper.probability(p_MC)}
    faults = [key for key, mine in pairs.items() if not np.allclose(line[key], mine, rtol=0, atol=2e-6)]
    gamma = list(line["gamma"].values())
    faults += [f"gamma {gamma}"] if not np.allclose(gamma, paper.gammas(p_MC, ended.owned), rtol=0, atol=2e-6) else []
    return faults + ([] if owners(ended.owned) in paper.algorithm_1(p_MC) else [f"{ended.owned} cannot be drawn"])


def owners(owned: Owned) -> tuple[int, ...] | None:
    """The cluster of each expert; None unless each has exactly one."""
    pairs = sorted((m, c) for c, group in enumerate(owned) for m in group)
    return tuple(c for _, c in pairs) if [m for m, _ in pairs] == list(range(paper.EXPERTS)) else None


TRIALS = {
    "all relevant": [[500, 700, 450], [600, 300, 500], [400, 550, 600], [500, 450, 450]],
    "truncated": [[900, 100, 30], [800, 500, 260], [200, 600, 870], [100, 800, 840]],
    "below the threshold": [[200, 100, 0], [900, 500, 600], [900, 700, 700], [0, 700, 700]],
    "never picked": [[0, 0, 0], [1000, 600, 300], [700, 1000, 800], [300, 400, 900]],
    "one cluster's": [[900, 100, 100], [800, 200, 240], [900, 100, 50], [700, 100, 20]],
}
"""Picks of each expert in each of three clusters, of 500 tokens in two layers."""


def draws(world: World, trial: list[list[int]], seeds: int) -> tuple[float, list[str]]:
    """How far frequencies of (expert, cluster) are from Algorithm 1's, in standard deviations; splits that it cannot draw."""
    picks_MC, clusters = np.array(trial), [cluster.name for cluster in world.scenario.cluster]
    counts = {name: (np.stack([picks_MC[:, c] // 2, -(-picks_MC[:, c] // 2)]), 500) for c, name in enumerate(clusters)}
    likely = paper.algorithm_1(picks_MC / 1000)
    seen: Counter[tuple[int, ...]] = Counter()
    faults = []
    for seed in range(seeds):
        drawn = split_experts(world.scenario.changed(seed=seed), counts)
        owned = [{int(part.removeprefix("expert:")) for part in drawn[name]} for name in clusters]
        owner = owners(owned)
        if owner not in likely or not all(owned):
            faults.append(f"seed {seed}: {owned} cannot be drawn")
        else:
            seen[owner] += 1
    worst = 0.0
    for m, c in itertools.product(range(paper.EXPERTS), range(len(clusters))):
        p = sum(chance for owner, chance in likely.items() if owner[m] == c)
        off = abs(sum(n for owner, n in seen.items() if owner[m] == c) / seeds - p)
        if off > 1e-9:
            worst = max(worst, off / max(1e-9, math.sqrt(max(0, p * (1 - p)) / seeds)))
    return worst, faults + (["frequencies differ"] if worst > 5 else [])


def lora_faults(folder: Path, rank: int = 2, cycles: int = 1) -> list[str]:
    """Remark 1 with merged adapters: n sums of products of rank r change a projection by rank r·n at most, and experts alone.

    One device a cluster, and steps enough for both factors to move.
    """
    world = make_world(folder, clusters=2, devices=1, cycles=cycles)
    lora = {"rank": rank, "alpha": 4.0, "average": "merge"}
    ended = product(world, "sync", model={"lora": lora}, train={"local_steps": 4})
    merges = cycles * len(world.devices)
    ranks = [
        int((torch.linalg.svdvals(change) > BOUND * torch.linalg.matrix_norm(change, 2)).sum())
        for change in (ended.theta[name] - world.theta[name] for name in paper.expert_rates(world.theta, range(paper.EXPERTS)))
    ]
    faults = [f"ranks of changes: {sorted(set(ranks))}"] if not rank <= min(ranks) <= max(ranks) <= rank * merges else []
    faults += ["no change has a rank above that of one product"] if max(ranks) == rank else []
    still = [name for name in world.theta if ".experts." not in name and not name.endswith(".gate.weight")]
    return faults + [f"{name} has moved" for name in still if not torch.equal(ended.theta[name], world.theta[name])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=300)
    parser.add_argument("--cycles", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    broken = 0
    columns = f"{'max |diff|':>10} {'of loss':>8} {'largest move':>12} {'least':>6}"
    print(f"{'protocol':17} C {'first cycle':>11} {columns}  verdict")
    with tempfile.TemporaryDirectory() as temporary:
        worlds = [make_world(Path(temporary) / str(C), C, cycles=args.cycles) for C in (2, 3)]
        for world, (protocol, reading) in itertools.product(worlds, CASES):
            ended = product(world, protocol, reading)
            found = compare(world, ended, derive(world, protocol, ended.owned, reading))
            faults = found.faults + step_faults(world, protocol, ended, reading)
            faults += split_faults(world, ended) if ended.owned else []
            broken += bool(faults)
            head = f"{protocol:17} {len(world.devices)} {reading if ended.owned else '':>11}"
            figures = (
                f"{found.difference:10.1e} {found.loss_difference:8.1e} {found.movement:12.3f} {found.least_movement:6.3f}"
            )
            print(head, figures, "", "; ".join(faults) or "equal", flush=True)
        for name, trial in TRIALS.items():
            sigmas, faults = draws(worlds[1], trial, args.draws)
            broken += bool(faults)
            print(f"Algorithm 1, {name}: {sigmas:.1f} sigma over {args.draws} seeds;", "; ".join(faults) or "equal", flush=True)
        faults = lora_faults(Path(temporary) / "lora")
        broken += bool(faults)
        print("Remark 1, merged adapters:", "; ".join(faults) or "the ranks that were added, and else nothing")
    sys.exit(broken > 0)


if __name__ == "__main__":
    main()
