"""Readers of plans, elements and scenarios, given files that were made wrong: each is read, or refused with `InputError`."""

from pathlib import Path

import pytest

import mutate
from marks import some_slow
from readers import CONTACT, SCENARIOS

NETWORKS = tuple(reader for reader in SCENARIOS if reader.name.startswith("network"))


@pytest.mark.parametrize("reader", some_slow([*CONTACT, *NETWORKS], ["network always on"]), ids=str)
def test_plans_elements_and_scenarios(reader: mutate.Reader, tmp_path: Path) -> None:
    mutate.hold(reader, tmp_path)
