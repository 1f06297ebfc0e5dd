"""Experts that ESFT has chosen, beside our own relevance: by hand, and what is wrong with files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

import small
from fedexperts import InputError
from fedexperts.cli.assign import choice_notes
from fedexperts.cli.main import app
from fedexperts.moe.auto import new_model
from fedexperts.moe.view import View
from fedexperts.setup.experts_from import check_layers, choice_report, choices, layer_numbers, read_choice
from readers import CHOSEN, COUNTS_LM


def write(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document))
    return path


def report(tmp_path: Path, experts: dict[str, list[int]], layers: list[int], owned: Any = (), **more: Any) -> Any:
    choice = read_choice(write(tmp_path / "law.json", {"experts": experts, **more}))
    return choice_report(choice, COUNTS_LM, layers, frozenset(owned))


def test_a_file_is_read_in_the_order_of_its_layers(tmp_path: Path) -> None:
    choice = read_choice(write(tmp_path / "law.json", CHOSEN))
    assert dict(choice.by_layer) == {0: (0, 2), 1: (3,)}
    assert list(choice.by_layer) == [0, 1]
    assert choice.also == ()
    assert read_choice(write(tmp_path / "a.json", {"experts": {"7": []}})).by_layer == {7: ()}
    (tmp_path / "bom.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(CHOSEN).encode())
    assert read_choice(tmp_path / "bom.json").by_layer == choice.by_layer


def test_overlap_by_hand(tmp_path: Path) -> None:
    """Ours are 0 and 1 in layer 0, and 3 in layer 1; the cluster owns 0 and 3 of every layer."""
    found = report(tmp_path, CHOSEN["experts"], [0, 1, 2], {"expert:0", "expert:3"})
    assert found["layers"] == {
        "0": {"experts": [0, 2], "unknown": [], "ours": [0, 1], "shared": 1, "owned": 1, "picks": 0.6},
        "1": {"experts": [3], "unknown": [], "ours": [3], "shared": 1, "owned": 1, "picks": 0.4},
    }
    assert (found["chosen"], found["overlap"], found["owned"], found["picks"]) == (3, 0.666667, 0.666667, 0.5)
    assert found["overlap_by_chance"] == pytest.approx((2 * 2 / 4 + 1 / 4) / 3, abs=1e-6)
    assert found["layers_by_expert"] == [1, 0, 1, 1]
    assert (found["missing_layers"], found["unknown_layers"], found["also"]) == ([2], [], [])


def test_experts_of_a_single_layer_are_owned_there_alone(tmp_path: Path) -> None:
    found = report(tmp_path, {"5": [0], "6": [0]}, [5, 6, 7], {"expert:1.0"})
    assert [row["owned"] for row in found["layers"].values()] == [0, 1]


def test_layers_are_those_of_the_decoder(tmp_path: Path) -> None:
    """As in DeepSeek's models, whose layer 0 is dense: files begin at layer 1."""
    found = report(tmp_path, {"1": [0], "2": [3], "9": [1]}, [1, 2, 3], shared_experts=True)
    assert list(found["layers"]) == ["1", "2"]
    assert (found["missing_layers"], found["unknown_layers"], found["also"]) == ([3], [9], ["shared_experts"])


def test_experts_that_the_model_has_not_are_told(tmp_path: Path) -> None:
    found = report(tmp_path, {"0": [0, 40, 7], "1": [63]}, [0, 1])
    assert [row["unknown"] for row in found["layers"].values()] == [[7, 40], [63]]
    assert (found["chosen"], found["overlap"]) == (1, 1.0)
    none = report(tmp_path, {"1": [63], "0": []}, [0, 1])
    assert (none["chosen"], none["overlap"], none["overlap_by_chance"], none["owned"], none["picks"]) == (
        0,
        None,
        None,
        None,
        0.0,
    )
    json.dumps(none, allow_nan=False)
    assert "no expert that the model has" in choice_notes("lisbon", none)[0]


def test_notes_name_what_does_not_fit(tmp_path: Path) -> None:
    notes = choice_notes("lisbon", report(tmp_path, {"1": [0, 9], "8": [1]}, [1, 2], non_expert_modules=True))
    assert notes == [
        "100% of the 1 experts chosen are among the most relevant to lisbon (by chance 25%); lisbon owns 0% of them, and they "
        "have 40% of its picks",
        "experts by the number of layers: 0 in 1",
        "the file lacks layer 2 of the model",
        "the model has no MoE layer 8, which the file has",
        "the model has no expert 9 in layer 1, which the file chooses",
        "the file has non_expert_modules trained too; they belong to no cluster here",
    ]


def test_a_cluster_without_picks_has_no_share(tmp_path: Path) -> None:
    choice = read_choice(write(tmp_path / "law.json", {"experts": {"0": [1]}}))
    found = choice_report(choice, np.zeros((1, 4), dtype=int), [0], frozenset())
    assert (found["layers"]["0"]["picks"], found["picks"]) == (None, None)


