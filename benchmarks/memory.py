"""Memory of one device by what it loads: peak of anonymous memory and of the resident set, by phase, beside the floor.

    python benchmarks/memory.py [--hidden 1024] [--intermediate 3584] [--layers 4] [--repeats 3] [--toy]

Two tables: what a device loads, and what it costs to keep 2 to 8 of 8 experts (memory_cache.py).

A Mixtral of 8 experts and some 1.5 GB in float32 is written to a temporary folder. Each mode then runs in a fresh process:
load, and one step of training (forward, backward, AdamW) of the adapters on the device's experts. Modes: "full" loads all
experts frozen and adapts 2; "PEFT" adapts all of them its own way; "subset" loads 2 experts and the gate's rows (enhanced
EMS-FL); "streamed" holds the same 2 and reads the others from the file when tokens meet them, for the trial pass and the gate
tail. The floor is the interpreter with its imports, and the bytes that must be there: weights, adapters, gradients and
AdamW's moments. Anonymous memory leaves out pages of files (mapped safetensors), which the kernel can drop at any time.

Asserted in each process: the model holds the experts that its mode says and no others; trained are the adapters of its rank on
the device's experts (PEFT's: on all; the gate tail's: the gate), each got a gradient, and the step changed them; nothing else
has a gradient; every phase was sampled. Over all: "full", "PEFT" and "streamed" have the same loss, and "subset" that of the
whole model with its gate masked to the same experts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import memory_cache

OWNED, RANK, TOKENS = (3, 7), 4, (1, 64)
EXPERTS, TOP_K, VOCABULARY = 8, 2, 2000
TIMED, DOMAIN_TOKENS = 3, (2, 64)
MODES = ("interpreter", "full", "PEFT", "subset", "streamed")


def inputs() -> Any:
    import torch

    return torch.randint(0, VOCABULARY, TOKENS, generator=torch.Generator().manual_seed(0))


def write(folder: Path, args: argparse.Namespace) -> float:
    """A model as a checkpoint; its loss with the gate masked to the device's experts."""
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    from fedexperts.moe.view import View

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=args.hidden,
        intermediate_size=args.intermediate,
        num_hidden_layers=args.layers,
        num_attention_heads=16,
        num_key_value_heads=4,
        num_local_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
    )
    model = MixtralForCausalLM(config)
    model.save_pretrained(folder, max_shard_size="400MB")
    view, ids = View(model), inputs()
    view.route({f"expert:{m}" for m in OWNED})
    with torch.no_grad():
        return float(torch.nn.functional.cross_entropy(view({"input_ids": ids})[0, :-1], ids[0, 1:]))


