"""Tiny images that can be learnt: class c is bright in one quarter. No network, no real data."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image
from pyarrow.parquet import write_table

SIDE = 8
CONFIG: dict[str, Any] = {
    "model_type": "conv_moe",
    "image_size": SIDE,
    "channels": 4,
    "expert_channels": 4,
    "expert_dim": 8,
    "num_experts": 4,
}


def images(n: int, seed: int = 0, classes: int = 4) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """x [n, 8, 8, 3] and y: pixel (0, 0) holds the image's number in its last two channels."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    x = rng.integers(0, 80, (n, SIDE, SIDE, 3), dtype=np.uint8)
    for i, c in enumerate(y):
        x[i, 4 * (c // 2 % 2) :, 4 * (c % 2) :][:4, :4] += 150
    x[:, 0, 0, 1], x[:, 0, 0, 2] = np.arange(n) // 256, np.arange(n) % 256
    return x, y


def numbers(pixels: Any) -> list[int]:
    """The numbers that images carry, of pixel_values [N, C, H, W]."""
    found: list[int] = (pixels[:, 1, 0, 0].long() * 256 + pixels[:, 2, 0, 0].long()).tolist()
    return found


def npz(path: Path, n: int, seed: int = 0, classes: int = 4) -> str:
    x, y = images(n, seed, classes)
    np.savez(path, x=x, y=y)
    return path.name


def encoded(image: NDArray[np.uint8], form: str = "PNG") -> bytes:
    """A file's bytes; lossless."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, form, **({"lossless": True, "exact": True} if form == "WEBP" else {}))
    return buffer.getvalue()


def parquet(path: Path, values: list[Any], labels: list[Any], **columns: list[Any]) -> str:
    write_table(pa.table({"image": values, "label": labels, **columns}), path)
    return path.name
