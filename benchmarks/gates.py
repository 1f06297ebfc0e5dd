"""Which recipe of a federated gate comes near to one that is trained centrally, on the same extractor and experts.

Experts are trained once for a skew and a seed, by a run of examples/nmoe-fashion.toml without its gate. Latents and what all
experts make of them are kept in the cache; on these a linear gate costs milliseconds a step, so that many recipes can be tried.
The product's own path is the row `federated, product`, a run. Each cell: accuracy with one expert on data like each client's
own, and the share at home, for each seed; then the mean, and how far the worst seed is behind the central gate.

Asserted: the recipe that the product has by default and the product's run agree within --agree points of accuracy.
Usage: python benchmarks/gates.py [--cache DIR] [--seeds N] [--tau 0.2,0.5] [--extractor fedce|fedsc] [--rounds N]
       [--agree POINTS] [--toy]
"""

import argparse
import math
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import network_question as question
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedexperts.method.ladder import Answers, answers, central_gate
from fedexperts.method.methods import prepare
from fedexperts.setup.devices import dealt
from fedexperts.train.gating import answers_loss, pooled, roll_targets, spread_of

Gate = tuple[Tensor, Tensor]
"""weight_ED and bias_E for latents as they are."""


@dataclass(frozen=True)
class Network:
    """Each client's training data and test data, as the network's latents and answers; and the run that they are of."""

    train: list[Answers]
    own: list[Answers]
    seed: int
    run: dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """How a gate is trained by clients.

    ``load``: whose picks the balance loss counts, the batch's own or those of all clients. ``adam``: AdamW with moments that
    stay at home, else plain descent; gradients have unit norm in both. ``momentum``: of the server's steps. ``whitened``:
    latents are turned and scaled by second moments that clients share, the least a hundredth of the greatest.
    """

    standardised: bool = True
    bias: bool = True
    picks: int | None = None
    adam: bool = False
    rate: float = 0.1
    falling: bool = True
    rounds: int = 100
    balance: float = 0.0
    load: str = "all"
    share: float = 0.7
    momentum: float = 0.0
    whitened: bool = False


AS_IT_WAS = Recipe(False, False, 1, True, 0.01, False, 10, 0.01, "own")
RECIPES = {
    "as it was, with the mended loss": AS_IT_WAS,
    "standardised, with a bias": replace(AS_IT_WAS, standardised=True, bias=True),
    "and no balance": replace(AS_IT_WAS, standardised=True, bias=True, balance=0.0),
    "and all experts' answers": replace(AS_IT_WAS, standardised=True, bias=True, balance=0.0, picks=None),
    "and a falling rate": replace(AS_IT_WAS, standardised=True, bias=True, balance=0.0, picks=None, falling=True),
    "and 30 rounds": replace(AS_IT_WAS, standardised=True, bias=True, balance=0.0, picks=None, falling=True, rounds=30),
    "plain descent, 10 rounds": Recipe(rounds=10),
    "plain descent, 30 rounds": Recipe(rounds=30),
    "plain descent, 60 rounds": Recipe(rounds=60),
    "plain descent, 100 rounds (default)": Recipe(),
    "twice the rate": Recipe(rate=0.2),
    "load over all clients, 0.1": Recipe(balance=0.1),
    "load of the batch, 0.1": Recipe(balance=0.1, load="own"),
    "two picks": Recipe(picks=2),
    "raw latents": Recipe(standardised=False),
    "all clients in each round": Recipe(share=1.0),
    "momentum of 0.5": Recipe(momentum=0.5),
    "whitened latents": Recipe(whitened=True),
    "whitened latents, three times the rate": Recipe(whitened=True, rate=0.3),
}
DEFAULT = "plain descent, 100 rounds (default)"


def network(cell: question.Cell, cache: Path) -> Network:
    """From the cache, or trained: extractor and experts over the cell's rounds."""
    given = question.scenario(cell)
    table, at = given.networked, cache / cell.name
    config = {**given.model.config, **({} if cell.extractor == "fedsc" else {"projection_size": 0})}
    stages = {"extractor": cell.extractor, "extractor_cycles": cell.rounds, "expert_cycles": table.expert_cycles}
    end = question.played(question.staged(given.changed(model={"config": config}), **stages), at / "experts")
    prepared = prepare(question.staged(given, at / "experts" / "model", gate_cycles=1, gate="federated"))
    shares = dealt(prepared.scenario.cluster[0], next(iter(prepared.data.splits.values())).train, given.seed)
    train = [answers(prepared.view, share) for share in shares]
    own = [answers(prepared.view, test) for test in prepared.tests.own.values()]
    ends = {"random": end}
    for gate in ("rolling", "federated"):
        job = question.staged(given, at / "experts" / "model", gate=gate, gate_cycles=table.gate_cycles)
        ends[gate] = question.played(job, at / gate)
    return Network(train, own, cell.seed, ends)


