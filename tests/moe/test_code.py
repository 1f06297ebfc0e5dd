"""Code that lies in a folder of a model or tokenizer is never run, whoever asks and whatever is answered."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageClassification

import text
from families import SIZES, plain, saved
from fedexperts.cli.main import main
from fedexperts.errors import InputError
from fedexperts.moe.answer import answers
from fedexperts.moe.auto import new_model
from fedexperts.moe.build import merge, upcycle
from fedexperts.moe.checkpoint import Checkpoint
from fedexperts.moe.meta import meta_view, read_config
from fedexperts.moe.subset import load_full, load_streamed, load_subset
from fedexperts.moe.tokenizer import load_tokenizer

AUTO_MAP = {
    "AutoConfig": "configuration_x.XConfig",
    "AutoModel": "modeling_x.XModel",
    "AutoModelForCausalLM": "modeling_x.XModel",
    "AutoModelForSequenceClassification": "modeling_x.XModel",
    "AutoModelForImageClassification": "modeling_x.XModel",
    "AutoTokenizer": ["tokenization_x.XTokenizer", "tokenization_x.XTokenizer"],
    "AutoProcessor": "processing_x.XProcessor",
}
MODULES = ("configuration_x", "modeling_x", "tokenization_x", "processing_x", "custom_generate/generate")


@pytest.fixture
def marker(tmp_path, monkeypatch) -> Path:
    """Where planted code would leave a file; to every question "y" is the answer."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))
    return tmp_path / "ran"


def planted(folder: Path, marker: Path, model_type: str | None = None) -> Path:
    """The folder, where config and tokenizer name code beside them; ``model_type`` in place of its own."""
    folder.mkdir(exist_ok=True)
    for module in MODULES:
        (folder / module).parent.mkdir(exist_ok=True)
        (folder / f"{module}.py").write_text(f"open({str(marker)!r}, 'w').close()\nraise SystemExit\n")
    for name in ("config.json", "tokenizer_config.json", "processor_config.json"):
        file = folder / name
        document = json.loads(file.read_text()) if file.is_file() else {}
        document |= {"auto_map": AUTO_MAP, "tokenizer_class": "XTokenizer", "processor_class": "XProcessor"}
        if name == "config.json" and model_type:
            document["model_type"] = model_type
        file.write_text(json.dumps(document))
    return folder


LOADERS: dict[str, Callable[[Path], Any]] = {
    "checkpoint": Checkpoint,
    "full": load_full,
    "subset": lambda folder: load_subset(folder, (0,)),
    "streamed": lambda folder: load_streamed(folder, (0,)),
    "language model": lambda folder: load_full(folder, AutoModelForCausalLM),
    "images": lambda folder: load_full(folder, AutoModelForImageClassification),
    "try": lambda folder: answers(folder, folder, ["good day"], 2),
    "base": lambda folder: merge(folder, [folder, folder], folder.parent / "moe"),
    "upcycled": lambda folder: upcycle(folder, 2, folder.parent / "moe"),
    "config": lambda folder: new_model(read_config(str(folder)), seed=0),
    "sizes": lambda folder: meta_view(read_config(str(folder))),
}


@pytest.mark.parametrize("loader", LOADERS)
def test_a_model_type_of_its_own_is_refused(loader, marker, tmp_path):
    folder = planted(text.saved(tmp_path / "model"), marker, "x_moe")
    with pytest.raises(
        InputError, match=r"model_type = 'x_moe': transformers \S+ has no such model; auto_map names code.*never run"
    ):
        LOADERS[loader](folder)
    assert not marker.exists()


def test_a_tokenizer_of_its_own_is_refused(marker, tmp_path):
    folder = planted(tmp_path / "tokenizer", marker)
    with pytest.raises(InputError, match=r"no tokenizer can be loaded .*code that lies beside it is never run"):
        load_tokenizer(folder)
    folder = planted(text.saved(tmp_path / "model"), marker)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"no tokenizer can be loaded .*code that lies beside it is never run"):
        answers(folder, folder, ["good day"], 2)
    assert not marker.exists()


@pytest.mark.parametrize(
    "command",
    [
        ["try", "{}", "--prompt", "good day"],
        ["inspect", "{}"],
        ["build", "upcycle", "--model", "{}", "--experts", "2", "--out", "{}-moe"],
    ],
)
def test_no_command_runs_it(command, marker, tmp_path, monkeypatch, capsys):
    folder = planted(text.saved(tmp_path / "model"), marker, "x_moe")
    monkeypatch.setattr(sys, "argv", ["fedexperts", *(word.format(folder) for word in command)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code, marker.exists()) == (2, False)
    assert "never run" in capsys.readouterr().err.replace("\n", " ")


def test_a_model_type_that_transformers_has_is_loaded_without_it_and_saved_without_its_name(marker, tmp_path):
    folder = planted(text.saved(tmp_path / "model"), marker)
    model = load_full(folder, AutoModelForCausalLM)
    model.save_pretrained(tmp_path / "saved")
    assert "auto_map" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    assert meta_view(read_config(str(folder))).experts == 4
    assert not marker.exists()


def test_a_dense_model_with_code_beside_it_is_built_from_without_it(marker, tmp_path):
    sizes = {key: value for key, value in SIZES.items() if key != "num_experts_per_tok"}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **sizes)).save_pretrained(tmp_path / "dense")
    folder = planted(tmp_path / "dense", marker)
    (tmp_path / "prompts.jsonl").write_text('["a"]\n["b"]\n')
    assert upcycle(folder, 2, tmp_path / "moe").experts == 2
    assert not [path for path in (tmp_path / "moe").iterdir() if path.suffix == ".py"]
    with pytest.raises(InputError, match="tokenizer, which cannot be loaded"):
        merge(folder, [folder, folder], tmp_path / "hidden", "hidden", tmp_path / "prompts.jsonl")
    assert not marker.exists()


def test_pickles_stay_refused(marker, tmp_path):
    folder = planted(saved(plain("mixtral"), tmp_path / "model"), marker)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    for load in (load_full, LOADERS["try"]):
        with pytest.raises(InputError, match=r"pytorch_model\.bin is a pickle|no tokenizer"):
            load(folder)
    assert not marker.exists()
