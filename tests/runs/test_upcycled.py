"""A whole run on an upcycled BERT: local steps, averages, the saved model, and the same bytes again."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification

import small
from fedexperts import Scenario, run
from fedexperts.data.digits import VOCABULARY
from fedexperts.moe.build import upcycle
from fedexperts.moe.subset import load_full

SIZES = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def test_ems_fl_tunes_an_upcycled_encoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = BertConfig(**SIZES, max_position_embeddings=80, num_labels=10, pad_token_id=VOCABULARY - 1)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "dense")
    upcycle(tmp_path / "dense", 4, tmp_path / "moe")
    model = {"path": str(tmp_path / "moe"), "top1": "switch"}
    tables = small.document(model=model, train={"cycles": 2})
    del tables["model"]["config"]
    scenario = Scenario.parse(tables)
    runs = [run(scenario, tmp_path / name, protocol="ems-fl") for name in ("a", "b")]
    assert runs[0].summary["steps"] > 0
    assert (tmp_path / "a" / "ledger.jsonl").read_bytes() == (tmp_path / "b" / "ledger.jsonl").read_bytes()
    tuned, start = (load_full(path).state_dict() for path in (tmp_path / "a" / "model", tmp_path / "moe"))
    changed = {name for name in tuned if not torch.equal(tuned[name], start[name])}
    assert any(".moe.gate." in name for name in changed)
    assert any(".moe.experts." in name for name in changed)
    assert not any("attention" in name for name in changed)
