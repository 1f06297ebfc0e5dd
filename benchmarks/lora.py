"""Step time with adapters on 2 of 8 experts: ours, PEFT's, and what forward and backward through frozen weights cost.

    python benchmarks/lora.py [--repeats 7] [--hidden 512] [--intermediate 1024] [--layers 2] [--tokens 2048]

A step is forward, loss and backward, without the optimiser. "frozen" is the same model with no adapter, with the gradient
carried down to the embeddings: what any adapter in the first layer has to pay for. The limit is the dense products of the
same FLOPs, forward and backward to the input, as one matrix product each. PEFT adapts all experts; it cannot do less.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import MixtralConfig, MixtralForCausalLM

from fedexperts.moe.lora import LoRA
from fedexperts.moe.view import View

RANK, OWNED = 4, ("expert:2", "expert:5")


def build(args: argparse.Namespace) -> Any:
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=1000,
        hidden_size=args.hidden,
        intermediate_size=args.intermediate,
        num_hidden_layers=args.layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        num_local_experts=8,
        num_experts_per_tok=2,
    )
    return MixtralForCausalLM(config)


def frozen(model: Any, ids: torch.Tensor) -> Callable[[], None]:
    view = View(copy.deepcopy(model))
    embedded = view.model.model.embed_tokens(ids).detach().requires_grad_()

    def step() -> None:
        embedded.grad = None
        view({"inputs_embeds": embedded}).pow(2).mean().backward()

    return step


def ours(model: Any, ids: torch.Tensor, owned: Sequence[str]) -> Callable[[], None]:
    view = View(copy.deepcopy(model))
    view.adapt(LoRA(RANK, 2 * RANK), seed=0, only=owned)
    leaves = [leaf for _, _, leaf in view.freeze(but=owned)]

    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        view({"input_ids": ids}).pow(2).mean().backward()

    return step


def with_peft(model: Any, ids: torch.Tensor) -> Callable[[], None] | None:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        return None
    names = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=[], target_parameters=names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing else is adapted
        adapted = get_peft_model(copy.deepcopy(model), config)

    def step() -> None:
        adapted.zero_grad(set_to_none=True)
        adapted(input_ids=ids).logits.pow(2).mean().backward()

    return step


def products(args: argparse.Namespace) -> Callable[[], None]:
    """Gate, up and down projection of two experts per token, forward and backward to the input, in every layer."""
    wide = torch.randn(2 * args.intermediate, args.hidden)
    down = torch.randn(args.hidden, args.intermediate)
    x, h = torch.randn(2 * args.tokens, args.hidden), torch.randn(2 * args.tokens, args.intermediate)
    y = torch.randn(2 * args.tokens, 2 * args.intermediate)

    def step() -> None:
        for _ in range(args.layers):
            x @ wide.T, h @ down.T, y @ wide, x @ down

    return step


def timed(step: Callable[[], None], repeats: int) -> list[float]:
    step()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("repeats", 7), ("hidden", 512), ("intermediate", 1024), ("layers", 2), ("tokens", 2048)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = build(args)
    ids = torch.randint(0, 1000, (8, args.tokens // 8))
    rows = {
        "frozen, no adapter": frozen(model, ids),
        "ours, 2 of 8 experts": ours(model, ids, OWNED),
        "ours, all 8 experts": ours(model, ids, [f"expert:{m}" for m in range(8)]),
        "PEFT, all 8 experts": with_peft(model, ids),
        "limit: expert products": products(args),
    }
    samples: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(args.repeats):  # interleaved, so that a busy moment does not fall on one of them alone
        for name, step in rows.items():
            if step is not None:
                samples[name] += timed(step, 1)
    base = statistics.median(samples["frozen, no adapter"])
    print(f"D {args.hidden}, F {args.intermediate}, {args.layers} layers, 8 experts, Top-2, {args.tokens} tokens, one thread")
    print(f"{'':24} {'median ms':>10} {'min–max':>16} {'/ frozen':>9}")
    for name, seconds in samples.items():
        if not seconds:
            print(f"{name:24} {'not installed':>10}")
            continue
        spread = f"{1e3 * min(seconds):.0f}–{1e3 * max(seconds):.0f}"
        middle = statistics.median(seconds)
        print(f"{name:24} {1e3 * middle:10.0f} {spread:>16} {middle / base:9.2f}")


if __name__ == "__main__":
    main()
