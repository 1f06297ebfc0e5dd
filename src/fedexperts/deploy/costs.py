"""What the tasks of a link's devices cost, as their node has told it: accounts ask for it also when nobody can be asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..moe.parts import BACKBONE, CORRELATION, in_order, is_expert
from ..train.member import Extractor, due
from ..train.task import Task

MATRIX, LATENTS = "matrix", "latents"


class Costs:
    """FLOPs."""

    def __init__(self) -> None:
        self.steps: dict[str, list[int]] = {}  # of a step, by kind of task and device
        self.beside: dict[str, int] = {}  # of a correlation matrix, and of latents, which are made once for an extractor
        self.paid: Extractor | None = None

    def learn(self, task: Task, steps: Sequence[int], beside: int) -> None:
        """A node has told FLOPs of a step, by device, and those that came, or would come, beside the steps."""
        self.steps.setdefault(kind(task), list(steps))
        if beside:
            self.beside[MATRIX if CORRELATION in task.parts else LATENTS] = beside

    def beside_of(self, task: Task, extractor: Extractor) -> int:
        """Beside the steps of a task that is trained now, as `Member.spent` has it."""
        if CORRELATION in task.parts:
            return self.beside.get(MATRIX, 0)
        return self.beside.get(LATENTS, 0) if due(task, extractor, self.paid) else 0

    def trained(self, task: Task, extractor: Extractor) -> None:
        """See `Member.pay`."""
        if BACKBONE not in task.parts:
            self.paid = extractor

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return dict(vars(self))

    def restore(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        vars(self).update(state)


def kind(task: Task) -> str:
    """Tasks whose steps cost the same, see `LocalHost.flops`."""
    shared = in_order(part for part in task.parts if not is_expert(part))
    return repr((len(task.parts) - len(shared), shared, task.route is not None, task.goal))
