"""Part of gpu.py: memory and time of steps at the size of the paper's models, and of one MoE layer beside its limit.

Weights are random and made where they are computed with, in bf16: nothing of this size is on a disk or in the machine's memory.
A device then trains by its own code (`Device.train`: parts, adapters of rank 4 on the trained experts, all else frozen, AdamW),
on 384 tokens at a time, with nothing resident but the experts of its row.
"""

from __future__ import annotations

import gc
import json
import statistics
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from gpu_table import Row, clock, failed
from torch import Tensor
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from fedexperts.data.choice import MultipleChoice
from fedexperts.data.language import CausalLM
from fedexperts.moe.config import parsed
from fedexperts.moe.lora import LoRA
from fedexperts.moe.parts import Piece, is_expert
from fedexperts.moe.size import Training, Work, memory
from fedexperts.moe.sized import described
from fedexperts.moe.view import View
from fedexperts.train.device import Device, LocalTraining
from fedexperts.train.task import Task

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
RANK, LENGTH, STEPS = 4, 384, 4
PAPER = {"ems-fl-enhanced": 23.23, "sync": 46.00}
"""GB, Table I: peak GPU memory of three Llama-3-8B in one MoE, Top-1, LoRA of rank 4, multiple choice, inputs of at most 384
tokens, on an A100 of 80 GB. It does not say which optimiser, how many questions at once, or what else was resident."""
Json = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """What a device holds and trains.

    Attributes:
        kept: experts that are resident.
        trained: those whose adapters are trained; the gate may pick these alone, unless ``gate``.
        gate: the gate is trained too, and picks freely: the synchronous baseline.
        load: as ``fedexperts inspect --load`` has it.
        batch: sequences at once; 0: eight questions of four options (examples/llama3-medical.toml).
    """

    what: str
    config: Json
    kept: tuple[int, ...]
    trained: tuple[int, ...]
    protocol: str
    load: str
    batch: int = 1
    gate: bool = False
    paper_GB: float | None = None


def models(toy: bool) -> tuple[Json, Json]:
    """Three Llama-3-8B in one MoE, and Mixtral-8x7B, by the examples' configs."""
    llama = json.loads((EXAMPLES / "llama3-8b-x3.json").read_text())
    mixtral = tomllib.loads((EXAMPLES / "mixtral-glue.toml").read_text())["model"]["config"]
    mixtral["architectures"] = ["MixtralForCausalLM"]
    if toy:
        tiny = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 200}
        return llama | tiny | {"num_key_value_heads": 2}, mixtral | tiny | {"num_key_value_heads": 2}
    return llama, mixtral


def cases(device: str, toy: bool) -> list[Case]:
    llama, mixtral = models(toy)
    layers, room_GB = mixtral["num_hidden_layers"], capacity_GB(device)
    fits = layers if toy or room_GB > 105 else 24  # all of Mixtral-8x7B takes 93.4 GB in bf16
    found = []
    for batch in (1, 0) if toy else (1, 8, 0):
        tokens = f"{batch} × {LENGTH}" if batch else "8 questions × 4"
        own, sync = (PAPER["ems-fl-enhanced"], PAPER["sync"]) if batch != 8 else (None, None)
        found += [
            Case(f"3 × Llama-3-8B, 1 of 3 there, {tokens}", llama, (0,), (0,), "ems-fl-enhanced", "own", batch, paper_GB=own),
            Case(f"3 × Llama-3-8B, all, 1 trained, {tokens}", llama, (0, 1, 2), (0,), "ems-fl-enhanced", "all", batch),
            Case(f"3 × Llama-3-8B, all trained, {tokens}", llama, (0, 1, 2), (0, 1, 2), "sync", "all", batch, True, sync),
        ]
    found.append(Case("Mixtral-8x7B, 2 of 8 there", mixtral, (2, 5), (2, 5), "ems-fl-enhanced", "own"))
    for n in (layers,) if fits == layers else (12, fits):
        some = mixtral | {"num_hidden_layers": n}
        named = "Mixtral-8x7B" if n == layers else f"{n} of 32 layers of Mixtral-8x7B"
        found.append(Case(f"{named}, all 8, 2 trained", some, tuple(range(8)), (2, 5), "ems-fl-enhanced", "all"))
    return found


