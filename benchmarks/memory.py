"""Memory of one device by what it loads: peak of anonymous memory and of the resident set, by phase, beside the floor.

    python benchmarks/memory.py [--hidden 1024] [--intermediate 3584] [--layers 8] [--repeats 3]

A Mixtral of 8 experts and some 1.5 GB in float32 is written to a temporary folder. Each mode then runs in a fresh process:
load, and one step of training (forward, backward, AdamW) of the adapters on the device's experts. Modes: "full" loads all
experts frozen and adapts 2; "PEFT" adapts all of them its own way; "subset" loads 2 experts and the gate's rows (enhanced
EMS-FL); "streamed" holds the same 2 and reads the others from the file when tokens meet them, for the trial pass and the gate
tail. The floor is the interpreter with its imports, and the bytes that must be there: weights, adapters, gradients and
AdamW's moments. Anonymous memory leaves out pages of files (mapped safetensors), which the kernel can drop at any time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

OWNED, RANK, TOKENS = (2, 5), 4, (1, 64)
MODES = ("interpreter", "full", "PEFT", "subset", "streamed")


def write(folder: Path, args: argparse.Namespace) -> None:
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=2000,
        hidden_size=args.hidden,
        intermediate_size=args.intermediate,
        num_hidden_layers=args.layers,
        num_attention_heads=16,
        num_key_value_heads=4,
        num_local_experts=8,
        num_experts_per_tok=2,
    )
    MixtralForCausalLM(config).save_pretrained(folder, max_shard_size="400MB")


class Peaks:
    """Samples /proc/self/smaps_rollup from a thread; `read` gives the peaks since the last reading."""

    def __init__(self) -> None:
        self.lock, self.rss, self.anonymous = threading.Lock(), 0, 0
        threading.Thread(target=self._loop, daemon=True).start()

    def _loop(self) -> None:
        while True:
            self._sample()
            time.sleep(0.005)

    def _sample(self) -> None:
        fields = {
            line.split()[0]: int(line.split()[1]) for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
        }
        with self.lock:
            self.rss, self.anonymous = max(self.rss, fields["Rss:"]), max(self.anonymous, fields["Anonymous:"])

    def read(self) -> dict[str, int]:
        self._sample()
        with self.lock:
            peaks = {"anonymous_B": 1024 * self.anonymous, "rss_B": 1024 * self.rss}
            self.rss = self.anonymous = 0
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
    """One mode in this process: peaks by phase, and what the model and its training must hold."""
    import torch
    from transformers import AutoModelForCausalLM

    from fedexperts.moe.checkpoint import Checkpoint
    from fedexperts.moe.lora import LoRA
    from fedexperts.moe.meta import meta_view, read_config
    from fedexperts.moe.size import Work, activations_B, shape
    from fedexperts.moe.subset import load_full, load_streamed, load_subset
    from fedexperts.moe.view import View

    torch.set_num_threads(1)
    ids = torch.randint(0, 2000, TOKENS, generator=torch.Generator().manual_seed(0))
    imports()
    peaks = Peaks()
    phases = {"start": peaks.read()}
    if mode == "interpreter":
        return {"phases": phases}
    if mode == "PEFT":
        from peft import LoraConfig, get_peft_model

        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        phases["load"] = peaks.read()
        names = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
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
            view.observe([{"input_ids": ids}])
            phases["trial pass"] = peaks.read()
        view.model.train()
        gate = ["gate"] if mode == "streamed" else []  # the gate tail trains the gate alone
        trained = [leaf for _, _, leaf in view.freeze(but=gate or parts)]
        logits = lambda: view({"input_ids": ids})  # noqa: E731
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    torch.nn.functional.cross_entropy(logits()[0, :-1], ids[0, 1:]).backward()
    optimizer.step()
    phases["gate tail" if mode == "streamed" else "training"] = peaks.read()
    numbers = sum(tensor.numel() for tensor in trained)
    own = {"full": len(OWNED) / 8, "streamed": 0.0}.get(mode, 1.0)  # share of the picks that meet a trained expert
    size = shape(meta_view(read_config(str(folder))))
    saved = activations_B(size, Work(*TOKENS, "float32"), own, RANK, gate=mode == "streamed")
    held = sum(parameter.nbytes for parameter in model.parameters() if not parameter.requires_grad)
    return {"phases": phases, "must_B": held + 16 * numbers + sum(saved.values())}


def measured(mode: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", mode, "--folder", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"{mode}: {result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("hidden", 1024), ("intermediate", 3584), ("layers", 4), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--child", choices=MODES)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args.child, args.folder)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        write(folder, args)
        size = sum(p.stat().st_size for p in folder.glob("*.safetensors"))
        report(size, {mode: [measured(mode, folder) for _ in range(args.repeats)] for mode in MODES})


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