class Peaks:
    """Within the block samples /proc/self/smaps_rollup from a thread; `read` gives the peaks since the last reading."""

    def __init__(self) -> None:
        self.lock, self.rss, self.anonymous, self.samples = threading.Lock(), 0, 0, 0
        self.over, self.thread = threading.Event(), threading.Thread(target=self._loop, daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    def _loop(self) -> None:
        while not self.over.wait(0.005):
            self._sample()

    def _sample(self) -> None:
        fields = {
            line.split()[0]: int(line.split()[1]) for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
        }
        with self.lock:
            self.rss, self.anonymous = max(self.rss, fields["Rss:"]), max(self.anonymous, fields["Anonymous:"])
            self.samples += 1

    def read(self) -> dict[str, int]:
        self._sample()
        with self.lock:
            peaks = {"anonymous_B": 1024 * self.anonymous, "rss_B": 1024 * self.rss, "samples": self.samples}
            self.rss = self.anonymous = self.samples = 0
        return peaks


def imports() -> None:
    """One step of a tiny model: torch and transformers import and set up much of themselves on first use."""
    import torch
    from transformers import AutoModelForCausalLM, MixtralConfig

    from fedexperts.moe.view import View

    tiny = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    view = View(AutoModelForCausalLM.from_config(MixtralConfig(vocab_size=8, num_key_value_heads=2, **tiny)))
    leaves = [leaf for _, _, leaf in view.freeze(but=["gate"])]
    optimizer = torch.optim.AdamW(leaves)
    view({"input_ids": torch.zeros(1, 4, dtype=torch.long)}).sum().backward()
    optimizer.step()


def child(mode: str, folder: Path) -> dict[str, Any]:
    """One mode in this process: peaks by phase, what the model and its training must hold, and the loss."""
    import torch

    torch.set_num_threads(1)
    imports()
    with Peaks() as peaks:
        return step(mode, folder, peaks)


def step(mode: str, folder: Path, peaks: Peaks) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM

    from fedexperts.moe.checkpoint import Checkpoint
    from fedexperts.moe.lora import LoRA
    from fedexperts.moe.size import Work, activations_B
    from fedexperts.moe.sized import named
    from fedexperts.moe.subset import load_full, load_streamed, load_subset
    from fedexperts.moe.view import View

    ids = inputs()
    phases = {"start": peaks.read()}
    if mode == "interpreter":
        return {"phases": phases}
    if mode == "PEFT":
        from peft import LoraConfig, get_peft_model

        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        phases["load"] = peaks.read()
        names = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that nothing else is adapted
            adapted = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=8, target_modules=[], target_parameters=names))
        trained = [p for p in adapted.parameters() if p.requires_grad]
        logits = lambda: adapted(input_ids=ids).logits  # noqa: E731  # as short as its twin below
    else:
        if mode == "subset":
            model = load_subset(folder, OWNED, AutoModelForCausalLM)
            view = View(model, kept=OWNED)
        elif mode == "streamed":
            model = load_streamed(folder, OWNED, AutoModelForCausalLM)
            view = View(model, kept=OWNED, stream=Checkpoint(folder))
        else:
            model = load_full(folder, AutoModelForCausalLM)
            view = View(model)
        phases["load"] = peaks.read()
        parts = [f"expert:{m}" for m in OWNED]
        view.adapt(LoRA(RANK, 8), seed=0, only=parts)
        if mode in ("full", "streamed"):
            counts_LM, _ = view.observe([{"input_ids": ids}])
            phases["trial pass"] = peaks.read()
        view.model.train()
        gate = ["gate"] if mode == "streamed" else []  # the gate tail trains the gate alone
        trained = [leaf for _, _, leaf in view.freeze(but=gate or parts)]
        logits = lambda: view({"input_ids": ids})  # noqa: E731
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    before = [tensor.detach().flatten()[-1].item() for tensor in trained]
    loss = torch.nn.functional.cross_entropy(logits()[0, :-1], ids[0, 1:])
    loss.backward()
    optimizer.step()
    phases["gate tail" if mode == "streamed" else "training"] = peaks.read()
    numbers = sum(tensor.numel() for tensor in trained)
    check(mode, model, trained, before)
    met = counts_LM[:, OWNED].sum() / counts_LM.sum() if mode == "full" else 1.0
    own = 0.0 if mode == "streamed" else float(met)  # share of the picks that meet a trained expert
    size = named(str(folder)).shape
    assert size is not None
    saved = activations_B(size, Work(*TOKENS, "float32"), own, RANK, gate=mode == "streamed")
    held = sum(parameter.nbytes for parameter in model.parameters() if not parameter.requires_grad)
    return {"phases": phases, "must_B": held + 16 * numbers + sum(saved.values()), "loss": loss.item()}


def cached(folder: Path, resident: int, count: int) -> dict[str, Any]:
    """Steps in this process with so many experts resident."""
    import torch

    torch.set_num_threads(1)
    imports()
    return memory_cache.steps(folder, resident, DOMAIN_TOKENS, count, Peaks)


def check(mode: str, model: Any, trained: list[Any], before: list[float]) -> None:
    """What the docstring claims of one mode's process, after its step."""
    c = model.config
    D, F, L = c.hidden_size, c.intermediate_size, c.num_hidden_layers
    resident = {"subset": len(OWNED), "streamed": len(OWNED)}.get(mode, EXPERTS)
    held = sum(
        p.numel() for name, p in model.named_parameters() if name.endswith(("experts.gate_up_proj", "experts.down_proj"))
    )
    if mode != "PEFT":  # which renames what it wraps
        assert held == L * resident * 3 * D * F, f"{mode}: holds {held} numbers of experts, not {resident} experts"
    expected = {"PEFT": EXPERTS * L * RANK * (2 * D + 3 * F), "streamed": L * EXPERTS * D}
    numbers = sum(tensor.numel() for tensor in trained)
    ours = len(OWNED) * L * 3 * RANK * (D + F)
    assert numbers == expected.get(mode, ours), f"{mode}: trains {numbers} numbers, not {expected.get(mode, ours)}"
    assert all(tensor.grad is not None for tensor in trained), f"{mode}: a trained tensor got no gradient"
    known = {id(tensor) for tensor in trained}
    others = [name for name, p in model.named_parameters() if p.grad is not None and id(p) not in known]
    assert not others, f"{mode}: gradients of {others} too"
    moved = sum(tensor.detach().flatten()[-1].item() != old for tensor, old in zip(trained, before, strict=True))
    assert moved, f"{mode}: the step changed nothing"