def capacity_GB(device: str) -> float:
    return torch.cuda.get_device_properties(0).total_memory / 1e9 if device == "cuda" else 0.0


def memory_rows(device: str, toy: bool, until: float) -> Iterator[Row]:
    """A row for each case, those of one sequence first; what does not fit or comes too late says so."""
    peaks: dict[str, float] = {}
    for case in sorted(cases(device, toy), key=lambda case: case.batch != 1):
        if time.monotonic() > until:
            yield Row(case.what, "not run", note="no time left")
            continue
        try:
            row = measured(case, device, toy)
        except torch.OutOfMemoryError as error:
            row = Row(case.what, "does not fit", note=str(error).splitlines()[0][:120])
        except Exception as error:
            row = failed(case.what, error)
        free(device)
        yield row
        peaks[case.what] = row.data.get("peak_GB", 0.0)
        if scaled := _scaled(peaks):
            yield scaled
            peaks.clear()


def _scaled(peaks: dict[str, float]) -> Row | None:
    """All of Mixtral-8x7B, from two numbers of layers, where it does not fit."""
    some = {int(what.split()[0]): peak for what, peak in peaks.items() if " of 32 layers" in what and peak}
    if len(some) < 2:
        return None
    (a, low), (b, high) = sorted(some.items())
    whole = high + (high - low) / (b - a) * (32 - b)
    return Row("Mixtral-8x7B, all 8, 2 trained", f"{whole:.2f} GB SCALED", note=f"a straight line through {a} and {b} layers")


def free(device: str) -> None:
    """A model's hooks refer to it, so that it goes with a collection alone."""
    if device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def measured(case: Case, device: str, toy: bool) -> Row:
    began_s = time.perf_counter()
    one, adapters = device_of(case, device, toy)
    parts = frozenset({*adapters, *(("gate",) if case.gate else ())})
    task = Task(parts, route=None if case.gate else frozenset(adapters))
    made_s = clock(device) - began_s
    held_GB = allocated(device)
    one.train(task, rounds=1)  # sets up the libraries
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began_s = clock(device)
    steps = one.train(task, rounds=STEPS)
    step_s = (clock(device) - began_s) / steps
    check(one, parts, case)
    peak_GB = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else 0.0
    reserved_GB = torch.cuda.max_memory_reserved() / 1e9 if device == "cuda" else 0.0
    beside = [f"predicted {foretold_GB(case):.2f}"] if case.batch else []
    beside += [f"paper {case.paper_GB:.2f}"] if case.paper_GB and not toy else []
    note = f"{1e3 * step_s:.0f} ms/step; weights and adapters {held_GB:.2f}, reserved {reserved_GB:.2f}; made in {made_s:.1f} s"
    data = {"peak_GB": peak_GB, "reserved_GB": reserved_GB, "held_GB": held_GB, "step_s": step_s}
    data |= {"predicted_GB": foretold_GB(case) if case.batch else None, "paper_GB": case.paper_GB}
    return Row(case.what, f"{peak_GB:.2f} GB" if device == "cuda" else "no GPU", ", ".join(beside), note, data)


def device_of(case: Case, device: str, toy: bool) -> tuple[Device, list[str]]:
    """A device with as much of the model as it holds; its frozen parts are the model's own tensors, not copies of them."""
    document = {**case.config, "num_local_experts": len(case.kept)}
    document["num_experts_per_tok"] = min(case.config["num_experts_per_tok"], len(case.kept))
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(parsed(document, case.what), dtype=torch.bfloat16)
    view = View(model, kept=case.kept)
    adapters = [f"expert:{m}" for m in case.trained]
    view.adapt(LoRA(RANK, 2.0 * RANK), seed=0, only=adapters)
    pieces = {part: Piece(part, 0, view.export(part) if is_expert(part) else view.parts[part]) for part in view.parts}
    if case.gate:
        pieces["gate"] = Piece("gate", 0, view.export("gate"))
    draw = torch.Generator().manual_seed(0)
    data = questions(case, draw, toy) if not case.batch else sequences(case, draw, toy)
    local = LocalTraining(batch_size=case.batch or 8, optimizer="adamw", lr_expert=1e-5, lr_gate=1e-5, cache_B=0)
    objective = CausalLM() if case.batch else MultipleChoice()
    return Device("gpu/0", view, data, pieces, local, 0, objective, "bf16"), adapters


