"""Cases of a test of which some are for `make slow`."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def some_slow(cases: Iterable[Any], slow: Collection[Any]) -> list[Any]:
    """The cases of a parameter; those that are ``slow``, or are called so, are marked."""
    return [pytest.param(case, marks=pytest.mark.slow) if case in slow or str(case) in slow else case for case in cases]
