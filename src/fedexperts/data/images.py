"""Labelled images, from Parquet files with a column of encoded images or from ``.npz`` files with arrays ``x`` and ``y``.

An encoded image is bytes (PNG, JPEG, WebP, …), or a group ``{bytes, path}`` as in the data sets of Hugging Face. Pixels stay
uint8 until a model sees them: a quarter of the memory, and what a device holds is what was measured.

Shapes: N images, C channels (1 grey, 3 colour), H, W height and width.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..errors import InputError
from .files import files

Pixels = NDArray[np.uint8]
GREY = ("1", "L", "LA")
"""Pillow's modes of images without colour."""


@dataclass(frozen=True, eq=False)
class ImageFile:
    """A file as it was read; nothing is decoded yet.

    Attributes:
        path: of the file.
        images: one entry each, encoded, or pixels [H, W] or [H, W, 3].
        labels: one each, as the file has them.
    """

    path: Path
    images: Sequence[Any]
    labels: list[Any]


def read_images(spec: str, base: Path, image: str, label: str) -> list[ImageFile]:
    """The files that ``spec`` names; ``image`` and ``label`` are columns of Parquet files.

    Raises:
        InputError: a file cannot be read, is not what its name says, lacks a column or array, or holds no images.
    """
    found = [_npz(path) if path.suffix == ".npz" else _parquet(path, image, label) for path in files(spec, base)]
    for file in found:
        if not file.labels:
            raise InputError(f"data = {str(file.path)!r}: holds no images; every cluster needs data")
    return found


def size(read: Sequence[ImageFile]) -> int:
    """How many images there are."""
    return sum(len(file.labels) for file in read)


def some(n: int, first: int, count: int, seed: int) -> list[int]:
    """Numbers of ``count`` of n images: those from ``first`` on in an order that depends on the seed alone."""
    order = np.random.default_rng([seed, 9]).permutation(n)
    return sorted(order[first : first + count].tolist())


def pixels(read: Sequence[ImageFile], chosen: Sequence[int]) -> Tensor:
    """The chosen images, counted over all files, as uint8 [N, C, H, W].

    Raises:
        InputError: with file and row: not an image, or one that differs in size or colour from the first.
    """
    ends = np.cumsum([len(file.labels) for file in read])
    out, first = np.empty(0, dtype=np.uint8), ""
    for at, number in enumerate(chosen):
        which = int(np.searchsorted(ends, number, side="right"))
        file, row = read[which], number - int(ends[which]) + len(read[which].labels)
        where = f"{file.path}, row {row + 1}"
        image_CHW = _image(file.images[row], where)
        if not first:
            out, first = np.empty((len(chosen), *image_CHW.shape), dtype=np.uint8), where
        if image_CHW.shape != out.shape[1:]:
            raise InputError(
                f"{where}: an image of {shape_text(image_CHW.shape)}, but {first} has {shape_text(out.shape[1:])}; "
                "all images must have one size and be either grey or in colour"
            )
        out[at] = image_CHW
    return torch.from_numpy(out)


def shape_text(shape_CHW: Sequence[int]) -> str:
    """A shape as errors show it."""
    return " × ".join(map(str, shape_CHW)) + " (channels × height × width)"


def _image(value: Any, where: str) -> Pixels:
    """One image [C, H, W]."""
    if isinstance(value, np.ndarray):
        return value[None] if value.ndim == 2 else value.transpose(2, 0, 1)
    encoded = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(encoded, bytes):
        held = "no bytes" if isinstance(value, dict) else f"a {type(value).__name__}"
        raise InputError(f"{where}: the image column holds {held}; it must hold encoded images (PNG, JPEG, WebP, …)")
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            array: Pixels = np.asarray(image.convert("L" if image.mode in GREY else "RGB"))
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{where}: is not an image that can be read ({reason}); correct the row or leave it out") from error
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _parquet(path: Path, image: str, label: str) -> ImageFile:
    where = f"data = {str(path)!r}"
    if path.suffix != ".parquet":
        raise InputError(f"{where}: of unknown kind; images must come from .parquet or .npz files")
    import pyarrow  # 0.2 s that other sources need not wait for
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            names = file.schema_arrow.names
            if missing := [name for name in (image, label) if name not in names]:
                raise InputError(f"{where}: there is no column {missing[0]!r}; the columns are {', '.join(map(repr, names))}")
            table = file.read(columns=[image, label], use_threads=False)
    except OSError as error:
        raise InputError(f"{where}: cannot be read ({error.strerror or error}); correct the path") from error
    except pyarrow.ArrowException as error:
        raise InputError(f"{where}: is damaged or not Parquet ({error}); fetch or write it again") from error
    labels = table[label].to_pylist()
    if None in labels:
        raise InputError(f"{path}, row {labels.index(None) + 1}: column {label!r} has no value; fill it in, or leave it out")
    return ImageFile(path, table[image].to_pylist(), labels)


def _npz(path: Path) -> ImageFile:
    where = f"data = {str(path)!r}"
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            if missing := [name for name in ("x", "y") if name not in file.files]:
                raise InputError(f"{where}: there is no array {missing[0]!r}; images must be x and labels y")
            x, y = file["x"], file["y"]
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{where}: cannot be read as .npz ({reason}); correct the path, or write it again") from error
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[3] != 3):
        raise InputError(f"{where}: x is {x.dtype} {list(x.shape)}; it must be uint8 [N, H, W] or [N, H, W, 3]")
    if y.ndim != 1 or len(y) != len(x):
        raise InputError(f"{where}: y has shape {list(y.shape)} beside {len(x)} images; it must hold one label for each")
    return ImageFile(path, x, y.tolist())
