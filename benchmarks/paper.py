"""EMS-FL as its paper writes it, in float64, with nothing of fedexperts: what `rederive.py` compares runs with.

From Sec. II-A and III of the paper, and docs/decisions.md where that is silent: a Mixtral classifier as plain functions,
(20)-(26), Algorithms 1 to 3 and (27)-(39). Clusters and rounds count from 0; t is a slot of the round robin, one round long.
Shapes: M experts, C clusters.
"""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Theta = dict[str, Tensor]
"""A model: tensors under the names of Mixtral's files, one for each expert and projection. Never written to."""
Samples = tuple[Tensor, Tensor]
"""Tokens and labels."""
Devices = Sequence[Sequence[Samples]]
"""The data of every device, by cluster."""
Owned = Sequence[set[int]]
"""The experts of every cluster."""
Reading = Literal["met", "paper"]
LAYERS, EXPERTS, TOP_K, HIDDEN, HEADS, KV_HEADS = 2, 4, 2, 16, 4, 2
ROPE, EPSILON = 10_000.0, 1e-5
LR_EXPERT, LR_GATE = 0.25, 0.2
"""Steps of 0.5 already let rounding of float32 grow a hundredfold in nine rounds."""


# The model: (7)-(9) in a Mixtral.


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True) + EPSILON).sqrt()


