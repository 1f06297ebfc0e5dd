"""The paper's first experiment (Sec. V-B) in small: three dense models of one base become an MoE, which EMS-FL then tunes.

A small Llama is trained on exam questions of three kinds (MMLU in English, CMExam in Chinese, MedMCQA in medical English);
three copies are tuned apart, one on each; `merge` makes one MoE of them; its gate is warmed up on a few shared questions;
EMS-FL and the baseline tune it on multiple-choice questions of three clusters, one kind each, and EMS-FL on the next token.
Everything is trained here from nothing, so accuracies are near chance and far below a real model's: what shows is the
mechanism, and the loss.

Run it with: python examples/three_experts.py --data FOLDER [--out runs/three] [--quick], where FOLDER holds mmlu/, cmexam/
and medmcqa/ with train.parquet and test.parquet (columns question, choices, answer).
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fedexperts import Scenario, run
from fedexperts.data.rows import read_rows
from fedexperts.moe.build import merge
from fedexperts.moe.tokenizer import train_tokenizer

SETS = ("mmlu", "cmexam", "medmcqa")
LENGTH = 128


def questions(folder: Path, name: str, split: str, most: int) -> list[dict[str, Any]]:
    """Rows with one answer and short options."""
    rows = read_rows(f"{name}/{split}.parquet", folder)
    kept = [{k: row[k] for k in ("question", "choices", "answer")} for row in rows if len(str(row["answer"])) == 1]
    return [row for row in kept if max(map(len, row["choices"])) < 60][:most]


def as_text(row: dict[str, Any]) -> str:
    answer = row["answer"]
    number = "ABCDE".index(answer) if isinstance(answer, str) and answer in "ABCDE" else int(answer)
    return f"Question: {row['question']}\nAnswer: {row['choices'][number]}"


def learn(model: Any, tokenizer: Any, texts: list[str], steps: int, lr: float, parts: str = "") -> float:
    """Next-token training; ``parts`` restricts it to parameters with that word in their names."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parts in name)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    generator = torch.Generator().manual_seed(0)
    loss = torch.zeros(())
    for step in range(steps):
        chosen = torch.randint(0, len(texts), (16,), generator=generator)
        batch = tokenizer([texts[i] for i in chosen], padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def dense_models(rows: dict[str, list[dict[str, Any]]], out: Path, quick: bool) -> None:
    """The base, and a copy of it tuned on each kind of question; only feed-forward weights differ, so the merge is exact."""
    torch.manual_seed(0)
    texts = {name: [as_text(row) for row in rows[name]] for name in SETS}
    everything = [text for name in SETS for text in texts[name]]
    tokenizer = train_tokenizer(everything, 4096)
    size = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=len(tokenizer), num_key_value_heads=4, pad_token_id=0, bos_token_id=1, eos_token_id=2, **size
    )
    base = LlamaForCausalLM(config)
    print(f"base: loss {learn(base, tokenizer, everything, 20 if quick else 1500, 2e-3):.2f} nats")
    for name in ("base", *SETS):
        model = LlamaForCausalLM(config)
        model.load_state_dict(base.state_dict())
        if name != "base":
            print(f"{name}: loss {learn(model, tokenizer, texts[name], 10 if quick else 600, 1e-3, parts='mlp'):.2f} nats")
        model.save_pretrained(out / name)
        tokenizer.save_pretrained(out / name)


def scenario(out: Path, quick: bool, task: dict[str, Any]) -> Scenario:
    cluster = [{"name": name, "devices": 2, "data": f"{name}-train.jsonl", "test": f"{name}-test.jsonl"} for name in SETS]
    document = {
        "name": "three-experts",
        "seed": 1,
        "model": {"path": "moe", "lora": {"rank": 8, "alpha": 16.0}},
        "task": {"max_length": LENGTH, **task},
        "warmup": {
            "data": [f"{name}-shared.jsonl" for name in SETS],
            "samples": 64,
            "steps": 5 if quick else 60,
            "batch_size": 8,
            "lr": 1e-2,
            "gate_fit": 1.0,
            "parts": ["gate"],
        },
        "train": {"cycles": 1 if quick else 6, "local_steps": 4, "batch_size": 8, "lr_expert": 2e-3, "lr_gate": 1e-3},
        "assignment": {"trial_samples": 32},
        "cluster": cluster,
    }
    return Scenario.parse(document, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/three"))
    parser.add_argument("--quick", action="store_true", help="a minute, to see that it works")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    rows = {name: questions(args.data, name, "train", 200 if args.quick else 2000) for name in SETS}
    tests = {name: questions(args.data, name, "test", 20 if args.quick else 150) for name in SETS}
    for name in SETS:
        held = len(rows[name]) // 10
        parts = {"shared": rows[name][:held], "train": rows[name][held:], "test": tests[name]}
        for kind, group in parts.items():
            lines = "".join(json.dumps({**row, "text": as_text(row)}) + "\n" for row in group)
            (args.out / f"{name}-{kind}.jsonl").write_text(lines, encoding="utf-8")
    if not (args.out / "moe").is_dir():
        dense_models(rows, args.out, args.quick)
        merge(args.out / "base", [args.out / name for name in SETS], args.out / "moe")
    choice = {"kind": "multiple-choice"}
    for name, protocol, task in (
        ("ems-fl", "ems-fl", choice),
        ("sync", "sync", choice),
        ("ems-fl, next token", "ems-fl", {"kind": "causal-lm", "text": "text"}),
    ):
        folder = args.out / name.replace(", ", "-").replace(" ", "-")
        shutil.rmtree(folder, ignore_errors=True)
        report(name, run(scenario(args.out, args.quick, task), folder, protocol=protocol).summary)


def report(name: str, summary: dict[str, Any]) -> None:
    first, last = summary["history"][0], summary["history"][-1]
    clusters = ", ".join(f"{cluster} {value:.0%}" for cluster, value in summary["accuracy_by_cluster"].items())
    gamma = ", ".join(f"{cluster} {value:.2f}" for cluster, value in summary["gamma"].items())
    print(f"{name}: owners {summary['assignment']}, γ {gamma}")
    print(f"  accuracy {first['accuracy']:.1%} → {summary['final_accuracy']:.1%} ({clusters})", end="; ")
    print(f"loss {first['loss']:.3f} → {last['loss']:.3f} nats; {summary['uplink_B'] / 1e6:.2f} MB up")


if __name__ == "__main__":
    main()
