"""Memory and time of a step with 2 to 8 of 8 experts resident, on data of one domain; part of memory.py.

A fresh process for each: the device's own two experts are resident and adapted, and so many others are cached in each layer, as
tokens meet them (``load = "stream"``, ``cache_experts``); "all loaded" streams nothing. A step trains adapters and gate.
A domain: the embeddings of its tokens share a direction that the gate's rows of the device's experts follow, so that nearly all
their picks meet these; the share is printed.

Asserted: the losses of all steps are the same, to float32's rounding; experts are streamed if and only if picks meet others.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

OWNED, EXPERTS, RANK = (2, 5), 8, 4
RESIDENT = (2, 3, 4, 6, 8)
DOMAIN = 200
"""Tokens of the domain: numbers below it."""
SMALL = 0.02
"""Of what random layers would add to a token, which is many times its embedding: the domain's direction would be lost."""


def write(folder: Path, hidden: int, intermediate: int, layers: int) -> None:
    """A Mixtral whose gate sends a domain's tokens to the device's experts."""
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=2000,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 16,
        num_key_value_heads=hidden // 64 or 1,
        num_local_experts=EXPERTS,
        num_experts_per_tok=2,
    )
    model = MixtralForCausalLM(config)
    toward = torch.nn.functional.normalize(torch.randn(hidden), dim=0)
    with torch.no_grad():
        model.model.embed_tokens.weight[:DOMAIN] += 2 * model.model.embed_tokens.weight.norm(dim=1).mean() * toward
        for layer in model.model.layers:
            layer.mlp.gate.weight[list(OWNED)] += 6 * config.initializer_range * toward
            layer.self_attn.o_proj.weight *= SMALL
            layer.mlp.experts.down_proj *= SMALL
    model.save_pretrained(folder, max_shard_size="400MB")


def steps(folder: Path, resident: int, tokens: tuple[int, int], count: int, sampler: Callable[[], Any]) -> dict[str, Any]:
    """This process's peak, seconds of each step after the first, losses, and what was streamed."""
    import torch
    from transformers import AutoModelForCausalLM

    from fedexperts.moe.checkpoint import Checkpoint
    from fedexperts.moe.lora import LoRA
    from fedexperts.moe.parts import GATE, expert
    from fedexperts.moe.subset import load_full, load_streamed
    from fedexperts.moe.view import View

    checkpoint = Checkpoint(folder)
    if resident:
        model = load_streamed(checkpoint, OWNED, AutoModelForCausalLM)
        view = View(model, kept=OWNED, stream=checkpoint, cache=resident - len(OWNED))
    else:
        view = View(load_full(folder, AutoModelForCausalLM))
    ids = torch.randint(0, DOMAIN, tokens, generator=torch.Generator().manual_seed(1))
    parts = [expert(m) for m in OWNED]
    view.adapt(LoRA(RANK, 8), seed=0, only=parts)
    leaves = [leaf for _, _, leaf in view.freeze(but=[*parts, GATE])]
    optimizer = torch.optim.AdamW(leaves, lr=1e-4)
    took, losses, loaded_B = [], [], checkpoint.read_B
    with sampler() as peaks:
        counts, total = view.observe([{"input_ids": ids}])
        for _ in range(1 + count):
            began_s = time.perf_counter()
            logits = view({"input_ids": ids})
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            took.append(time.perf_counter() - began_s)
            losses.append(loss.item())
        peak = peaks.read()
    own = counts[:, OWNED].sum() / counts.sum()
    assert total == ids.numel(), f"{total} tokens were counted of {ids.numel()}"
    assert own > 0.9, f"{own:.1%} of the picks meet the device's own experts: these are no data of its domain"
    streamed_B = checkpoint.read_B - loaded_B
    assert (streamed_B > 0) == (resident > 0 and own < 1), f"{streamed_B} B streamed with {resident} of {EXPERTS} resident"
    return {
        "anonymous_B": peak["anonymous_B"],
        "step_s": took[1:],
        "losses": losses,
        "own": float(own),
        "streamed_B": streamed_B,
    }


def table(folder: Path, program: str, repeats: int, floor_MB: float) -> None:
    """One row for each number of resident experts; processes take turns."""
    modes = (0, *RESIDENT)
    runs: dict[int, list[dict[str, Any]]] = {n: [] for n in modes}
    for _ in range(repeats):
        for n in modes:
            command = [sys.executable, program, "--resident", str(n), "--folder", str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{n} of {EXPERTS} resident: {done.stderr}")
            runs[n].append(json.loads(done.stdout.splitlines()[-1]))
    show(runs, floor_MB)


def show(runs: dict[int, list[dict[str, Any]]], floor_MB: float) -> None:
    losses = [loss for several in runs.values() for one in several for loss in one["losses"][:1]]
    assert max(losses) - min(losses) < 1e-4, f"losses of the same function: {losses}"
    whole = runs[0]
    full_MB = statistics.median(one["anonymous_B"] for one in whole) / 1e6
    full_s = statistics.median(s for one in whole for s in one["step_s"])
    print(
        f"data of one domain: {whole[0]['own']:.1%} of the picks meet the device's own experts; peak of anonymous memory with "
        f"the interpreter ({floor_MB:.0f} MB) and without, and a step of training, against all loaded"
    )
    print(f"{'':16}{'MB':>8}{'/ all':>8}{'without':>9}{'/ all':>8}{'step s':>9}{'(least-most)':>15}{'/ all':>8}{'MB read':>9}")
    for n, several in runs.items():
        MB = statistics.median(one["anonymous_B"] for one in several) / 1e6
        seconds = [s for one in several for s in one["step_s"]]
        s = statistics.median(seconds)
        name = f"{n} of {EXPERTS} resident" if n else "all loaded"
        print(
            f"{name:16}{MB:8.0f}{MB / full_MB:8.2f}{MB - floor_MB:9.0f}{(MB - floor_MB) / (full_MB - floor_MB):8.2f}{s:9.2f}"
            f"{f'({min(seconds):.2f}-{max(seconds):.2f})':>15}{s / full_s:8.2f}{several[0]['streamed_B'] / 1e6:9.0f}"
        )
