"""Types, bounds and values of a scenario's keys in words."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from datetime import datetime
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AwareDatetime, BaseModel
from pydantic.fields import FieldInfo

from ..own import OWN
from ..tables.fields import NAME

WORDS: dict[Any, str] = {
    str: "string",
    int: "whole number",
    float: "number",
    bool: "true or false",
    AwareDatetime: "time with a zone, as 2026-01-01T00:00:00Z",
    Any: "value",
}
LEFT_OUT, NEEDED = "left out", "needed"


def kind(annotation: Any, constraints: Iterable[Any] = ()) -> str:
    """A type with its bounds, as pydantic has them.

    Raises:
        ValueError: a type without words.
    """
    bounds = _bounds(constraints)
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kind(inner[0], inner[1:])
    if origin in (Union, UnionType):
        return " or ".join(kind(one) for one in inner if one is not type(None))
    if origin is Literal:
        return listed(json.dumps(one) for one in inner)
    if origin in (tuple, frozenset):
        least = f", {bounds['min_length']} or more" if "min_length" in bounds else ""
        return "tables" if _is_table(inner[0]) else f"list of {_many(kind(inner[0]))}{least}"
    if origin is dict:
        return "table" if inner[1] is Any or _is_table(inner[1]) else f"table of {_many(kind(inner[1]))}"
    if _is_table(annotation):
        return "table"
    if annotation not in WORDS:
        raise ValueError(f"{annotation}: say in reference/types.py how it is to be shown")
    if bounds.get("pattern") == NAME:
        return "name of letters, digits, _, . and -"
    if bounds.get("pattern") == OWN:
        return "module:name of your own"
    return f"{WORDS[annotation]}{_range(bounds)}"


def _many(type_: str) -> str:
    return re.sub(r"(^| or )(whole number|number|string)\b", r"\1\2s", type_)


def _is_table(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _bounds(constraints: Iterable[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for one in constraints:
        if isinstance(one, FieldInfo):
            found |= _bounds(one.metadata)
        for name in ("ge", "gt", "le", "lt", "min_length", "pattern"):
            if (value := getattr(one, name, None)) is not None:
                found[name] = value
    return found


def _range(bounds: dict[str, Any]) -> str:
    lower = f" from {number(bounds['ge'])}" if "ge" in bounds else f" above {number(bounds['gt'])}" if "gt" in bounds else ""
    upper = f" to {number(bounds['le'])}" if "le" in bounds else f" to below {number(bounds['lt'])}" if "lt" in bounds else ""
    return lower + upper


def listed(words: Iterable[str]) -> str:
    """Words with commas and an "or"."""
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def number(value: float) -> str:
    """A number as it is written by hand: 0.001, 1e9, 2^63."""
    if isinstance(value, int) and value >= 2**16 and value & (value - 1) == 0:
        return f"2^{value.bit_length() - 1}"
    if math.isinf(value):
        return "inf"
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.6g}"
    mantissa, power = f"{value:.5e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(power)}"


def value(given: Any) -> str:
    """A default as TOML has it."""
    if given is None or given == {} or isinstance(given, BaseModel):
        return LEFT_OUT
    if isinstance(given, (tuple, frozenset)):
        return f"[{', '.join(value(one) for one in sorted(given))}]"
    if isinstance(given, float) or (isinstance(given, int) and not isinstance(given, bool)):
        return number(given)
    return given.isoformat() if isinstance(given, datetime) else json.dumps(given, ensure_ascii=False)


def default(field: FieldInfo) -> str:
    """What a key is without being given."""
    return NEEDED if field.is_required() else value(field.get_default(call_default_factory=True))