def test_the_numbers_of_layers_are_in_their_names() -> None:
    config = {**small.CONFIG, "model_type": "qwen3_moe", "num_hidden_layers": 4, "mlp_only_layers": [0, 2], "head_dim": 8}
    config |= {"moe_intermediate_size": 16, "num_experts": 4, "decoder_sparse_step": 1}
    config.pop("num_local_experts")
    assert layer_numbers(View(new_model(config, seed=0))) == [1, 3]
    assert layer_numbers(View(new_model(small.CONFIG, seed=0))) == [0, 1]


# ---- whose choice


def test_a_file_belongs_to_the_cluster_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    law, other = write(tmp_path / "law.json", CHOSEN), write(tmp_path / "a=b.json", CHOSEN)
    assert list(choices([f"lima={law}", f"oslo={other}"], ["oslo", "lima"])) == ["lima", "oslo"]
    assert choices([str(law)], ["oslo"])["oslo"].path == law
    monkeypatch.chdir(tmp_path)
    assert choices(["a=b.json"], ["oslo"])["oslo"].by_layer == {0: (0, 2), 1: (3,)}  # a name that holds the sign itself
    assert choices([], ["oslo", "lima"]) == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["law.json"], r"--experts-from law\.json: whose choice is it\? write CLUSTER=FILE.*the clusters are oslo, lima"),
        (["rome=law.json"], r"there is no cluster 'rome'; write CLUSTER=FILE"),
        (["oslo=law.json", "oslo=law.json"], r"oslo=law\.json: cluster oslo has law\.json already; give one file"),
        (["oslo=none.json"], r"--experts-from = 'none\.json': cannot be read"),
    ],
)
def test_a_choice_that_cannot_be_placed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    write(tmp_path / "law.json", CHOSEN)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        choices(options, ["oslo", "lima"])


# ---- what is wrong with a file


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([1], r'law\.json\': must be \{"experts": '),
        ({"experts": [1]}, r"must be \{\"experts\": "),
        ({}, r"must be \{\"experts\": "),
        ({"experts": {}}, r"experts = \{\}: names no layer"),
        ({"experts": {"one": [1]}}, r"experts\.one: must be the number of a layer"),
        ({"experts": {"-1": [1]}}, r"experts\.-1: must be"),
        ({"experts": {"１": [1]}}, r"must be the number of a layer"),
        ({"experts": {"1": [1], "01": [2]}}, r"experts\.01: must be the number of a layer, each once"),
        ({"experts": {"1": 5}}, r"experts\.1 = 5: must be a list of numbers of experts"),
        ({"experts": {"1": ["3"]}}, r"experts\.1: holds '3': must be numbers"),
        ({"experts": {"1": [True]}}, r"experts\.1: holds True"),
        ({"experts": {"1": [1.0]}}, r"experts\.1: holds 1\.0"),
        ({"experts": {"1": [-1]}}, r"experts\.1: holds -1"),
        ({"experts": {"1": [10**9]}}, r"experts\.1: holds 1000000000"),
        ({"experts": {"1": [2, 2]}}, r"experts\.1 = \[2, 2\]: names an expert twice"),
        ({"experts": {"1": [2]}, "shared_experts": "no"}, r"shared_experts = 'no': must be true or false"),
        ({"experts": {"1": [2]}, "non_expert_modules": None}, r"non_expert_modules = None: must be true or false"),
    ],
)
def test_files_of_another_format_are_refused(tmp_path: Path, document: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_choice(write(tmp_path / "law.json", document))


def test_a_file_for_another_model_is_refused(tmp_path: Path) -> None:
    choice = read_choice(write(tmp_path / "law.json", {"experts": {"26": [1], "27": [1]}}))
    with pytest.raises(InputError, match=r"none of its layers, 26, 27, is a MoE layer of the model, which has 0, 1; is it for"):
        check_layers({"oslo": choice}, [0, 1])


# ---- the command


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = small.document()["cluster"][:1]
    (tmp_path / "s.toml").write_text(tomli_w.dumps(small.document(cluster=one, evaluation={"target": 0.5, "validation": 0.0})))
    law = write(tmp_path / "law.json", {"experts": {"0": [0, 2], "5": [1]}, "shared_experts": True})
    arguments = ["assign", str(tmp_path / "s.toml"), "--experts-from", str(law)]
    app([*arguments, "--json"], standalone_mode=False)
    row = json.loads(capsys.readouterr().out)["experts_from"]["plain"]
    assert row["layers"]["0"]["experts"] == [0, 2]
    assert (row["missing_layers"], row["unknown_layers"], row["owned"]) == ([1], [5], 1.0)  # a single cluster owns all
    app(arguments, standalone_mode=False)
    shown = " ".join(capsys.readouterr().out.split())
    assert "law.json: experts chosen for plain" in shown
    assert "the file lacks layer 1 of the model" in shown
    assert "the model has no MoE layer 5, which the file has" in shown
    assert "the file has shared_experts trained too" in shown
