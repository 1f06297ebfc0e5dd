"""Multiple choice against lm-evaluation-harness, where it is installed: the same log-likelihoods on real questions."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
import torch

import text
from fedexperts.data.choice import Columns, MultipleChoice, encode
from fedexperts.data.rows import read_rows
from fedexperts.moe.view import View

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("FEDEXPERTS_DATA", ROOT.parent / "shared" / "data"))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the harness's own
def test_scores_are_those_of_the_harness() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        huggingface = pytest.importorskip("lm_eval.models.huggingface", reason="lm-evaluation-harness is not installed")
        from lm_eval.api.instance import Instance
    if not (DATA / "mmlu").is_dir():
        pytest.skip("no MMLU: set FEDEXPERTS_DATA to a folder that holds mmlu/test.parquet")
    rows = [row for row in read_rows("mmlu/test.parquet", DATA) if len(row["question"]) < 120][:24]
    model, tokenizer = text.language_model(max_position_embeddings=1024), text.tokenizer()
    harness = huggingface.HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, add_bos_token=False)
    requests = [
        Instance("loglikelihood", {}, (f"Question: {row['question']}\nAnswer:", f" {choice}"), i)
        for i, (row, choice) in enumerate((row, choice) for row in rows for choice in row["choices"])
    ]
    told = iter(harness.loglikelihood(requests, disable_tqdm=True))
    expected = [[next(told)[0] / len(choice) for choice in row["choices"]] for row in rows]
    samples = encode(rows, tokenizer, Columns(), 1024)
    with torch.no_grad():
        scores_NO = MultipleChoice("characters").scores(View(model), samples)
    torch.testing.assert_close(scores_NO, torch.tensor(expected), rtol=1e-4, atol=1e-5)
