"""Step time with adapters on 2 of 8 experts: ours, PEFT's, and what forward and backward through frozen weights cost.

    python benchmarks/lora.py [--repeats 7] [--hidden 512] [--intermediate 1024] [--layers 2] [--tokens 2048] [--toy]

A step is forward, loss and backward, without the optimiser. "frozen" is the same model with no adapter, with the gradient
carried down to the embeddings: what any adapter in the first layer has to pay for. The limit is the dense products of the
same FLOPs, forward and backward to the input, as one matrix product each. PEFT adapts all experts; it cannot do less.

Asserted: all models have the same loss, as adapters start at zero; a step leaves a gradient on every tensor that its row names
and on no other; these are as many as rank and experts say; "frozen" computes the FLOPs of the limit and, besides, those of
attention, gate and head.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import MixtralConfig, MixtralForCausalLM

from fedexperts.moe.lora import LoRA
from fedexperts.moe.view import View

RANK, OWNED, EXPERTS, TOP_K = 4, ("expert:2", "expert:5"), 8, 2
HEADS, KV_HEADS, VOCABULARY, BATCH = 8, 4, 1000, 8


@dataclass(frozen=True)
class Row:
    """A step that returns its loss, the tensors that it finds gradients of, and the model."""

    step: Callable[[], Tensor]
    trained: list[Tensor]
    model: nn.Module


def build(args: argparse.Namespace) -> Any:
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=args.hidden,
        intermediate_size=args.intermediate,
        num_hidden_layers=args.layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        num_local_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
    )
    return MixtralForCausalLM(config)


def back(logits: Tensor) -> Tensor:
    loss = logits.pow(2).mean()
    loss.backward()
    return loss.detach()


def frozen(model: Any, ids: Tensor) -> Row:
    view = View(copy.deepcopy(model))
    embedded = view.model.model.embed_tokens(ids).detach().requires_grad_()

    def step() -> Tensor:
        embedded.grad = None
        return back(view({"inputs_embeds": embedded}))

    return Row(step, [embedded], view.model)


def ours(model: Any, ids: Tensor, owned: Sequence[str], args: argparse.Namespace) -> Row:
    view = View(copy.deepcopy(model))
    view.adapt(LoRA(RANK, 2 * RANK), seed=0, only=owned)
    leaves = [leaf for _, _, leaf in view.freeze(but=owned)]
    each = args.layers * 3 * RANK * (args.hidden + args.intermediate)  # three projections, factored apart
    assert sum(map(Tensor.numel, leaves)) == len(owned) * each, f"{sum(map(Tensor.numel, leaves))} numbers in our adapters"

    def step() -> Tensor:
        for leaf in leaves:
            leaf.grad = None
        return back(view({"input_ids": ids}))

    return Row(step, leaves, view.model)


def with_peft(model: Any, ids: Tensor, args: argparse.Namespace) -> Row | None:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        return None
    names = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=[], target_parameters=names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing else is adapted
        adapted = get_peft_model(copy.deepcopy(model), config)
    trained = [p for p in adapted.parameters() if p.requires_grad]
    each = args.layers * RANK * (2 * args.hidden + 3 * args.intermediate)  # gate and up are one matrix
    assert sum(map(Tensor.numel, trained)) == EXPERTS * each, f"{sum(map(Tensor.numel, trained))} numbers in PEFT's adapters"

    def step() -> Tensor:
        adapted.zero_grad(set_to_none=True)
        return back(adapted(input_ids=ids).logits)

    return Row(step, trained, adapted)


def products(args: argparse.Namespace) -> Callable[[], None]:
    """Gate, up and down projection of two experts per token, forward and backward to the input, in every layer."""
    wide = torch.randn(2 * args.intermediate, args.hidden)
    down = torch.randn(args.hidden, args.intermediate)
    x, h = torch.randn(TOP_K * args.tokens, args.hidden), torch.randn(TOP_K * args.tokens, args.intermediate)
    y = torch.randn(TOP_K * args.tokens, 2 * args.intermediate)

    def step() -> None:
        for _ in range(args.layers):
            x @ wide.T, h @ down.T, y @ wide, x @ down

    return step


def flops(step: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def check(rows: dict[str, Row], limit: Callable[[], None], args: argparse.Namespace) -> None:
    """What the docstring claims of the steps."""
    losses = {name: float(row.step()) for name, row in rows.items()}
    first = next(iter(losses.values()))
    assert all(abs(loss - first) < 1e-4 * abs(first) for loss in losses.values()), f"the models differ: {losses}"
    for name, row in rows.items():
        known = {id(tensor) for tensor in row.trained}
        assert all(tensor.grad is not None for tensor in row.trained), f"{name}: a tensor got no gradient"
        assert any(tensor.grad.abs().sum() > 0 for tensor in row.trained), f"{name}: all gradients are zero"
        others = [n for n, p in row.model.named_parameters() if p.grad is not None and id(p) not in known]
        assert not others, f"{name}: gradients of {others} too"
    D, rest = args.hidden, 2 * args.hidden * VOCABULARY
    rest += args.layers * 2 * args.hidden * (2 * D + 2 * D * KV_HEADS // HEADS + EXPERTS)
    rest *= 2 * args.tokens  # forward, and backward to the input
    found = flops(rows["frozen, no adapter"].step)
    assert found == flops(limit) + rest, f"frozen: {found} FLOPs, the limit {flops(limit)}, other products {rest}"


def timed(step: Callable[[], Any]) -> float:
    """Seconds of one step, after another for warm-up."""
    step()
    began_s = time.perf_counter()
    step()
    return time.perf_counter() - began_s


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("repeats", 7), ("hidden", 512), ("intermediate", 1024), ("layers", 2), ("tokens", 2048)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--toy", action="store_true", help="smallest size, one repetition; the figures mean nothing")
    args = parser.parse_args(argv)
    if args.toy:
        args.repeats, args.hidden, args.intermediate, args.layers, args.tokens = 1, 16, 16, 1, 64
    torch.set_num_threads(1)
    model = build(args)
    ids = torch.randint(0, VOCABULARY, (BATCH, args.tokens // BATCH))
    rows = {
        "frozen, no adapter": frozen(model, ids),
        "ours, 2 of 8 experts": ours(model, ids, OWNED, args),
        "ours, all 8 experts": ours(model, ids, [f"expert:{m}" for m in range(EXPERTS)], args),
        "PEFT, all 8 experts": with_peft(model, ids, args),
    }
    limit = products(args)
    check({name: row for name, row in rows.items() if row is not None}, limit, args)
    steps = {name: row and row.step for name, row in rows.items()} | {"limit: expert products": limit}
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(args.repeats):  # interleaved, so that a busy moment does not fall on one of them alone
        for name, step in steps.items():
            if step is not None:
                samples[name].append(timed(step))
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
