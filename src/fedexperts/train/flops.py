"""FLOPs of whatever runs within a block, by torch's own formulas; and of which steps they are the same."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..data.objective import Objective
from ..moe.parts import is_expert
from ..moe.view import Batch, View
from .task import Task


class Flops(TorchDispatchMode):
    """Counts as `torch.utils.flop_counter.FlopCounterMode` does, but in total alone, and not in `torch.inference_mode`.

    To tell modules apart takes that twice as long as a small step, and each kind of task is measured.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch ships it untyped
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """See `TorchDispatchMode`."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.total += int(formula(*args, **kwargs, out_val=result))
        return result


def alike(view: View, task: Task, data: Batch, batch_size: int, objective: Objective) -> Hashable | None:
    """What decides the FLOPs of a step where the samples do not: equal on two devices, one of them need not measure.

    None where they count: tokens are masked, or a gate picks between experts that are trained and others.
    """
    trained = frozenset(filter(is_expert, task.parts))
    may = frozenset(filter(is_expert, view.parts if task.route is None else task.route))
    free = task.route is None or all(block.router.mask == "-inf" for block in view.blocks)  # else masked ones can win
    by_samples = any(key.endswith("_mask") for key in data)
    others = view.stream or view.lora or view.granularity != "global"
    if by_samples or others or not free or trained not in (frozenset(), may):
        return None
    shapes = tuple((name, values.shape[1:]) for name, values in sorted(data.items()))
    experts = tuple(sorted(tuple(tensor.shape for tensor in view.parts[part].values()) for part in may))
    found = (task.parts - trained, bool(trained), experts, task.goal, batch_size, shapes, objective)
    try:
        hash(found)
    except TypeError:  # an objective of one's own
        return None
    return found
