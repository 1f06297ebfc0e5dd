"""The guide's plan of five towns says what the command says."""

import re
import shlex
import shutil
from pathlib import Path

from processes import program

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "guide" / "plan-a-satellite.md"


def test_what_the_page_quotes_is_what_the_commands_print(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    page = PAGE.read_text()
    found = {name: re.findall(rf"^```{name}\n(.*?)^```", page, re.MULTILINE | re.DOTALL) for name in ("sh", "text")}
    commands = [line for block in found["sh"] for line in block.splitlines()][:2]
    assert len(found["text"]) == 2
    for command, quoted in zip(commands, found["text"], strict=True):
        done = program(*shlex.split(command, comments=True)[1:], folder=tmp_path, columns=80)
        assert done.returncode == 0, done.stderr
        assert set(quoted.splitlines()) <= set(done.stdout.splitlines())
    assert "All 137 passes with their times (UTC)" in (tmp_path / "runs" / "five-towns" / "plan.html").read_text()