def sequences(case: Case, draw: torch.Generator, toy: bool) -> dict[str, Tensor]:
    ids = torch.randint(3, case.config["vocab_size"], (2 * case.batch, 24 if toy else LENGTH), generator=draw)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.zeros(len(ids), dtype=torch.long)}


def questions(case: Case, draw: torch.Generator, toy: bool) -> dict[str, Tensor]:
    """Sixteen questions of four options; a question and its option have 384 tokens together."""
    option = 4 if toy else 32
    ids = torch.randint(3, case.config["vocab_size"], (16, (24 if toy else LENGTH) - option), generator=draw)
    options = torch.randint(3, case.config["vocab_size"], (16, 4, option), generator=draw)
    return {
        "question": ids,
        "question_mask": torch.ones_like(ids),
        "option": options,
        "option_mask": torch.ones_like(options),
        "option_characters": torch.full((16, 4), 100.0),
        "labels": torch.randint(0, 4, (16,), generator=draw),
    }


def foretold_GB(case: Case) -> float:
    """What ``fedexperts inspect --load`` says of this training phase."""
    work, experts = Work(case.batch, LENGTH, "bfloat16"), case.trained if case.protocol != "sync" else case.kept[:1]
    phases = memory(described({**case.config, "dtype": "bfloat16"}), experts, work, Training(RANK, case.load))
    return phases[case.protocol]["training"]["total_B"] / 1e9


def check(one: Device, parts: frozenset[str], case: Case) -> None:
    """The device trained what its row says, and all of it stayed finite."""
    assert set(one.trained) == parts, f"{case.what}: trained {sorted(one.trained)}"
    assert not one.diverged(parts), f"{case.what}: training left the finite numbers"
    met = [part for part in parts if any(bool((t != 0).any()) for n, t in one.trained[part].items() if n.endswith("lora_B"))]
    wanted = [part for part in parts if is_expert(part)]
    assert len(met) == len(wanted) or case.gate, f"{case.what}: of {wanted} only {met} have moved"
    assert met, f"{case.what}: no adapter has moved"


def allocated(device: str) -> float:
    return torch.cuda.memory_allocated() / 1e9 if device == "cuda" else 0.0


# ---- one layer


def layer_rows(device: str, toy: bool, until: float) -> Iterator[Row]:
    """Forward and backward of one MoE layer of Mixtral-8x7B, by the whole sequence and by the paper's 384 tokens."""
    wide, inner = (32, 64) if toy else (4096, 14336)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    for tokens in (64,) if toy else (16384, LENGTH):
        for frozen in (False, True):
            x_TD = torch.randn(tokens, wide, device=device, dtype=dtype, generator=torch.Generator(device).manual_seed(0))
            flops = (12 if frozen else 18) * tokens * 2 * wide * inner
            limit_s = timed(dense(x_TD, inner, frozen), device)
            title = f"{tokens} tokens, {'all frozen but adapters on 2' if frozen else 'all trained'}: "
            yield layer_row(title + "dense limit", limit_s, limit_s, flops, tokens)
            wanted: Tensor | None = None
            for name in ("ours", "eager", "grouped_mm"):
                if time.monotonic() > until:
                    yield Row(title + name, "not run", note="no time left")
                    continue
                try:
                    step, y_TD = of_layer(name, x_TD, inner, frozen)
                    wanted = y_TD if wanted is None else wanted
                    off_T = (y_TD - wanted).norm(dim=1) / wanted.norm(dim=1)
                    share = float((off_T > (3e-2 if dtype == torch.bfloat16 else 1e-4)).float().mean())
                    assert share < 0.05, f"{share:.1%} of its outputs are not ours"  # in bf16 gates tie, and picks are chance
                    yield layer_row(title + name, timed(step, device), limit_s, flops, tokens)
                except Exception as error:  # versions of the peer differ in what they can do
                    yield failed(title + name, error)
                step = None
                free(device)