def measured(mode: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", mode, "--folder", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # a failed assertion is in its stderr
    if result.returncode:
        sys.exit(f"{mode}: {result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])


def agree(runs: dict[str, list[dict[str, Any]]], masked: float) -> None:
    """All modes were sampled in every phase, and compute the function that they should."""
    for mode, results in runs.items():
        for result in results:
            few = [phase for phase, peaks in result["phases"].items() if peaks["samples"] < 1 or not peaks["anonymous_B"]]
            assert not few, f"{mode}: no sample of {few}"
    whole = [result["loss"] for mode in ("full", "PEFT", "streamed") for result in runs[mode]]
    assert max(whole) - min(whole) < 1e-4, f"losses of the same function: {whole}"
    subset = [result["loss"] for result in runs["subset"]]
    assert all(abs(loss - masked) < 1e-4 for loss in subset), f"losses {subset} of a subset, {masked} of the model masked to it"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("hidden", 1024), ("intermediate", 3584), ("layers", 4), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--child", choices=MODES)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--resident", type=int)
    parser.add_argument("--toy", action="store_true", help="smallest size, one process; the figures mean nothing")
    args = parser.parse_args(argv)
    if args.toy:
        args.hidden, args.intermediate, args.layers, args.repeats = 32, 32, 1, 1
    if args.child:
        print(json.dumps(child(args.child, args.folder)))
        return
    if args.resident is not None:
        print(json.dumps(cached(args.folder, args.resident, TIMED)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        masked = write(folder, args)
        size = sum(p.stat().st_size for p in folder.glob("*.safetensors"))
        fresh = ("streamed",) if args.toy else MODES  # at toy size the others share this process
        runs = {
            mode: [measured(mode, folder) if mode in fresh else child(mode, folder) for _ in range(args.repeats)]
            for mode in MODES
        }
        agree(runs, masked)
        report(size, runs)
        domain = Path(name) / "domain"
        memory_cache.write(domain, args.hidden, args.intermediate, args.layers)
        floor_MB = statistics.median(run["phases"]["start"]["anonymous_B"] for run in runs["interpreter"]) / 1e6
        if args.toy:
            memory_cache.show({n: [cached(domain, n, 1)] for n in (0, *memory_cache.RESIDENT)}, floor_MB)
        else:
            memory_cache.table(domain, __file__, args.repeats, floor_MB)


def report(size_B: int, runs: dict[str, list[dict[str, Any]]]) -> None:
    def peak(run: dict[str, Any], kind: str) -> float:
        return max(phase[kind] for phase in run["phases"].values()) / 1e6

    def middle(mode: str, kind: str) -> float:
        return statistics.median(peak(run, kind) for run in runs[mode])

    base = middle("interpreter", "anonymous_B")
    print(
        f"checkpoint {size_B / 1e6:.0f} MB, 8 experts, device owns {list(OWNED)}, rank {RANK}; MB, median of "
        f"{len(runs['full'])}"
    )
    print(f"{'':12}{'anonymous':>12}{'RSS':>10}{'floor':>10}{'× floor':>9}{'/ full':>8}   anonymous peak by phase")
    for mode, results in runs.items():
        anonymous = middle(mode, "anonymous_B")
        floor = results[0].get("must_B", 0) / 1e6
        phases = {p: statistics.median(r["phases"][p]["anonymous_B"] / 1e6 for r in results) for p in results[0]["phases"]}
        shown = ", ".join(f"{phase} {value:.0f}" for phase, value in phases.items())
        above = (anonymous - base) / floor if floor else 0.0
        print(
            f"{mode:12}{anonymous:12.0f}{middle(mode, 'rss_B'):10.0f}{floor:10.0f}{above:9.2f}"
            f"{anonymous / middle('full', 'anonymous_B'):8.2f}   {shown}"
        )


if __name__ == "__main__":
    main()
