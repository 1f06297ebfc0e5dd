"""Where a run's model comes from, and what its plan must carry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from families import hub_folder
from fedexperts import InputError, Scenario
from fedexperts.data.digits import DOMAINS
from fedexperts.errors import InputWarning
from fedexperts.method.methods import prepare
from fedexperts.moe.auto import new_model
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


@pytest.mark.parametrize(("rates", "way"), [({"uplink_bps": 1e6}, "down"), ({"downlink_bps": 1e6}, "up")])
def test_a_plan_that_carries_nothing_one_way_trains_nobody(rates: dict[str, float], way: str, tmp_path: Path) -> None:
    contacts = [{"cluster": d, "start_s": 100 * k, "end_s": 100 * k + 90, **rates} for k in range(3) for d in DOMAINS[:2]]
    (tmp_path / "plan.json").write_text(json.dumps({"contacts": contacts}))
    given = Scenario.parse(document(plan={"kind": "file", "path": "plan.json"}), tmp_path)
    with pytest.raises(InputError, match=rf"cluster plain, inverted carries anything {way}; give {way}link_bps, or"):
        prepare(given)


def test_what_a_plan_has_to_tell_is_told_before_a_run(tmp_path: Path) -> None:
    contacts: list[dict[str, Any]] = [
        {"cluster": d, "start_s": 100 * k, "end_s": 100 * k + 90, "downlink_bps": 1e6} | ({"uplink_bps": 1e6} if k else {})
        for k in range(3)
        for d in DOMAINS[:2]
    ]
    (tmp_path / "plan.json").write_text(json.dumps({"contacts": contacts}))
    given = Scenario.parse(document(plan={"kind": "file", "path": "plan.json"}), tmp_path)
    with pytest.warns(InputWarning, match=r"plan.json: 2 of 6 contacts carry nothing up, for no rate is given"):
        prepare(given)
