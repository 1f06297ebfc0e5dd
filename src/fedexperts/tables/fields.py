"""Kinds of values, with their bounds, and what every table is."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..own import OWN

NAME = r"^[A-Za-z0-9_.\-]+$"
Name = Annotated[str, Field(min_length=1, pattern=NAME)]
OwnName = Annotated[str, Field(pattern=OWN)]
"""Of a class or function of the user's own."""
Positive = Annotated[float, Field(ge=1e-30, le=1e30)]
NonNegative = Annotated[float, Field(ge=0, le=1e30)]
"""Products and quotients of a few such numbers are finite."""
Load = Literal["all", "own", "stream"]
Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
MOST = 10**9
"""Of anything that is counted: above what fits any machine, and sums of it stay whole numbers of 64 bits."""
Count = Annotated[int, Field(ge=1, le=MOST)]
Whole = Annotated[int, Field(ge=0, le=MOST)]
LONGEST_S = 1e10
"""Of a plan and of all within it: three hundred years."""


class Table(BaseModel):
    """A TOML table: no unknown keys, no silent conversion of strings to numbers. A string under a field is its description."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)
