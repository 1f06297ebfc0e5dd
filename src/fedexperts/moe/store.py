"""Tensors in safetensors files, by their names on disk: read one by one or row by row, none of them infinite or NaN."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import InputError
from .document import first_line

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
Fill = Callable[[Tensor, str, int | None], None]


class Store:
    """Tensors in safetensors files, by their names on disk; files are open only while they are read.

    Attributes:
        read_B: bytes of tensors read so far.
    """

    def __init__(self, files: dict[Path, set[str] | None]):
        """``files`` names what each file must hold; None takes all of it.

        Raises:
            InputError: a file is missing, truncated or lacks a tensor that it should hold.
        """
        self.read_B = 0
        self.where: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        for path, names in files.items():
            self._survey(path, names)

    def _survey(self, path: Path, names: set[str] | None) -> None:
        with _open(path) as file:
            held = set(file.keys())
            if lost := sorted((names or set()) - held):
                raise InputError(
                    f"{path}: tensor {lost[0]!r} is not in it (and {len(lost) - 1} others), though the index says so; "
                    "the shard was renamed or mixed up: copy the checkpoint again"
                )
            for name in held if names is None else names:
                part = file.get_slice(name)
                self.where[name], self.shapes[name], self.dtypes[name] = path, tuple(part.get_shape()), part.get_dtype()

    def __contains__(self, name: str) -> bool:
        return name in self.where

    def dtype(self, name: str) -> torch.dtype:
        """The floating-point type that a tensor is stored in.

        Raises:
            InputError: it is of another type, as in quantised checkpoints.
        """
        if self.dtypes[name] not in DTYPES:
            raise InputError(
                f"{self.where[name]}: tensor {name!r} is stored as {self.dtypes[name]}; only {', '.join(DTYPES)} can be "
                "trained: use the checkpoint before it was quantised"
            )
        return DTYPES[self.dtypes[name]]

    def tensor(self, name: str) -> Tensor:
        """One tensor, in fresh memory.

        Raises:
            InputError: it is not of a floating-point type, a number of it is not finite, or its file is unreadable.
        """
        out = torch.empty(self.shapes[name], dtype=self.dtype(name))
        with self.reading() as fill:
            fill(out, name, None)
        return out

    def check_finite(self) -> None:
        """One pass over all tensors.

        Raises:
            InputError: a number is infinite or none, with the tensor and its file.
        """
        for name in self.where:
            if self.dtypes[name] in DTYPES:
                self.tensor(name)

    @contextmanager
    def reading(self) -> Iterator[Fill]:
        """Within the block ``fill(out, name, row)`` copies a tensor, or one row of it, into ``out``, converting its type."""
        with ExitStack() as stack:
            files: dict[Path, Any] = {}

            def fill(out: Tensor, name: str, row: int | None) -> None:
                path = self.where[name]
                if path not in files:
                    files[path] = stack.enter_context(_open(path))
                if out.is_floating_point():
                    self.dtype(name)
                part = files[path].get_tensor(name) if row is None else files[path].get_slice(name)[row]
                self.read_B += part.numel() * part.element_size()
                with torch.no_grad():
                    out.copy_(part)  # a copy always: what safetensors returns may be a window on the file
                check_finite(out, name, path)

            yield fill


def check_finite(tensor: Tensor, name: str, file: Path) -> None:
    """One pass over the numbers of a tensor, without a copy.

    Raises:
        InputError: one of them is infinite or not a number.
    """
    if not tensor.is_floating_point() or not tensor.numel() or all(bound.isfinite() for bound in torch.aminmax(tensor)):
        return
    count = int((~tensor.isfinite()).sum())
    raise InputError(
        f"{file}: tensor {name!r} has {count} number{'s' * (count > 1)} that {'are' if count > 1 else 'is'} not finite in "
        f"{tensor.dtype}; every loss would be NaN: take a checkpoint from before its training went wrong, or copy it again"
    )


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    if path.exists() and not path.is_file():  # a pipe or a device may never end
        raise InputError(f"{path}: is not a regular file; copy the checkpoint again")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; copy the checkpoint again") from error
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path}: cannot be loaded ({first_line(error)}); it is truncated or no safetensors file: copy it again"
        ) from error
