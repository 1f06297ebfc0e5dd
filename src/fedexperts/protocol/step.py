"""The server's own step on a mean change: FedAvg, FedAvgM, FedAdam and FedYogi (Reddi et al., 2021, Algorithm 2).

    x ← x + η·m / (√v + τ),    m ← β₁m + (1 − β₁)Δ,    v ← β₂v + (1 − β₂)Δ²    from m = 0 and v = τ², without bias correction

Δ is what the part would move by without it. Where several arrivals make one mean (`aggregate.settled`), they are one step: each
takes it again from where the first began, with the mean so far, so that after the last it is that of the round. One that comes
when a newer step has been made moves the part by what that changes of its own step; m and v stay those of the newest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..moe.parts import Piece, Tensors

Moments = dict[str, dict[str, Any]]
"""For each part m and v, how many ``steps`` made them, and under ``groups`` for each version that others still train the step
so far, the ``nth``."""


@dataclass(frozen=True)
class Step:
    """How the server makes a step of a mean change Δ: added (``"sgd"``), by momentum, Adam or Yogi; η, β and τ as above."""

    optimizer: Literal["sgd", "momentum", "adam", "yogi"] = "sgd"
    lr: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    @property
    def plain(self) -> bool:
        """Whether a part moves by Δ itself."""
        return self.optimizer == "sgd" and self.lr == 1.0

    def of(self, change: Tensors, before: Mapping[str, Tensors]) -> tuple[Tensors, dict[str, Tensors]]:
        """What a part moves by, and the moments after, from those before."""
        if self.optimizer == "sgd":
            return {name: self.lr * delta for name, delta in change.items()}, {}
        rest = 1.0 if self.optimizer == "momentum" else 1 - self.beta1
        none: Mapping[str, Any] = dict.fromkeys(change, 0.0)
        m: Tensors = {name: self.beta1 * before.get("m", none)[name] + rest * delta for name, delta in change.items()}
        if self.optimizer == "momentum":
            return {name: self.lr * value for name, value in m.items()}, {"m": m}
        start: Mapping[str, Any] = dict.fromkeys(change, self.tau**2)
        v: Tensors = {name: self._square(before.get("v", start)[name], delta) for name, delta in change.items()}
        return {name: self.lr * m[name] / (v[name].sqrt() + self.tau) for name in m}, {"m": m, "v": v}

    def _square(self, v: Any, delta: Any) -> Any:
        square = delta.square()
        if self.optimizer == "adam":
            return self.beta2 * v + (1 - self.beta2) * square
        return v - (1 - self.beta2) * square * (v - square).sign()


ADDED = Step()


def stepped(how: Step, now: Piece, plain: Tensors, moments: Moments, group: int | None = None, open_: bool = False) -> Tensors:
    """What a part is after the server's step, where by Δ alone it would be ``plain``.

    Args:
        how: the step.
        now: the part as it is.
        plain: what it would be without a step of the server's own.
        moments: of all parts; those of this part are replaced.
        group: the version that the change is of; arrivals of one version may be one step.
        open_: whether more of this version may arrive.
    """
    mine = moments.get(now.part, {})
    groups = dict(mine.get("groups", {}))
    known: dict[str, Any] = {key: mine[key] for key in ("m", "v") if key in mine}
    steps = mine.get("steps", 0)
    so_far = groups.pop(group, {"change": {}, "step": {}, "before": known, "nth": steps + 1})
    nth = so_far.get("nth", steps)  # checkpoints from before steps were counted have none
    tensors = now.tensors.items()
    change = {n: plain[n].float() - value.float() + so_far["change"].get(n, 0.0) for n, value in tensors}
    step, after = how.of(change, so_far["before"])
    if open_:
        groups[group] = {"change": change, "step": step, "before": so_far["before"], "nth": nth}
    newest: dict[str, Any] = {**after} if nth >= steps else known
    moments[now.part] = {**newest, "groups": groups, "steps": max(nth, steps)}
    return {n: (value.float() + step[n] - so_far["step"].get(n, 0.0)).to(value.dtype) for n, value in tensors}
