"""What travels between processes: one safetensors file a message, with a JSON head in its metadata. Never a pickle.

What arrives is measured before anything is built from it: its length, the length of its header, and of each tensor
the type, the shape and the bytes that it claims, against what the receiver asked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError

MOST_B = 16 * 2**20
"""Of a message where nothing else is said; a batch of 500 images of 64 × 64 in colour has 6 MB."""
MOST_HEADER_B = 2**16
HEAD = "fedexperts"
KEPT = 256
"""Headers of messages that are kept, written and read."""
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I8": torch.int8,
    "U8": torch.uint8,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
_KINDS = {torch.empty(0, dtype=dtype).numpy().dtype: name for name, dtype in DTYPES.items() if dtype is not torch.bfloat16}
_JSON = json.JSONEncoder(separators=(",", ":"), allow_nan=False)

Kind = tuple[torch.dtype, tuple[int | None, ...]]
Wanted = Mapping[str, Kind]
"""Tensors that a message must hold, and no others: type and shape, of which None is the number of samples, one for all."""


class WireError(InputError):
    """A message is not what it must be; the text says why, in words for the one who sent it."""


@dataclass(frozen=True, eq=False)
class Message:
    """A head of plain values, which messages with the same one share, and tensors; ``size_B`` is its length on the wire."""

    head: Mapping[str, Any]
    tensors: dict[str, Tensor]
    size_B: int


def said(head: Mapping[str, Any]) -> str:
    """A head as text, for who sends the same one again and again."""
    return _JSON.encode(dict(head))


def encode(head: Mapping[str, Any] | str, tensors: Mapping[str, Tensor] = {}) -> bytes:
    """The bytes of a message, as safetensors would write them: what has larger numbers first, and then by name.

    Args:
        head: plain values, or what `said` made of them.
        tensors: of types in ``DTYPES``.
    """
    arrays = [(name, *_numbers(tensor)) for name, tensor in tensors.items()]
    arrays.sort(key=lambda row: (-DTYPES[row[1]].itemsize, row[0]))
    rows = tuple([(name, kind, shape) for name, kind, shape, _ in arrays])
    header = _written(head if isinstance(head, str) else said(head), rows)
    return b"".join([header, *[array.data if array.flags.c_contiguous else array.tobytes() for *_, array in arrays]])


def _numbers(tensor: Tensor) -> tuple[str, tuple[int, ...], NDArray[Any]]:
    """Type, shape and memory of a tensor; numpy has no name for bfloat16."""
    if tensor.dtype is torch.bfloat16:
        return NAMES[tensor.dtype], tuple(tensor.shape), _bytes(tensor)
    array = tensor.numpy()
    return _KINDS[array.dtype], array.shape, array


def _bytes(tensor: Tensor) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = tensor.contiguous().flatten().view(torch.uint8).numpy()
    return found


@lru_cache(KEPT)
def _written(text: str, rows: tuple[tuple[str, str, tuple[int, ...]], ...]) -> bytes:
    """Length and header of a message; messages between two peers differ in their numbers alone, and share it."""
    header: dict[str, Any] = {"__metadata__": {HEAD: text}}
    end = 0
    for name, kind, shape in rows:
        begin, end = end, end + prod(shape) * DTYPES[kind].itemsize
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    data = json.dumps(header, separators=(",", ":")).encode()
    data += b" " * (-len(data) % 8)  # so that numbers begin at a multiple of 8
    return len(data).to_bytes(8, "little") + data


def payload_B(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the numbers alone, which is what simulated runs count."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def head_of(data: bytes, most_header_B: int = MOST_HEADER_B) -> dict[str, Any]:
    """The head alone, to know what the rest must be.

    Raises:
        WireError: there is none.
    """
    return _object(_head_text(_object(_header(data, most_header_B), "header")), "head")


def decode(
    data: bytes, wanted: Wanted, most_samples: int = 0, most_B: int = MOST_B, most_header_B: int = MOST_HEADER_B
) -> Message:
    """Read a message that must hold these tensors, of at most so many samples.

    Tensors are copied into memory of their own, which is aligned: elsewhere products of matrices differ in their last bit.

    Raises:
        WireError: it is too long, no safetensors file, or its tensors are not those wanted.
    """
    if len(data) > most_B:
        raise WireError(f"a message of {len(data):,} bytes; at most {most_B:,}")
    header = _header(data, most_header_B)
    head, rows, size_B = _read(header, tuple(wanted.items()), most_samples)
    begins = 8 + len(header)
    if begins + size_B != len(data):
        raise WireError(f"{len(data) - begins:,} bytes of numbers; by the header there are {size_B:,}")
    tensors = {}
    for name, dtype, shape, begin in rows:
        tensors[name] = out = torch.empty(shape, dtype=dtype)
        array = _bytes(out) if dtype is torch.bfloat16 else out.numpy()
        array[...] = np.frombuffer(data, array.dtype, array.size, begins + begin).reshape(array.shape)
    return Message(head, tensors, len(data))


def _header(data: bytes, most_B: int) -> bytes:
    if len(data) < 8:
        raise WireError(f"a message of {len(data)} bytes is no safetensors file")
    length = int.from_bytes(data[:8], "little")
    if length > min(most_B, len(data) - 8):
        raise WireError(f"a header of {length:,} bytes in a message of {len(data):,}; at most {most_B:,}")
    return data[8 : 8 + length]


def _head_text(header: dict[str, Any]) -> str:
    metadata = header.pop("__metadata__", None)
    text = metadata.get(HEAD) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise WireError(f"no head {HEAD!r} in the metadata")
    return text


Rows = tuple[tuple[str, torch.dtype, tuple[int, ...], int], ...]
"""Of each tensor the name, type, shape, and where its numbers begin."""


@lru_cache(KEPT)
def _read(
    data: bytes, wanted: tuple[tuple[str, tuple[torch.dtype, tuple[int | None, ...]]], ...], most: int
) -> tuple[Mapping[str, Any], Rows, int]:
    """What a header says: our head, the tensors, which are those wanted, and the bytes of all numbers."""
    header = _object(data, "header")
    text = _head_text(header)
    samples, end, rows, kinds = _samples(header, dict(wanted), most), 0, [], dict(wanted)
    for name, row in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape = kinds[name][0], tuple(samples if n is None else n for n in kinds[name][1])
        begin, end = end, end + prod(shape) * dtype.itemsize
        if row["data_offsets"] != [begin, end]:
            raise WireError(f"tensor {name!r} lies at {row['data_offsets']}, and should at {[begin, end]}")
        rows.append((name, dtype, shape, begin))
    return MappingProxyType(_object(text, "head")), tuple(rows), end


def _object(data: bytes | str, what: str) -> dict[str, Any]:
    """An object in JSON, of numbers that are finite; its length has been bounded before."""
    try:
        found = json.loads(data, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, no UTF-8, a number of thousands of digits
        raise WireError(f"a {what} that is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise WireError(f"a {what} that is no object")
    return found


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _samples(header: Mapping[str, Any], wanted: Wanted, most: int) -> int:
    """How many samples the tensors of a header are of; they are those wanted."""
    if set(header) != set(wanted):
        raise WireError(f"tensors {sorted(header)}; must be {sorted(wanted)}")
    samples: int | None = None
    for name, (dtype, shape) in wanted.items():
        row = header[name]
        if not isinstance(row, dict) or not all(isinstance(row.get(key), list) for key in ("shape", "data_offsets")):
            raise WireError(f"tensor {name!r} has no shape or no place")
        found = row["shape"]
        if row.get("dtype") != NAMES[dtype]:
            raise WireError(f"tensor {name!r} of type {row.get('dtype')!r}; must be {NAMES[dtype]}")
        if not all(type(n) is int and n >= 0 for n in (*found, *row["data_offsets"])):
            raise WireError(f"tensor {name!r} of shape {found} at {row['data_offsets']}")
        if samples is None and None in shape and len(found) == len(shape):
            samples = found[shape.index(None)]
        if found != [samples if n is None else n for n in shape]:
            raise WireError(f"tensor {name!r} of shape {found}; must be {list(shape)}, None being the samples")
    samples = samples or 0
    if samples > most:
        raise WireError(f"{samples:,} samples; at most {most:,} in a message")
    return samples


def text(head: Mapping[str, Any], key: str, most: int = 200) -> str:
    """A text of a head.

    Raises:
        WireError: it is missing or none.
    """
    value = head.get(key)
    if not isinstance(value, str) or len(value) > most:
        raise WireError(f"{key} = {str(value)[:40]!r}: must be a text of at most {most} characters")
    return value


def number(head: Mapping[str, Any], key: str, least: float, most: float, default: float | None = None) -> float:
    """A number of a head, within bounds.

    Raises:
        WireError: it is missing, none, or out of bounds.
    """
    value = head.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise WireError(f"{key} = {str(value)[:40]}: must be a number in {least:g}…{most:g}")
    return value
