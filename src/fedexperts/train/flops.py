"""FLOPs of whatever runs within a block, by torch's own formulas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


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
