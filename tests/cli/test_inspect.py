"""``fedexperts inspect`` as a stranger meets it: keys of --json, tables, exit codes, without network and without weights."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError

from fedexperts.cli.inspect import rounded
from fedexperts.cli.main import main
from fedexperts.errors import InputError
from fedexperts.moe import meta
from processes import program

EXAMPLE = Path(__file__).parents[2] / "examples" / "llama3-8b-x3.json"


def inspect(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return program("inspect", *arguments, folder=folder, columns=80)


def test_json_is_the_contract(tmp_path: Path) -> None:
    done = inspect(EXAMPLE, "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert set(document["parts"]) == {"backbone", "gate", "head", "expert:0", "expert:1", "expert:2"}
    assert document["parts"]["expert:1"] == {"parameters": 5_637_144_576, "bytes": 11_274_289_152}
    assert document["lora_upload_B"] == {f"expert:{m}": 14_155_776 for m in range(3)}
    assert (document["gate_upload_B"], document["baseline_upload_B"]) == (786_432, 43_253_760)
    assert document["ratio"] == pytest.approx(3.0556, abs=1e-4)
    memory = document["memory_B"]
    assert {protocol: list(phases) for protocol, phases in memory.items()} == {
        "ems-fl-enhanced": ["trial", "training", "gate_tail"],
        "ems-fl": ["trial", "training"],
        "sync": ["training"],
    }
    assert memory["sync"]["training"]["weights_B"] == sum(row["bytes"] for row in document["parts"].values())


def test_a_checkpoint_folder_and_every_option(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(EXAMPLE.read_text())
    options = ("--experts", "2,0", "--rank", "8", "--precision", "float32", "--batch", "2", "--length", "128")
    done = inspect("model", *options, "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["experts"] == [0, 2]
    assert document["lora_upload_B"]["expert:0"] == 2 * 14_155_776
    assert document["parts"]["gate"]["bytes"] == 4 * document["parts"]["gate"]["parameters"]
    assert (document["batch"], document["length"]) == (2, 128)


def test_the_tables_fit_a_terminal(tmp_path: Path) -> None:
    done = inspect(EXAMPLE, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    for words in ("expert:0 … expert:2, each", "14.156", "0.786", "43.254", "3.056 ×", "ems-fl-enhanced", "gate tail"):
        assert words in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such file or folder"),
        (["nowhere.json"], "nowhere.json: no such file or folder"),
        (["some/model"], "unset HF_HUB_OFFLINE"),
        (["empty"], "no config.json there"),
        (["text.json"], "text.json': is not JSON"),
        (["list.json"], "holds no model_type"),
        (["dense.json"], "no Mixture-of-Experts layer"),
        (["unknown.json"], "model_type = 'no-such-type'"),
        (["wrong.json"], "num_experts_per_tok = 4 (K) must lie between 1 and num_local_experts = 3 (M)"),
        ([EXAMPLE, "--rank", "5000"], "rank = 5000: must lie between 1 and 4096"),
        ([EXAMPLE, "--rank", "0"], "rank = 0: must lie between 1 and 4096"),
        ([EXAMPLE, "--experts", "1,3"], "experts = 1,3: must be different numbers between 0 and 2"),
        ([EXAMPLE, "--experts", "one"], "--experts 'one'"),
        ([EXAMPLE, "--precision", "int8"], "int8"),
        ([EXAMPLE, "--length", "0"], "--length"),
    ],
)
def test_wrong_input_exits_2_with_one_message(
    arguments: list[str | Path],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    document = json.loads(EXAMPLE.read_text())
    files: dict[str, Any] = {
        "list.json": [],
        "dense.json": {"model_type": "llama", "num_hidden_layers": 1},
        "unknown.json": {"model_type": "no-such-type"},
        "wrong.json": {**document, "num_experts_per_tok": 4},
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "text.json").write_text("no JSON")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fedexperts", "inspect", *map(str, arguments)])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SystemExit) as ended:
        main()
    shown = capsys.readouterr()
    assert ended.value.code == 2
    assert shown.out == ""
    assert message in shown.err


SMALL: dict[str, Any] = {
    "model_type": "mixtral",
    "vocab_size": 23,
    "hidden_size": 12,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}


def shown(folder: Path, name: str, document: dict[str, Any], monkeypatch, capsys) -> Any:
    (folder / name).write_text(json.dumps(document))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["fedexperts", "inspect", name])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    return capsys.readouterr()


@pytest.mark.parametrize(
    ("count", "text"), [(7, "7"), (999, "999"), (6_948, "6.9 k"), (1_234_567, "1.2 M"), (46_702_792_704, "46.7 B")]
)
def test_sizes_are_shown_in_a_unit_that_fits(count, text):
    assert rounded(count) == text


def test_small_models_and_names_in_brackets_are_shown_as_they_are(tmp_path, monkeypatch, capsys):
    out = shown(tmp_path, "[red]tiny.json", SMALL, monkeypatch, capsys).out
    assert "[red]tiny.json: 6.5 k parameters" in out


def test_where_memory_is_not_known_the_rest_is_shown(tmp_path, monkeypatch, capsys):
    deepseek = {"model_type": "deepseek_v2", "n_routed_experts": 4, "moe_intermediate_size": 8, "first_k_dense_replace": 1}
    found = shown(tmp_path, "lite.json", {**SMALL, **deepseek, "topk_method": "greedy"}, monkeypatch, capsys)
    assert "upload in a contact" in found.out
    assert "GB on a device" not in found.out
    assert "note: what its layers keep in memory is not known for this model type" in found.err


def test_a_hub_name_fetches_the_config_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(name: str, file: str) -> str:
        asked.append((name, file))
        return str(EXAMPLE)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    assert meta.read_config("owner/name")["num_local_experts"] == 3
    assert asked == [("owner/name", "config.json")]


def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, file: str) -> str:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(InputError, match=r"owner/name: .*\(offline\).*path of a config\.json"):
        meta.read_config("owner/name")