def layer_row(what: str, took_s: float, limit_s: float, flops: float, tokens: int) -> Row:
    found = f"{tokens / took_s / 1e3:.1f} k tokens/s, {1e3 * took_s:.2f} ms"
    beside = f"{flops / took_s / 1e12:.3g} TFLOP/s, {limit_s / took_s:.2f} of dense"
    return Row(what, found, beside, data={"s": took_s, "share": limit_s / took_s, "flop_per_s": flops / took_s})


def dense(x_TD: Tensor, inner: int, frozen: bool, experts: int = 1) -> Callable[[], None]:
    """The matrix products of the same FLOPs, with two rows for each token, shared out evenly to so many experts' weights."""

    def drawn(*shape: int, leaf: bool = True) -> Tensor:
        return torch.randn(*shape, device=x_TD.device, dtype=x_TD.dtype).mul_(0.02).requires_grad_(leaf)

    wide, rows = x_TD.shape[1], 2 * len(x_TD) // experts
    leaves = [
        (drawn(rows, wide), drawn(2 * inner, wide, leaf=not frozen), drawn(rows, inner), drawn(wide, inner, leaf=not frozen))
        for _ in range(experts)
    ]
    gradients = [drawn(rows, 2 * inner, leaf=False), drawn(rows, wide, leaf=False)]

    def step() -> None:
        for x_PD, up_FD, h_PF, down_DF in leaves:
            torch.autograd.backward([F.linear(x_PD, up_FD), F.linear(h_PF, down_DF)], gradients)
            for leaf in (x_PD, up_FD, h_PF, down_DF):
                leaf.grad = None

    return step


def one_layer(hidden: int, inner: int, experts: int = 8) -> MixtralConfig:
    """A Mixtral of one layer, each token of which meets two experts."""
    return MixtralConfig(
        vocab_size=8,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_local_experts=experts,
        num_experts_per_tok=2,
    )


def passes(layer: Any, x_TD: Tensor, leaves: Sequence[Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Forward and backward of an MoE layer, and its output."""
    x_BTD = x_TD.detach()[None].requires_grad_()
    g_BTD = torch.randn_like(x_BTD)

    def output() -> Tensor:
        found = layer(x_BTD)
        return found[0] if isinstance(found, tuple) else found

    def step() -> None:
        output().backward(g_BTD)
        for leaf in (x_BTD, *leaves):
            leaf.grad = None

    with torch.no_grad():
        return step, output()[0].float()


def of_layer(name: str, x_TD: Tensor, inner: int, frozen: bool) -> tuple[Callable[[], None], Tensor]:
    """Forward and backward of the layer, ours or that of transformers' experts implementation ``name``, and its output."""
    torch.manual_seed(0)
    with torch.device(x_TD.device):
        model: Any = MixtralForCausalLM._from_config(one_layer(x_TD.shape[1], inner), dtype=x_TD.dtype)
    layer = model.model.layers[0].mlp
    if name == "ours":
        view, own = View(model), ["expert:2", "expert:5"]
        if frozen:
            view.adapt(LoRA(RANK, 8.0), seed=0, only=own)
        leaves = [leaf for _, _, leaf in view.freeze(but=own if frozen else [part for part in view.parts if is_expert(part)])]
    else:
        model.set_experts_implementation(name)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        leaves = [] if frozen else [layer.experts.gate_up_proj, layer.experts.down_proj]
        for leaf in leaves:
            leaf.requires_grad_(True)
    return passes(layer, x_TD, leaves)


def timed(step: Callable[[], None], device: str) -> float:
    """Median seconds of a step."""
    took = []
    for i in range(13 if device == "cuda" else 3):
        began_s = clock(device)
        step()
        took.append(clock(device) - began_s)
        if i < 2:
            took.clear()  # the first choose kernels and take memory
    return statistics.median(took)
