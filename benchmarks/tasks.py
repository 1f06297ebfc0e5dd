"""Local training on text: a plain loop against ours without padding, in batches of similar length, and without frozen layers;
and multiple-choice questions with each option alone, all options in one batch, and with a shared question.

    python benchmarks/tasks.py [--repeats 5] [--samples 256] [--hidden 128] [--layers 4] [--seeds 3] [--toy]

One thread, one token for each byte; a small Mixtral with 8 experts, Top-2, or a Qwen3-MoE whose lower half is dense. Rows of a
table do the same work in turns, so that a busy moment does not fall on one of them alone. The plain loop is what a loop over
transformers does: samples padded to the longest of the data, batches in random order, forward, loss, backward, AdamW.

Asserted, of one turn of each row before the clock: as many optimiser steps over as many samples, on as many trained numbers;
padded tokens fall from row to row; with "cached" the frozen layers do not run, and there is such a row where layers are frozen
and nowhere else; a padded, a trimmed and a cached batch have the same loss. Of multiple choice: the same scores and gradients,
fewer tokens where the question is shared. Of learning: as many steps with and without bucketing, both answers in the test data.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from fedexperts.data import choice, classify
from fedexperts.data.choice import Columns, MultipleChoice
from fedexperts.data.classify import Classification
from fedexperts.data.source import Samples, size, take, trimmed
from fedexperts.moe.parts import Piece
from fedexperts.moe.view import View
from fedexperts.train.device import Device, LocalTraining
from fedexperts.train.frozen import Kept
from fedexperts.train.task import Task

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from text import BOS, EOS, PAD, VOCABULARY, tokenizer  # noqa: E402  # the tests' own: one token for each byte

DATA = Path(os.environ.get("FEDEXPERTS_DATA", ROOT.parent / "shared" / "data"))
BATCH, QUESTIONS = 16, 4
Rows = list[dict[str, Any]]


def rows(table: str, count: int) -> tuple[Rows, str]:
    """The first rows of a real table, or made-up ones, and which of them it is."""
    path = DATA / table / "train.parquet"
    if path.exists():
        import pyarrow.parquet as pq

        return pq.read_table(path).slice(0, count).to_pylist(), table
    rng = np.random.default_rng(0)

    def words(mean: float) -> str:
        numbers = rng.integers(0, 99, 1 + int(rng.gamma(2.0, mean / 2)))
        return " ".join("the" if n < 7 else f"word{n}" for n in numbers)

    made = [
        {"sentence": words(9), "label": n % 2, "question": words(15), "choices": [words(3) for _ in range(4)], "answer": n % 4}
        for n in range(count)
    ]
    return made, "synthetic text"


def model(args: argparse.Namespace, kind: Any, family: str = "mixtral", **options: Any) -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": args.hidden,
        "intermediate_size": 2 * args.hidden,
        "moe_intermediate_size": 2 * args.hidden,
        "num_hidden_layers": args.layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "num_experts_per_tok": 2,
        "num_local_experts" if family == "mixtral" else "num_experts": 8,
        "max_position_embeddings": 512,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "num_labels": 2,
    }
    return kind.from_config(AutoConfig.for_model(family, **{**sizes, **options}))


@dataclass
class Done:
    """What one turn did: steps by its own count and by optimisers', numbers that these train, what went through the model."""

    steps: int = 0
    optimised: int = 0
    trained: int = 0
    calls: int = 0
    rows: int = 0
    tokens: int = 0  # with padding
    lowest: int = 0  # calls of the lowest layer's attention


def done(view: View, run: Callable[[], int]) -> Done:
    """One turn, counted; it is also the warm-up."""
    found, model = Done(), view.model

    def optimised(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        found.optimised += 1
        found.trained = sum(leaf.numel() for group in optimizer.param_groups for leaf in group["params"])

    def embedded(_: Any, args: tuple[torch.Tensor]) -> None:
        found.calls, found.rows, found.tokens = found.calls + 1, found.rows + len(args[0]), found.tokens + args[0].numel()

    def attended(*_: Any) -> None:
        found.lowest += 1

    hooks = [
        register_optimizer_step_post_hook(optimised),
        model.get_input_embeddings().register_forward_pre_hook(embedded),
        model.model.layers[0].self_attn.register_forward_hook(attended),
    ]
    found.steps = run()
    for hook in hooks:
        hook.remove()
    return found


def timed(work: dict[str, Callable[[], int]], repeats: int, expected: int) -> dict[str, list[float]]:
    """Milliseconds of one of the steps that each function makes, in turns."""
    samples: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeats):
        for name, run in work.items():
            began = time.perf_counter()
            steps = run()
            samples[name].append(1e3 * (time.perf_counter() - began) / steps)
            assert steps == expected, f"{name}: {steps} steps, not {expected}"
    return samples


