"""A node that stands on a machine of its own: its SuperNode may end at any moment, and begins again."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_deploy_init import SERVER, scenario_in

from fedexperts.deploy import standing
from fedexperts.deploy.init import init

pytest.importorskip("flwr", reason="needs the extra: pip install 'fedexperts[flower]'")


class BegunAgainError(Exception):
    """Enough was seen."""


def test_a_supernode_that_ends_just_after_it_was_looked_at_begins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init(tmp_path / "there", scenario_in(tmp_path), SERVER, 60.0)
    worker, go = tmp_path / "worker", tmp_path / "go"
    worker.write_text("#!/bin/sh\nexec sleep 600\n")
    worker.chmod(0o755)
    code = (
        "import pathlib, sys, time\n"
        f"while not pathlib.Path({str(go)!r}).exists(): time.sleep(0.01)\n"
        "print('[code: 2004] Failed to activate SuperNode.')\n"
        "sys.exit(1)"
    )
    begin, said, begun, told = standing._begin, standing._said, [], []

    def begins(*given: Any) -> int:
        begun.append(given)
        if len(begun) > 1:
            raise BegunAgainError
        return begin(*given)

    def ends_now(start: Any, at_B: int) -> str:
        """It was seen to live, and does no longer when all processes are looked at next."""
        go.touch()
        start.children[standing.SUPERNODE].wait()
        return said(start, at_B)

    monkeypatch.setattr(standing, "sys", SimpleNamespace(executable=str(worker)))
    monkeypatch.setattr(standing, "supernode", lambda place: [sys.executable, "-c", code])
    monkeypatch.setattr(standing, "until", lambda *given, **named: None)
    monkeypatch.setattr(standing, "knock", lambda place: None)
    monkeypatch.setattr(standing, "AGAIN_S", 0.0)
    monkeypatch.setattr(standing, "_begin", begins)
    monkeypatch.setattr(standing, "_said", ends_now)
    with pytest.raises(BegunAgainError):
        standing.stand(tmp_path / "there" / "nodes" / "0", told.append)
    assert "is not let in (the server does not know its key" in told[-1]