def attention(theta: Theta, at: str, x: Tensor) -> Tensor:
    batch, length, width = *x.shape[:2], HIDDEN // HEADS
    angle = torch.arange(length)[:, None] * ROPE ** (-torch.arange(0, width, 2).double() / width)
    cos, sin = angle.cos().repeat(1, 2), angle.sin().repeat(1, 2)

    def heads(name: str, number: int) -> Tensor:
        return (x @ theta[at + name].T).view(batch, length, number, width).transpose(1, 2)

    def turned(y: Tensor) -> Tensor:
        return y * cos + torch.cat([-y[..., width // 2 :], y[..., : width // 2]], -1) * sin

    q, k, v = heads("q_proj.weight", HEADS), heads("k_proj.weight", KV_HEADS), heads("v_proj.weight", KV_HEADS)
    k, v = (y.repeat_interleave(HEADS // KV_HEADS, dim=1) for y in (turned(k), v))
    scores = turned(q) @ k.transpose(2, 3) / math.sqrt(width)
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    y = scores.masked_fill(later, -math.inf).softmax(-1) @ v
    return y.transpose(1, 2).reshape(batch, length, HIDDEN) @ theta[at + "o_proj.weight"].T


def masked(logits: Tensor, allowed: set[int]) -> Tensor:
    """(39), with decision 2: −∞ and not zero."""
    return logits.masked_fill(torch.tensor([m not in allowed for m in range(EXPERTS)]), -math.inf)


def moe(theta: Theta, at: str, x: Tensor, allowed: set[int] | None, picks: Counter | None) -> Tensor:
    logits = x @ theta[at + "gate.weight"].T
    top, chosen = (logits if allowed is None else masked(logits, allowed)).topk(TOP_K)
    weights = torch.zeros_like(logits).scatter(-1, chosen, top.softmax(-1))  # (9)
    if picks is not None:
        picks.update(chosen.flatten().tolist())
    y = torch.zeros_like(x)
    for m in range(EXPERTS):  # (8)
        w1, w2, w3 = (theta[f"{at}experts.{m}.{w}.weight"] for w in ("w1", "w2", "w3"))
        y = y + weights[..., m, None] * ((F.silu(x @ w1.T) * (x @ w3.T)) @ w2.T)
    return y


def outputs(theta: Theta, tokens: Tensor, allowed: set[int] | None = None, picks: Counter | None = None) -> Tensor:
    """Logits of the classes, from each sequence's last token; ``picks`` counts who was picked."""
    x = theta["model.embed_tokens.weight"][tokens]
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        x = x + attention(theta, at + "self_attn.", norm(x, theta[at + "input_layernorm.weight"]))
        x = x + moe(theta, at + "block_sparse_moe.", norm(x, theta[at + "post_attention_layernorm.weight"]), allowed, picks)
    return norm(x[:, -1], theta["model.norm.weight"]) @ theta["score.weight"].T


# Local training, averages, downloads. Rates are step sizes of the tensors that are trained.

Rates = dict[str, float]


def expert_rates(theta: Theta, experts: Collection[int]) -> Rates:
    return {name: LR_EXPERT for name in theta for m in experts if f".experts.{m}." in name}


def gate_rates(theta: Theta) -> Rates:
    return {name: LR_GATE for name in theta if name.endswith(".gate.weight")}


def step(theta: Theta, samples: Samples, rates: Rates, allowed: set[int] | None = None) -> Theta:
    """(4)-(5), (20)-(25), (33)-(36): one gradient step of the mean loss of all of a device's samples."""
    leaves = {name: theta[name].clone().requires_grad_() for name in rates}
    loss = F.cross_entropy(outputs(theta | leaves, samples[0], allowed), samples[1])
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return theta | {name: theta[name] - rates[name] * g for name, g in zip(rates, gradients, strict=True)}


def mean(models: Sequence[Theta], of: Rates) -> Theta:
    """(26), (31), (32): 1/J for every device, however much data it has."""
    return {name: torch.stack([model[name] for model in models]).mean(0) for name in of}


def downloaded(local: Sequence[Theta], theta: Theta, what: Rates) -> list[Theta]:
    return [mine | {name: theta[name] for name in what} for mine in local]


# The three protocols. Each yields the global model after every cycle, and once more after the final flush. ``first_cycle`` says
# whether clusters train from t = 0 on, as Algorithm 2's else-branch has it, or rest until they have been met.


def baseline(theta: Theta, devices: Devices, cycles: int) -> Iterator[Theta]:
    """Sec. III-A: the connected cluster trains everything, the others rest."""
    everything = expert_rates(theta, range(EXPERTS)) | gate_rates(theta)
    for t in range(cycles * len(devices)):
        connected = devices[t % len(devices)]
        theta = theta | mean([step(theta, samples, everything) for samples in connected], everything)  # (26)
        if (t + 1) % len(devices) == 0:
            yield theta
    yield theta


def algorithm_2(theta: Theta, devices: Devices, owned: Owned, cycles: int, first_cycle: Reading) -> Iterator[Theta]:
    C, gate = len(devices), gate_rates(theta)
    local = [[theta] * len(cluster) for cluster in devices]
    trains = [first_cycle == "paper"] * C
    for t in range(cycles * C):
        for c, cluster in enumerate(devices):
            experts = expert_rates(theta, owned[c])
            if c == t % C:
                theta = theta | mean(local[c], experts)  # (31), (38); of what all have from the start if nothing was trained
                local[c] = [step(theta, samples, experts | gate) for samples in cluster]
                theta = theta | mean(local[c], gate)  # (32)
                local[c] = downloaded(local[c], theta, gate)
                trains[c] = True
            elif trains[c]:
                local[c] = [step(mine, samples, experts) for mine, samples in zip(local[c], cluster, strict=True)]
        if (t + 1) % C == 0:
            yield theta
    for c in range(C):  # decision 14
        theta = theta | mean(local[c], expert_rates(theta, owned[c]))
    yield theta


def algorithm_3(
    theta: Theta, devices: Devices, owned: Owned, cycles: int, first_cycle: Reading, tail: Reading = "met"
) -> Iterator[Theta]:
    """Masked training, then one cycle in which the gate is trained alone, with all experts and without the mask (decision 16).

    ``tail`` says when a cluster ceases to train its experts: when it is met in that cycle, before which nobody can tell it so,
    or everywhere as the cycle begins, which is the end of Algorithm 3's loop.
    """
    C, gate = len(devices), gate_rates(theta)
    local = [[theta] * len(cluster) for cluster in devices]
    trains = [first_cycle == "paper"] * C
    for t in range(cycles * C):
        in_tail = t >= (cycles - 1) * C
        if in_tail and tail == "paper":
            trains = [False] * C
        for c, cluster in enumerate(devices):
            experts = expert_rates(theta, owned[c])
            if c == t % C:
                theta = theta | mean(local[c], experts)  # (31), (38)
                if in_tail:
                    local[c] = [step(theta, samples, gate) for samples in cluster]
                    theta = theta | mean(local[c], gate)  # (32)
                else:
                    local[c] = downloaded(local[c], theta, experts)
            trains[c] = not in_tail if c == t % C else trains[c]
            if trains[c]:
                local[c] = [step(mine, samples, experts, owned[c]) for mine, samples in zip(local[c], cluster, strict=True)]
        if (t + 1) % C == 0:
            yield theta
    yield theta  # the tail has collected all experts


# Algorithm 1.


def relevance(theta: Theta, devices: Devices) -> np.ndarray:
    """(27), over the tokens of all devices of a cluster (decision 8)."""
    p_MC = np.zeros((EXPERTS, len(devices)))
    for c, cluster in enumerate(devices):
        picks: Counter = Counter()
        for tokens, _ in cluster:
            outputs(theta, tokens, picks=picks)
        p_MC[:, c] = [picks[m] / (LAYERS * sum(tokens.numel() for tokens, _ in cluster)) for m in range(EXPERTS)]
    return p_MC


def truncated(p_MC: np.ndarray) -> np.ndarray:
    """(28), with the threshold of decision 5."""
    return np.where(p_MC >= 0.5 * TOP_K / len(p_MC), p_MC, 0)


def probability(p_MC: np.ndarray) -> np.ndarray:
    """(29); for an expert below the threshold everywhere of p itself (decision 5), and zeros if that is zero too."""
    mass_MC = np.where(truncated(p_MC).any(1, keepdims=True), truncated(p_MC), p_MC)
    return mass_MC / np.maximum(mass_MC.sum(1, keepdims=True), 1e-300)


def gammas(p_MC: np.ndarray, owned: Owned) -> list[float]:
    """α over β (Sec. III-B): a group's share of what a cluster's tokens pick, over the mean of that in all clusters."""
    found = []
    for c, group in enumerate(owned):
        share_C = p_MC[sorted(group)].sum(0) / TOP_K
        found.append(float(share_C[c] / share_C.mean()) if group else 0.0)  # decision 21
    return found


def algorithm_1(p_MC: np.ndarray) -> dict[tuple[int, ...], float]:
    """How likely each split is, as the owner of every expert: over all orders (decision 7) and picks (decision 4)."""
    M, C = p_MC.shape
    assign_MC = probability(p_MC)
    found: dict[tuple[int, ...], float] = defaultdict(float)

    def pick(order: tuple[int, ...], owner: dict[int, int], chance: float) -> None:
        if len(owner) == M:
            found[repaired(owner, p_MC)] += chance
            return
        m, loads = order[len(owner)], Counter(owner.values())
        p_C = assign_MC[m] * [loads[c] < TOP_K for c in range(C)]  # the feasible clusters
        p_C = p_C if p_C.any() else assign_MC[m]
        if not p_C.any():  # no mass anywhere: the least loaded
            p_C = np.eye(C)[min(range(C), key=lambda c: loads[c])]
        for c in np.flatnonzero(p_C):
            pick(order, owner | {m: int(c)}, chance * p_C[c] / p_C.sum())

    for order in itertools.permutations(range(M)):
        pick(order, {}, 1 / math.factorial(M))
    return dict(found)


def repaired(owner: dict[int, int], p_MC: np.ndarray) -> tuple[int, ...]:
    """Decision 6: a cluster without an expert gets, of those whose owner has others, the one that is least relevant to it."""
    owner = dict(owner)
    for c in range(p_MC.shape[1]):
        loads = Counter(owner.values())
        surplus = [m for m in owner if loads[owner[m]] > 1]
        if not loads[c] and surplus:
            owner[min(surplus, key=lambda m: (p_MC[m, owner[m]], m))] = c
    return tuple(owner[m] for m in range(len(p_MC)))
