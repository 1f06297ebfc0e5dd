"""A local loss of the user's own (FedProx), on numbers worked out by hand and in runs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from test_device import E0, HALF, now, one, task
from torch import Tensor

import small
from fedexperts import InputError, Scenario, run
from fedexperts.train.device import LocalLoss
from toy import samples

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "fedprox.py"


def proximal(mu: float, loss: Tensor, trained: dict[str, Tensor], received: dict[str, Tensor]) -> Tensor:
    assert trained.keys() == received.keys() == {"expert:0/moe.experts.0.value"}
    return loss + mu / 2 * sum((now - received[name]).square().sum() for name, now in trained.items())


def test_the_term_pulls_back_to_what_was_received() -> None:
    own: LocalLoss = partial(proximal, 0.5)
    device = one(samples(0, 4.0), replace(HALF, loss=own))
    device.train(task(E0), rounds=1)  # from 0: 4 away, nothing to pull yet; half of 4
    assert now(device, E0) == 2.0
    device.train(task(E0), rounds=1)  # 2 away, and 0.5 · 2 back to the 0 that was received, not to where this call began
    assert now(device, E0) == 2.0 + 0.5 * (2.0 - 0.5 * 2.0)
    device.train(task(E0), rounds=1)
    assert now(device, E0) == 2.5 + 0.5 * (1.5 - 0.5 * 2.5)


def test_without_one_nothing_is_pulled() -> None:
    device = one(samples(0, 4.0))
    device.train(task(E0), rounds=2)
    assert now(device, E0) == 3.0


def test_what_is_no_number_is_refused() -> None:
    device = one(samples(0, 4.0), replace(HALF, loss=lambda loss, trained, received: loss.item()))  # type: ignore[arg-type,return-value]
    with pytest.raises(InputError, match=r"train\.local_loss: returned float; it must return a tensor of one number"):
        device.train(task(E0), rounds=1)


def scenario(folder: Path, **train: object) -> Scenario:
    shutil.copy(EXAMPLE, folder / "prox_of_mine.py")
    return Scenario.parse(small.document(train={"cycles": 1, **train}), folder)


def test_a_scenario_names_it_and_it_changes_the_model(tmp_path: Path) -> None:
    plain = run(scenario(tmp_path), tmp_path / "plain")
    pulled = run(scenario(tmp_path, local_loss="prox_of_mine:proximal"), tmp_path / "pulled")
    assert 'local_loss = "prox_of_mine:proximal"' in (pulled.directory / "scenario.toml").read_text()
    weights = [(one.directory / "model" / "model.safetensors").read_bytes() for one in (plain, pulled)]
    assert weights[0] != weights[1]
    assert plain.summary["uplink_B"] == pulled.summary["uplink_B"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("proximal", r"train\.local_loss = 'proximal'"),
        ("nowhere:proximal", "cannot be imported .*No module named 'nowhere'"),
        ("prox_of_mine:nothing", "cannot be imported .*no attribute 'nothing'"),
        ("prox_of_mine:MU", r"train\.local_loss = 'prox_of_mine:MU': is no function"),
    ],
)
def test_what_is_none_is_refused_before_anything_is_written(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        run(scenario(tmp_path, local_loss=name), tmp_path / "out")
    assert not (tmp_path / "out").exists()