def show(title: str, samples: dict[str, list[float]], notes: dict[str, str]) -> None:
    base = statistics.median(next(iter(samples.values())))
    print(f"\n{title}\n{'':34} {'ms/step':>8} {'min-max':>15} {'x':>6}")
    for name, ms in samples.items():
        middle, spread = statistics.median(ms), f"{min(ms):.1f}-{max(ms):.1f}"
        print(f"{name:34} {middle:8.1f} {spread:>15} {base / middle:6.2f}  {notes.get(name, '')}")


def plain_loop(view: View, objective: Any, data: Samples, parts: Sequence[str], local: LocalTraining) -> Callable[[], int]:
    generator = torch.Generator().manual_seed(0)

    def epoch() -> int:
        view.model.train()
        optimizer = torch.optim.AdamW([leaf for _, _, leaf in view.freeze(parts)], lr=local.lr_expert)
        batches = torch.randperm(size(data), generator=generator)[: local.local_steps * BATCH].view(-1, BATCH)
        for chosen in batches:
            optimizer.zero_grad()
            objective.loss(view, {key: value[chosen] for key, value in data.items()}).backward()
            optimizer.step()
        return len(batches)

    return epoch


def ours(
    view: View, objective: Any, data: Samples, parts: Sequence[str], local: LocalTraining
) -> tuple[Device, Callable[[], int]]:
    pieces = {part: Piece(part, 0, view.export(part)) for part in view.parts}
    device = Device("a/0", view, data, pieces, local, 0, objective)
    return device, lambda: device.train(Task(frozenset(parts)), 1)


