"""Every reader of data on valid files made wrong: it reads them, or says in an `InputError` what is wrong; nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import mutate
from readers import DATA, ROWS, table

pytestmark = pytest.mark.filterwarnings("ignore::fedexperts.errors.InputWarning")
READ = """
from pathlib import Path
from fedexperts.data.rows import read_rows
from fedexperts.errors import InputError
try:
    read_rows("a.parquet", Path())
except InputError as error:
    print(error)
"""


@pytest.mark.parametrize("reader", DATA, ids=str)
def test_data(reader: mutate.Reader, tmp_path: Path) -> None:
    mutate.hold(reader, tmp_path)


def test_metadata_that_arrow_throws_at_do_not_end_the_process(tmp_path: Path) -> None:
    """A column that is neither optional nor required has a histogram of too many levels."""
    right = table(ROWS)
    wrong = right.replace(b"%\x02\x18\x05score", b"%\x55\x18\x05score")
    assert wrong != right
    (tmp_path / "a.parquet").write_bytes(wrong)
    done = subprocess.run([sys.executable, "-c", READ], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "a.parquet': is damaged or not Parquet (Definition level histogram size mismatch" in done.stdout