def judged(of: Sequence[Answers], gate: Gate) -> tuple[float, float]:
    """Accuracy, and the share at home, in percent."""
    weight_ED, bias_E = gate
    picks = [(one.latents_TD @ weight_ED.T + bias_E).argmax(dim=1) for one in of]
    right = torch.cat([one.right_TE[torch.arange(len(pick)), pick] for one, pick in zip(of, picks, strict=True)])
    home = np.mean([float((pick == i).float().mean()) for i, pick in enumerate(picks)])
    return 100 * float(right.double().mean()), 100 * float(home)


def coordinates(of: Network, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Mean and spread by which latents are standardised; 0 and 1 for latents as they are."""
    size = of.train[0].latents_TD.shape[1]
    if not recipe.standardised:
        return torch.zeros(size), torch.ones(size)
    total = sum(len(one.labels_T) for one in of.train)
    return pooled(
        [len(one.labels_T) / total for one in of.train], *zip(*(spread_of(o.latents_TD) for o in of.train), strict=True)
    )


def whitening(x: Sequence[Tensor]) -> Tensor:
    """What makes the second moments of centred latents, over all clients, alike in all directions that have some."""
    total = sum(len(one) for one in x)
    moments_DD = torch.stack([one.T @ one / total for one in x]).sum(dim=0)
    values_D, turn_DD = torch.linalg.eigh(moments_DD)
    return turn_DD / values_D.clamp_min(float(values_D.max()) / 100).sqrt()


def federated(of: Network, recipe: Recipe, steps: int = 20, batch: int = 25) -> Gate:
    """The recipe on kept answers, one client after the other."""
    mean_D, spread_D = coordinates(of, recipe)
    x = [(one.latents_TD - mean_D) / spread_D for one in of.train]
    q = [one.of_the_label_TE for one in of.train]
    (experts, labels), generator = of.train[0].log_q_TEL.shape[1:], torch.Generator().manual_seed(of.seed)
    gate_EF = torch.zeros(experts, x[0].shape[1] + 1)
    step_EF = torch.zeros_like(gate_EF)
    turn_DD = whitening(x) if recipe.whitened else torch.eye(x[0].shape[1])
    x = [one @ turn_DD for one in x]
    x = [torch.cat([one, torch.full((len(one), 1), float(recipe.bias))], dim=1) for one in x]
    moments: dict[int, list[Tensor]] = {}
    for round_ in range(recipe.rounds):
        rate = recipe.rate * (1 + math.cos(math.pi * round_ / recipe.rounds)) / 2 if recipe.falling else recipe.rate
        who = torch.randperm(len(x), generator=generator)[: math.ceil(recipe.share * len(x))].tolist()
        picks_T = torch.cat([(x[i] @ gate_EF.T).argmax(dim=1) for i in who])
        load_E = torch.bincount(picks_T, minlength=experts) / len(picks_T)
        made = []
        for i in who:
            made.append(
                _locally(gate_EF, x[i], q[i], recipe, rate, load_E, labels, moments.setdefault(i, []), steps, batch, generator)
            )
        step_EF = recipe.momentum * step_EF + torch.stack(made).mean(dim=0) - gate_EF
        gate_EF = gate_EF + step_EF
    weight_ED = gate_EF[:, :-1] @ turn_DD.T / spread_D
    return weight_ED, gate_EF[:, -1] * recipe.bias - weight_ED @ mean_D


def _locally(
    gate_EF: Tensor,
    x_TF: Tensor,
    q_TE: Tensor,
    recipe: Recipe,
    rate: float,
    load_E: Tensor,
    labels: int,
    moments: list[Tensor],
    steps: int,
    batch: int,
    generator: torch.Generator,
) -> Tensor:
    leaf = gate_EF.clone().requires_grad_()
    if not moments:
        moments += [torch.zeros_like(gate_EF), torch.zeros_like(gate_EF), torch.zeros(())]
    for at in _batches(len(x_TF), steps, batch, generator):
        logits_BE = x_TF[at] @ leaf.T
        loss = answers_loss(logits_BE, q_TE[at], min(recipe.picks or len(load_E), len(load_E)), labels)
        if recipe.balance:
            f_E = load_E if recipe.load == "all" else F.one_hot(logits_BE.argmax(dim=1), len(load_E)).float().mean(dim=0)
            loss = loss + recipe.balance * len(load_E) * (f_E * logits_BE.softmax(dim=1).mean(dim=0)).sum()
        (slope,) = torch.autograd.grad(loss, leaf)
        slope = slope / slope.norm().clamp_min(1e-12)
        with torch.no_grad():
            if recipe.adam:
                first, second, made = moments
                made += 1
                first.mul_(0.9).add_(slope, alpha=0.1)
                second.mul_(0.999).addcmul_(slope, slope, value=0.001)
                slope = (first / (1 - 0.9**made)) / ((second / (1 - 0.999**made)).sqrt() + 1e-8)
            leaf -= rate * slope
    return leaf.detach()


def _batches(samples: int, steps: int, batch: int, generator: torch.Generator) -> list[Tensor]:
    """Numbers of the samples of each step, drawn anew when all have been met."""
    epochs = -(-steps * batch // samples) + 1
    order = torch.cat([torch.randperm(samples, generator=generator) for _ in range(epochs)])
    return [order[step * batch : (step + 1) * batch] for step in range(steps)]


def rolled(of: Network, rolls: int, rate: float, standardised: bool = True, steps: int = 20, batch: int = 25) -> Gate:
    """A gate that goes from client to client, by steps of unit norm along a cosine."""
    mean_D, spread_D = coordinates(of, Recipe(standardised=standardised))
    generator, rng = torch.Generator().manual_seed(of.seed), np.random.default_rng(of.seed)
    x = [torch.cat([(o.latents_TD - mean_D) / spread_D, torch.ones(len(o.labels_T), 1)], dim=1) for o in of.train]
    ids = [roll_targets(rng, len(one), i, len(x)) for i, one in enumerate(x)]
    gate_EF, turns = torch.zeros(len(x), x[0].shape[1]), torch.randperm(len(x), generator=generator).tolist() * rolls
    for turn, i in enumerate(turns):
        for at in _batches(len(x[i]), steps, batch, generator):
            leaf = gate_EF.clone().requires_grad_()
            (slope,) = torch.autograd.grad(F.cross_entropy(x[i][at] @ leaf.T, ids[i][at]), leaf)
            gate_EF = gate_EF - rate * (1 + math.cos(math.pi * turn / len(turns))) / 2 * slope / slope.norm().clamp_min(1e-12)
    weight_ED = gate_EF[:, :-1] / spread_D
    return weight_ED, gate_EF[:, -1] - weight_ED @ mean_D


def table(args: argparse.Namespace, cache: Path) -> None:
    """The ladder, and every recipe on it."""
    for tau in args.tau.split(","):
        rounds, seeds = 1 if args.toy else args.rounds, range(1, args.seeds + 1)
        cells = [question.Cell("fashion", 8, tau, seed, args.extractor, rounds, toy=args.toy) for seed in seeds]
        found = [network(cell, cache) for cell in cells]
        central = [judged(of.own, central_gate(_together(of.train))) for of in found]
        print(f"τ = {tau}, {args.extractor}, {rounds} rounds, seeds 1…{args.seeds}")
        print("accuracy (share at home), %; mean; the worst seed behind the central gate")

        def row(name: str, pairs: Sequence[tuple[float, float]], best: Any = central) -> list[float]:
            behind = max(top[0] - pair[0] for top, pair in zip(best, pairs, strict=True))
            shown = "  ".join(f"{accuracy:5.1f} ({home:3.0f})" for accuracy, home in pairs)
            print(f"  {name:40} {shown}   {statistics.mean(p[0] for p in pairs):5.1f}  {behind:+5.1f}", flush=True)
            return [pair[0] for pair in pairs]

        row("random", [(_share([o.right_TE for o in of.own]), 100 / len(of.own)) for of in found])
        for rolls, rate, standardised in ((1, 0.1, False), (3, 0.03, True), (9, 0.03, True), (9, 0.1, True)):
            words = "standardised" if standardised else "raw latents"
            name = f"rolling, {words}, {rolls} rolls, rate {rate:g}"
            row(name, [judged(of.own, rolled(of, rolls, rate, standardised)) for of in found])
        row("rolling, product", [_of_run(of.run["rolling"]) for of in found])
        kept: list[float] = []
        for name, recipe in RECIPES.items():
            accuracies = row(f"federated, {name}", [judged(of.own, federated(of, recipe)) for of in found])
            kept = accuracies if name == DEFAULT else kept
        product = row("federated, product", [_of_run(of.run["federated"]) for of in found])
        row("central gate", central)
        row("oracle", [(_share([o.right_TE.any(dim=1) for o in of.own]), math.nan) for of in found])
        apart = max(abs(a - b) for a, b in zip(kept, product, strict=True))
        assert args.toy or apart <= args.agree, f"recipe and product are {apart:.1f} points apart"


def _share(right: Sequence[Tensor]) -> float:
    return 100 * float(torch.cat(list(right)).float().mean())


def _of_run(end: dict[str, Any]) -> tuple[float, float]:
    return 100 * end["accuracy"], 100 * end["local_ratio"]


def _together(of: Sequence[Answers]) -> Answers:
    return Answers(*(torch.cat([getattr(one, name) for one in of]) for name in ("latents_TD", "log_q_TEL", "labels_T")))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tau", default="0.2,0.5")
    parser.add_argument("--extractor", choices=("fedce", "fedsc"), default="fedce")
    parser.add_argument("--rounds", type=int, default=10, help="of the extractor")
    parser.add_argument("--agree", type=float, default=3.0)
    parser.add_argument("--toy", action="store_true", help="smallest size, on pictures made here; the figures mean nothing")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    with TemporaryDirectory() as temporary:
        if args.toy:
            question.pictures_in(Path(temporary))
            os.environ["FEDEXPERTS_DATA"] = temporary
            args.seeds, args.tau = 1, "0.2"
        elif not (question.DATA / "fashion_mnist").is_dir():
            sys.exit(f"skipped: no folder fashion_mnist in {question.DATA}; set FEDEXPERTS_DATA to the folder of data sets")
        cache = args.cache or Path(temporary) / "cache"
        table(args, cache)


if __name__ == "__main__":
    main()