def classification(args: argparse.Namespace) -> None:
    table, name = rows("glue_sst2", args.samples)
    data = classify.encode(table, tokenizer(), "sentence", None, 128)
    data["labels"] = torch.tensor([row["label"] for row in table])
    tokens = data["attention_mask"].sum(dim=1).float()
    print(f"\n{name}: {size(data)} samples of {tokens.min():.0f}-{tokens.max():.0f} tokens, mean {tokens.mean():.0f}")
    objective = Classification(0, 2)
    local = LocalTraining(size(data) // BATCH, BATCH, "adamw", 1e-4, 1e-4)
    top, half = args.layers - 1, args.layers // 2
    dense = {"family": "qwen3_moe", "mlp_only_layers": list(range(half))}
    cases: dict[str, tuple[dict[str, Any], str, list[str], bool]] = {  # the last: whether layers below are frozen
        "experts 0 and 1 of all layers": ({}, "global", ["expert:0", "expert:1"], False),
        "the gate of all layers": ({}, "global", ["gate"], False),
        f"experts 0 and 1 over {half} dense layers": (dense, "global", ["expert:0", "expert:1"], True),
        f"the gate over {half} dense layers": (dense, "global", ["gate"], True),
        "experts 0 and 1 of the last layer": ({}, "layer", [f"expert:{top}.0", f"expert:{top}.1"], True),
        "the head": ({}, "global", ["head"], True),
    }
    for title, (options, granularity, parts, below) in cases.items():
        view = View(model(args, AutoModelForSequenceClassification, **options), granularity=granularity)
        task = (view, objective, data, parts)
        device, cached = ours(*task, local)
        work = {
            "plain loop": plain_loop(*task, local),
            "trimmed": ours(*task, replace(local, bucketing=False, cache_B=0))[1],
            "trimmed, bucketed": ours(*task, replace(local, cache_B=0))[1],
            "trimmed, bucketed, cached": cached,
        }
        began = time.perf_counter()
        cached()  # warm-up, and what is kept is computed
        filled_s = time.perf_counter() - began
        kept = device._kept
        assert (kept is not None) == below, f"{title}: outputs of frozen layers are {'not ' * (kept is None)}kept"
        if kept is None:
            del work["trimmed, bucketed, cached"]
        same_loss(view, objective, data, kept)
        same_work(title, {name: done(view, run) for name, run in work.items()}, data, local.local_steps)
        samples = timed(work, args.repeats, local.local_steps)
        note = ""
        if kept is not None:
            extra_ms = 1e3 * filled_s - local.local_steps * statistics.median(samples["trimmed, bucketed, cached"])
            note = f"once {extra_ms:.0f} ms, {kept.hidden_TD.nbytes / 1e6:.1f} MB"
        show(f"Classification, trained: {title}; batch {BATCH}", samples, {"trimmed, bucketed, cached": note})


def same_loss(view: View, objective: Any, data: Samples, kept: Kept | None) -> None:
    """Of one batch, padded to the longest of the data, to its own longest, and without frozen layers."""
    chosen = data["attention_mask"].sum(dim=1).argsort()[:BATCH]  # the shortest
    batch = take(data, chosen)
    with torch.no_grad():
        losses = [float(objective.loss(view, batch)), float(objective.loss(view, trimmed(batch)))]
        if kept is not None:
            with kept.used(chosen, view.device):
                losses.append(float(objective.loss(view, trimmed(batch))))
    assert max(losses) - min(losses) < 1e-4, f"losses of one batch, padded, trimmed, cached: {losses}"


def same_work(title: str, found: dict[str, Done], data: Samples, steps: int) -> None:
    """Rows of a table do the same work, and each what its name says."""
    plain = found["plain loop"]
    for name, row in found.items():
        made = (row.steps, row.optimised, row.calls, row.rows, row.trained)
        assert made == (steps, steps, steps, steps * BATCH, plain.trained), f"{title}, {name}: {row}, the plain loop {plain}"
        lowest = 0 if name.endswith("cached") else steps
        assert row.lowest == lowest, f"{title}, {name}: the lowest layer ran {row.lowest} times in {steps} steps"
    assert plain.tokens == plain.rows * data["input_ids"].shape[1], (
        f"{title}: the plain loop does not pad to the longest: {plain}"
    )
    assert found["trimmed, bucketed"].tokens < found["trimmed"].tokens <= plain.tokens, f"{title}: padded tokens in {found}"


def learning(args: argparse.Namespace) -> None:
    """What bucketing costs in accuracy, on a question that a small model can learn: does the text hold the word "the"?"""
    table, name = rows("glue_sst2", 2 * args.samples * (args.seeds + 1))
    data = classify.encode(table, tokenizer(), "sentence", None, 128)
    data["labels"] = torch.tensor([int(" the " in f" {row['sentence']} ") for row in table])
    test = take(data, torch.arange(2 * args.samples))
    local = LocalTraining(2 * args.samples // BATCH, BATCH, "adamw", 1e-3, 1e-3)
    epochs, yes = 3 if args.toy else 15, float(test["labels"].float().mean())
    assert 0.05 < yes < 0.95, f"{yes:.0%} of the test data hold the word"
    print(f"\n{name}, {epochs} epochs over {2 * args.samples} samples: accuracy, mean of the last three epochs")
    for seed in range(args.seeds):
        mine = take(data, torch.arange(2 * args.samples) + 2 * args.samples * (seed + 1))
        found = []
        for bucketing in (False, True):
            view = View(model(argparse.Namespace(hidden=64, layers=2), AutoModelForSequenceClassification))
            device, epoch = ours(view, Classification(0, 2), mine, list(view.parts), replace(local, bucketing=bucketing))
            scores = []
            for _ in range(epochs):
                epoch()
                view.model.eval()
                scores.append(device.objective.judge(view, test).score)
            assert device.steps == epochs * local.local_steps, f"{device.steps} steps in {epochs} epochs"
            found.append(statistics.mean(scores[-3:]))
        print(f"seed {seed}: random batches {found[0]:.3f}, bucketed {found[1]:.3f}")


def whole(view: View, batch: Samples) -> torch.Tensor:
    """scores_NO without sharing: each question with each of its options as one sequence, logits at every token."""
    texts, spans = [], []
    for n in range(size(batch)):
        question = batch["question"][n][batch["question_mask"][n].bool()]
        for option, mask in zip(batch["option"][n], batch["option_mask"][n], strict=True):
            texts.append(torch.cat([question, option[mask.bool()]]))
            spans.append((len(question), len(texts[-1])))
    longest = max(map(len, texts))
    ids = torch.stack([F.pad(text, (0, longest - len(text)), value=PAD) for text in texts])
    mask = torch.stack([torch.arange(longest) < end for _, end in spans]).long()
    log_p = view({"input_ids": ids, "attention_mask": mask}).log_softmax(dim=-1)
    scores = [log_p[i, begin - 1 : end - 1].gather(-1, ids[i, begin:end, None]).mean() for i, (begin, end) in enumerate(spans)]
    return torch.stack(scores).view(size(batch), -1)


def alone(view: View, batch: Samples) -> torch.Tensor:
    """The same with one forward pass for each option."""
    one_by_one = []
    for n in range(size(batch)):
        for o in range(batch["option"].shape[1]):
            chosen = {key: value[n : n + 1] for key, value in batch.items()}
            chosen |= {key: batch[key][n : n + 1, o : o + 1] for key in ("option", "option_mask")}
            one_by_one.append(whole(view, chosen).flatten())
    return torch.cat(one_by_one).view(size(batch), -1)


def multiple_choice(args: argparse.Namespace) -> None:
    table, name = rows("medmcqa", (2 if args.toy else 8) * QUESTIONS)
    data = choice.encode(table, tokenizer(), Columns(), 256)
    view = View(model(args, AutoModelForCausalLM))
    view.model.train()
    leaves = [leaf for _, _, leaf in view.freeze(["expert:0", "expert:1"])]
    objective = MultipleChoice()
    batches: list[Samples] = [
        {key: value[at : at + QUESTIONS] for key, value in data.items()} for at in range(0, size(data), QUESTIONS)
    ]

    def epoch(scores: Callable[[View, Samples], torch.Tensor]) -> Callable[[], int]:
        def run() -> int:
            for batch in batches:
                for leaf in leaves:
                    leaf.grad = None
                F.cross_entropy(scores(view, batch), batch["labels"]).backward()
            return len(batches)

        return run

    with torch.no_grad():
        ways = {"each option alone": alone, "all options in one batch": whole, "shared question": objective.scores}
        found = [scores(view, batches[0]) for scores in ways.values()]
        assert all(torch.allclose(found[0], other, atol=1e-4) for other in found[1:]), found
    work, counted, gradients = {name: epoch(scores) for name, scores in ways.items()}, {}, {}
    for way, run in work.items():
        counted[way] = done(view, run)
        gradients[way] = torch.cat([leaf.grad.flatten() for leaf in leaves if leaf.grad is not None])
    first, *others = gradients.values()
    assert first.abs().sum() > 0, "no gradient"
    assert all(torch.allclose(first, other, atol=1e-5) for other in others), "the ways of scoring have other gradients"
    one, together, shared = counted.values()
    options = size(data) * data["option"].shape[1]
    assert (one.calls, one.rows, together.calls, together.rows) == (options, options, len(batches), options), counted
    assert shared.tokens < one.tokens <= together.tokens, f"tokens with padding: {counted}"
    samples = timed(work, args.repeats, len(batches))
    tokens = data["question_mask"].sum(dim=1).float().mean(), data["option_mask"].sum(dim=-1).float().mean()
    print(f"\n{name}: questions of {tokens[0]:.0f} tokens, options of {tokens[1]:.0f} on average")
    show(f"Multiple choice, trained: experts 0 and 1 of all layers; {QUESTIONS} questions a step", samples, {})


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("repeats", 5), ("samples", 256), ("hidden", 128), ("layers", 4), ("seeds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--toy", action="store_true", help="smallest size, one repetition; the figures mean nothing")
    args = parser.parse_args(argv)
    if args.toy:
        args.repeats, args.samples, args.hidden, args.layers, args.seeds = 1, 2 * BATCH, 16, 2, 1
    torch.set_num_threads(1)
    print(f"D {args.hidden}, {args.layers} layers, 8 experts, Top-2, one thread, load {os.getloadavg()[0]:.1f}")
    classification(args)
    multiple_choice(args)
    learning(args)


if __name__ == "__main__":
    main()
