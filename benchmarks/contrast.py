"""Whose correlation matrices FedSC contrasts with, on a toy that takes seconds: of which model is R?

Ten clients hold Gaussian images of 16 numbers, of ten classes, one of them dominant (τ = 0.2). A perceptron learns by (4) with
matrices R̄ of the others that are *trained* (each of the model that its client had just trained, as this program did until
2026-11-27), *received* (of the model that came down in the round before, as it does), or *now* (of the model that comes down
in this very round, which takes a second exchange). Shown are loss (3) over all images, lower is better, and the directions
(Tr R)²/‖R‖² that representations use; 1 is a collapse.

Asserted: with matrices of received models the loss is within --agree of that with matrices of now, for both schedules.
Usage: python benchmarks/contrast.py [--seeds N] [--agree LOSS] [--toy]
"""

import argparse
import copy
import statistics
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from fedexperts.train.fedsc import OFFICIAL, both_views, clipped, correlation, global_loss, local_loss, others

CLIENTS, IMAGES, SIZE, HIDDEN, REPRESENTED = 10, 200, 16, 64, 16
TAU, NORM, NOISE, BATCH = 0.2, 2**0.5, 0.5, 50
WHOSE = {"trained": "as just trained", "received": "that came down last", "now": "that comes down now"}


def dealt(seed: int) -> list[Tensor]:
    """Images of each client: 1/(1+τ) of them of its own class."""
    generator = torch.Generator().manual_seed(seed)
    centre_CD = 2 * torch.randn(CLIENTS, SIZE, generator=generator)
    found = []
    for own in range(CLIENTS):
        strange_N = torch.rand(IMAGES, generator=generator) < TAU / (1 + TAU)
        other_N = (own + torch.randint(1, CLIENTS, (IMAGES,), generator=generator)) % CLIENTS
        label_N = torch.where(strange_N, other_N, torch.full((IMAGES,), own))
        found.append(centre_CD[label_N] + torch.randn(IMAGES, SIZE, generator=generator))
    return found


def views(x_ND: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    one, other = (x_ND + NOISE * torch.randn(x_ND.shape, generator=generator) for _ in range(2))
    return one, other


@torch.no_grad()
def matrix(model: nn.Module, x_ND: Tensor, generator: torch.Generator) -> Tensor:
    """R of a client's images."""
    return correlation(both_views(*(clipped(model(view), NORM) for view in views(x_ND, generator))))


def learnt(seed: int, whose: str, falling: bool, rounds: int, steps: int) -> tuple[float, float]:
    """Loss (3) and directions after training."""
    torch.manual_seed(seed)
    model: nn.Module = nn.Sequential(nn.Linear(SIZE, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, REPRESENTED))
    generator, x = torch.Generator().manual_seed(seed + 100), dealt(seed)
    schedule, q_M, known = replace(OFFICIAL, lr=1.0, rounds=rounds), [1 / CLIENTS] * CLIENTS, list[Tensor]()
    moments: list[dict[str, object] | None] = [None] * CLIENTS
    for round_ in range(rounds):
        received = [matrix(model, own, generator) for own in x]
        known = received if whose == "now" else known
        made = []
        for i, own in enumerate(x):
            local = copy.deepcopy(model)
            rate = schedule.rate(round_) if falling else 1.0
            optimizer = torch.optim.AdamW(local.parameters(), lr=3e-3 * rate)
            if (kept := moments[i]) is not None:
                optimizer.load_state_dict({**kept, "param_groups": optimizer.state_dict()["param_groups"]})
            weight = schedule.own_weight(q_M[i], round_) if falling else q_M[i]
            for _ in range(steps):
                batch_BD = own[torch.randperm(IMAGES, generator=generator)[:BATCH]]
                z_BD, plus_BD = (local(view) for view in views(batch_BD, generator))
                optimizer.zero_grad()
                local_loss(z_BD, plus_BD, weight, others(known, q_M, i) if known else None, NORM).backward()
                optimizer.step()
            moments[i] = optimizer.state_dict()
            made.append(local)
        known = [matrix(one, own, generator) for one, own in zip(made, x, strict=True)] if whose == "trained" else received
        with torch.no_grad():
            for mean, *each in zip(model.parameters(), *(one.parameters() for one in made), strict=True):
                mean.copy_(torch.stack(each).mean(dim=0))
    with torch.no_grad():
        z_ND, plus_ND = (model(view) for view in views(torch.cat(x), generator))
        r_DD = correlation(both_views(clipped(z_ND, NORM), clipped(plus_ND, NORM)))
        return float(global_loss(z_ND, plus_ND, NORM)), float(r_DD.trace() ** 2 / (r_DD**2).sum())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--agree", type=float, default=0.05)
    parser.add_argument("--toy", action="store_true", help="two rounds; the figures mean nothing")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rounds, steps = (2, 2) if args.toy else (30, 20)
    least = NORM**4 / 2 / REPRESENTED - NORM**2
    print(
        f"{CLIENTS} clients, {rounds} rounds of {steps} steps, seeds 1…{args.seeds}: loss (3), at least {least:.3f}; directions"
    )
    for falling in (False, True):
        losses = {}
        for whose in WHOSE:
            found = [learnt(seed, whose, falling, rounds, steps) for seed in range(1, args.seeds + 1)]
            losses[whose] = statistics.mean(loss for loss, _ in found)
            name = f"{'falling' if falling else '(4) to the letter'}, R of the model {WHOSE[whose]}"
            print(f"{name:62}{'  '.join(f'{loss:7.3f} ({spread:4.1f})' for loss, spread in found)}", flush=True)
        apart = losses["received"] - losses["now"]
        assert args.toy or apart <= args.agree, f"matrices one round old cost {apart:.3f}"


if __name__ == "__main__":
    main()
