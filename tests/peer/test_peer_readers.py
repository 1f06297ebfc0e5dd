"""Files and messages of a network of experts, made wrong: read, or refused with one message. Never a traceback."""

from pathlib import Path

import pytest

import mutate
from readers import PEERS


@pytest.mark.parametrize("reader", PEERS, ids=str)
def test_files_of_peers_are_read_or_refused(reader: mutate.Reader, tmp_path: Path) -> None:
    mutate.hold(reader, tmp_path, examples=150)
