"""One MoE layer on one CPU thread, forward and backward: tokens a second of ours, of transformers' experts, of the dense limit.

    python benchmarks/moe.py [--repeats 7] [--hidden 512] [--intermediate 1792] [--tokens 1024] [--toy]

The layer is Mixtral's, 8 experts of which each token meets 2, in float32 and in bfloat16: all experts trained, and all frozen
but for adapters on two. Beside ours stand transformers' ``eager`` (a loop over experts) and ``grouped_mm``, and as the limit
the dense matrix products of the same FLOPs, two rows for each token, of one expert's weights; beside it the same rows shared
out to eight experts' weights, which have to be read too. With the gate masked to two experts of eight, the layer stands beside
one that has no others. All of a row take turns; told are medians, and that of the ratios of what was timed one after the other,
with the least and the greatest.

Asserted: all layers put out the same; counted by torch, ours makes the FLOPs of the limit, of the gate and of the adapters and
no others, so that frozen experts cost no gradient of a weight; masked experts cost no FLOP.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from gpu_large import RANK, dense, of_layer, one_layer, passes
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import MixtralForCausalLM

from fedexperts.moe.view import View

OTHERS = ("eager", "grouped_mm")
MASKED = ("expert:2", "expert:5")
Step = Callable[[], None]


def flops(step: Step) -> int:
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def masked(x_TD: Tensor, inner: int, experts: int) -> tuple[Step, Tensor]:
    """All trained of a layer that may use two experts only: of eight by a mask, or because there are no others."""
    torch.manual_seed(0)
    whole: Any = MixtralForCausalLM._from_config(one_layer(x_TD.shape[1], inner), dtype=x_TD.dtype)
    model, chosen = whole, [int(part.removeprefix("expert:")) for part in MASKED]
    if experts == 2:
        model = MixtralForCausalLM._from_config(one_layer(x_TD.shape[1], inner, 2), dtype=x_TD.dtype)
        mine, theirs = model.model.layers[0].mlp, whole.model.layers[0].mlp
        with torch.no_grad():
            mine.gate.weight.copy_(theirs.gate.weight[chosen])
            mine.experts.gate_up_proj.copy_(theirs.experts.gate_up_proj[chosen])
            mine.experts.down_proj.copy_(theirs.experts.down_proj[chosen])
    view = View(model)
    parts = MASKED if experts == 8 else ("expert:0", "expert:1")
    leaves = [leaf for _, _, leaf in view.freeze(but=parts)]
    view.route(parts)
    return passes(model.model.layers[0].mlp, x_TD, leaves)


def alternately(steps: dict[str, Step], repeats: int) -> dict[str, list[float]]:
    """Seconds of each, in turns of random order; the first turn chooses kernels and takes memory."""
    took: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(repeats + 1):
        for name in random.sample(sorted(steps), len(steps)):
            began_s = time.perf_counter()
            steps[name]()
            if i:
                took[name].append(time.perf_counter() - began_s)
    return took


def show(title: str, took: dict[str, list[float]], limit: str, tokens: int) -> None:
    for name, seconds in took.items():
        shares = sorted(a / b for a, b in zip(took[limit], seconds, strict=True))
        spread = "" if name == limit else f"({shares[0]:.2f}-{shares[-1]:.2f})"
        rate = tokens / statistics.median(seconds)
        print(f"{f'{title}, {name}':56} {rate:9,.0f} tokens/s {statistics.median(shares):7.3f} of {limit} {spread}", flush=True)


def same(name: str, found_TD: Tensor, wanted_TD: Tensor, dtype: torch.dtype) -> None:
    """In bf16 gates tie, and picks are chance."""
    off_T = (found_TD - wanted_TD).norm(dim=1) / wanted_TD.norm(dim=1)
    share = float((off_T > (3e-2 if dtype == torch.bfloat16 else 1e-4)).float().mean())
    assert share < 0.05, f"{name}: {share:.1%} of its outputs are not ours"


def rows(args: argparse.Namespace, dtype: torch.dtype) -> None:
    kind = str(dtype).removeprefix("torch.")
    T, D, F = args.tokens, args.hidden, args.intermediate
    x_TD = torch.randn(T, D, dtype=dtype, generator=torch.Generator().manual_seed(0))
    for frozen in (False, True):
        what = f"{kind}, {'frozen, adapters on 2' if frozen else 'all trained'}"
        steps: dict[str, Step] = {"dense": dense(x_TD, F, frozen)}
        steps["dense, 8 weights"] = dense(x_TD, F, frozen, 8)
        steps["ours"], wanted_TD = of_layer("ours", x_TD, F, frozen)
        limit, made = flops(steps["dense"]), flops(steps["ours"])
        gate = 2 * 2 * T * D * 8  # forward, and to the input
        adapters = frozen * 3 * 2 * RANK * 2 * T * ((D + F) + (D + F) + (F + D))  # each token on two of two at most
        assert limit + gate <= made <= limit + gate + adapters, f"{what}: {made:,} FLOPs, and the limit has {limit:,}"
        for name in OTHERS:
            try:
                step, found_TD = of_layer(name, x_TD, F, frozen)
                step()
            except Exception as error:  # versions of the peer differ in what they can do
                print(f"{f'{what}, {name}':56} not compared: {' '.join(str(error).split())[:90]}", flush=True)
                continue
            same(name, found_TD, wanted_TD, dtype)
            steps[name] = step
        show(what, alternately(steps, args.repeats), "dense", T)
    made = {f"{n} experts": masked(x_TD, F, n) for n in (2, 8)}
    same("two experts", *(found_TD for _, found_TD in made.values()), dtype)
    both = {name: flops(step) for name, (step, _) in made.items()}
    more = both["8 experts"] - both["2 experts"]
    assert more == 2 * 2 * T * D * 6, f"{kind}: six masked experts cost {more:,} FLOPs, and their rows of the gate fewer"
    took = alternately({name: step for name, (step, _) in made.items()}, args.repeats)
    show(f"{kind}, masked to 2, trained", took, "2 experts", T)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--intermediate", type=int, default=1792)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--toy", action="store_true", help="smallest size, one repetition; the figures mean nothing")
    args = parser.parse_args(argv)
    if args.toy:
        args.repeats, args.hidden, args.intermediate, args.tokens = 1, 32, 64, 64
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for dtype in (torch.float32, torch.bfloat16):
        rows(args, dtype)
    torch.set_num_threads(threads)


if __name__ == "__main__":
    main()
