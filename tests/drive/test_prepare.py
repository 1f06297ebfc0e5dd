"""Where a run's model comes from."""

from __future__ import annotations

import pytest
import torch

from families import hub_folder
from fedexperts import Scenario
from fedexperts.drive.prepare import prepare
from fedexperts.moe.load import new_model
from small import CONFIG, document


@pytest.mark.parametrize("path", ["org/tiny", "folder"])
def test_a_model_is_a_folder_beside_the_scenario_or_a_hub_name(path, tmp_path, monkeypatch):
    model = new_model(CONFIG, seed=5)
    folder = hub_folder(tmp_path / "hub", monkeypatch) if "/" in path else tmp_path / path
    model.save_pretrained(folder)
    table = {key: value for key, value in document().items() if key != "model"} | {"model": {"path": path}}
    view = prepare(Scenario.parse(table, tmp_path)).view
    expected = model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in view.model.state_dict().items())
