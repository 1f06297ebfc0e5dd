"""Labelled images, from Parquet files with a column of encoded images or from ``.npz`` files with arrays ``x`` and ``y``.

An encoded image is bytes (PNG, JPEG, WebP, …), or a group ``{bytes, path}`` as in the data sets of Hugging Face. Pixels stay
uint8 until a model sees them: a quarter of the memory, and what a device holds is what was measured.

Shapes: N images, C channels (1 grey, 3 colour), H, W height and width.
"""

from __future__ import annotations

import io
import math
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, Jpeg2KImagePlugin, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin  # noqa: F401  # plugins make formats known
from torch import Tensor

from ..errors import InputError
from . import files
from .files import check, unpacked_most_B
from .parquet import read_parquet

Pixels = NDArray[np.uint8]
GREY = ("1", "L", "LA")
"""Pillow's modes of images without colour."""
MODES = (*GREY, "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
"""Modes of 8 bits a channel; others would be cut off at 255."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")
"""Formats that are data alone; Pillow hands some others, EPS say, to further programs."""
MOST_PIXELS = 50 * 10**6
"""Of one image."""


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


def read_images(spec: str, base: Path, image: str, label: str | None) -> list[ImageFile]:
    """The files that ``spec`` names; ``image`` and ``label`` are columns of Parquet files. Without a label none are read.

    Raises:
        InputError: a file cannot be read, is not what its name says, lacks a column or array, or holds no images.
    """
    paths = files.files(spec, base)
    found = [_npz(path, label is not None) if path.suffix.lower() == ".npz" else _parquet(path, image, label) for path in paths]
    for file in found:
        if not file.labels:
            raise InputError(f"data = {str(file.path)!r}: holds no images; give a file that does")
    return found


def size(read: Sequence[ImageFile]) -> int:
    """How many images there are."""
    return sum(len(file.labels) for file in read)


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
            _check_all(len(chosen), image_CHW.shape, where)
            out, first = np.empty((len(chosen), *image_CHW.shape), dtype=np.uint8), where
        if image_CHW.shape != out.shape[1:]:
            raise InputError(
                f"{where}: an image of {shape_text(image_CHW.shape)}, but {first} has {shape_text(out.shape[1:])}; "
                "all images must have one size and be either grey or in colour"
            )
        out[at] = image_CHW
    return torch.from_numpy(out)


def _check_all(count: int, shape_CHW: Sequence[int], where: str) -> None:
    size_B = count * math.prod(shape_CHW)
    if size_B > files.MOST_FILE_B:
        raise InputError(
            f"{where}: {count} images of {shape_text(shape_CHW)} take {size_B:,} bytes; at most {files.MOST_FILE_B:,}: "
            "make them smaller, or take fewer"
        )


def shape_text(shape_CHW: Sequence[int]) -> str:
    """A shape as errors show it."""
    return " × ".join(map(str, shape_CHW)) + " (channels × height × width)"


def _image(value: Any, where: str) -> Pixels:
    """One image [C, H, W]."""
    if isinstance(value, np.ndarray):
        return value[None] if value.ndim == 2 else value.transpose(2, 0, 1)
    if value is None:
        raise InputError(f"{where}: the image column has no value; fill it in, or leave the row out")
    encoded = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(encoded, bytes):
        held = "no bytes" if isinstance(value, dict) else f"a {type(value).__name__}"
        raise InputError(f"{where}: the image column holds {held}; it must hold encoded images (PNG, JPEG, WebP, …)")
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            _check_pixels(image, where)
            array: Pixels = np.asarray(image.convert("L" if image.mode in GREY else "RGB"))
    except InputError:
        raise
    except Exception as error:  # decoders raise whatever their parsing runs into
        raise InputError(
            f"{where}: is not an image that can be read ({_reason(error)}); correct the row or leave it out"
        ) from error
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _check_pixels(image: Image.Image, where: str) -> None:
    """What a header says, before anything is decoded."""
    if image.width * image.height > MOST_PIXELS:
        raise InputError(
            f"{where}: an image of {image.width:,} × {image.height:,} pixels; at most {MOST_PIXELS:,}: make it smaller"
        )
    if image.mode not in MODES:
        raise InputError(f"{where}: an image of mode {image.mode}; channels must have 8 bits (a palette may be there)")


def _parquet(path: Path, image: str, label: str | None) -> ImageFile:
    if path.suffix.lower() != ".parquet":
        raise InputError(f"data = {str(path)!r}: of unknown kind; images must come from .parquet or .npz files")
    rows = read_parquet(path, [image] if label is None else [image, label])
    labels = [None if label is None else row[label] for row in rows]
    if label is not None and None in labels:
        raise InputError(
            f"{path}, row {labels.index(None) + 1}: column {label!r} has no value; fill it in, or leave the row out"
        )
    return ImageFile(path, [row[image] for row in rows], labels)


def _npz(path: Path, labelled: bool) -> ImageFile:
    where, most_B = f"data = {str(path)!r}", unpacked_most_B(check(path))
    try:
        with zipfile.ZipFile(path) as archive:
            x = _member(archive, "x", most_B, where)
            y = _member(archive, "y", most_B, where) if labelled else None
    except InputError:
        raise
    except Exception as error:  # zipfile and numpy raise whatever their parsing runs into
        raise InputError(f"{where}: cannot be read as .npz ({_reason(error)}); correct the path, or write it again") from error
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[3] != 3):
        raise InputError(f"{where}: x is {x.dtype} {list(x.shape)}; it must be uint8 [N, H, W] or [N, H, W, 3]")
    if y is None:
        return ImageFile(path, list(x), [None] * len(x))
    if y.ndim != 1 or len(y) != len(x):
        raise InputError(f"{where}: y has shape {list(y.shape)} beside {len(x)} images; it must hold one label for each")
    return ImageFile(path, list(x), y.tolist())


def _member(archive: zipfile.ZipFile, name: str, most_B: int, where: str) -> NDArray[Any]:
    """numpy takes the memory that an array's header asks for before it reads on: it must ask for what is there."""
    if f"{name}.npy" not in archive.namelist():
        raise InputError(f"{where}: there is no array {name!r}; images must be x and labels y")
    unpacked_B = archive.getinfo(f"{name}.npy").file_size
    if unpacked_B > most_B:
        raise InputError(f"{where}: {name} unpacks to {unpacked_B:,} bytes; at most {most_B:,} for a file of this size")
    with archive.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        left_B = unpacked_B - file.tell()
    if dtype.hasobject:
        raise InputError(f"{where}: {name} holds Python objects, which only a pickle can; it must hold numbers or text")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != left_B:
        raise InputError(f"{where}: {name} says that it is {dtype} {list(shape)}, and holds {left_B:,} bytes; write it again")
    with archive.open(f"{name}.npy") as file:
        array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    return array


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # whose text names an object in memory
        return "of no format that is known"
    text = str(getattr(error, "strerror", None) or error)
    return text.splitlines()[0] if text else type(error).__name__
