"""What a GPU does with the same code: results beside the CPU's, memory and time of large models, one MoE layer, images.

    python benchmarks/gpu.py [--minutes 7.5] [--out runs/gpu] [--toy]

benchmarks/gpu.sh runs it where nothing is installed but a Python with torch for CUDA. Four parts, each in a process and with a
time of its own, so that one that fails or takes too long costs the others nothing; what is left of its time goes to the next:

- layer: forward and backward of a MoE layer of Mixtral-8x7B, beside the dense matrix products of the same FLOPs and
  transformers' experts implementations (`gpu_large`);
- memory: steps of a device with three Llama-3-8B in one MoE and with Mixtral-8x7B, random weights in bf16, adapters on the
  trained experts, holding its own experts or all of them; beside the paper's Table I and ``fedexperts inspect`` (`gpu_large`);
- same: CPU against GPU (`gpu_same`);
- images: examples/nmoe-cifar10.toml at ResNet-18's full width, FedSC and FedCE, with stages as long as the time allows, of
  those files of CIFAR-10 that are in $FEDEXPERTS_DATA.

The table goes to the terminal and to ``table.txt`` in --out, part by part, and all numbers to ``gpu.json``. Asserted: logits,
gradient steps and streamed experts agree with the CPU's; large models train what their row says and nothing else; all layers
put out the same. The exit code is 1 if a part or a row failed. With --toy all of it runs through on the CPU at the smallest
size.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from gpu_table import FAILED, Row, clock, failed, line, tried

PARTS = {"layer": 0.15, "memory": 0.29, "same": 0.26, "images": 0.30}
"""Shares of the time."""
SPARE_S, GRACE_S = 8.0, 10.0
"""A part begins nothing in its last seconds, and is ended after so many more if it does not stop by itself."""
EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "nmoe-cifar10.toml"
STAGES = {"extractor_cycles": 40, "expert_cycles": 40, "gate_cycles": 30}
"""The example's."""
LEFT = 0.6
"""Part of the time that the steps of a run of images may take by the estimate; reading images and judging take the rest."""


MOVED_S = 2e-3
"""Of a step besides: drawing and cutting images, and parts that come and go [E]."""


def rows_of(part: str, device: str, toy: bool, until: float) -> Iterator[Row]:
    if part == "images":
        return image_rows(device, toy, until)
    if part == "same":
        import gpu_same

        return gpu_same.rows(device, toy, until)
    import gpu_large

    return (gpu_large.layer_rows if part == "layer" else gpu_large.memory_rows)(device, toy, until)


# ---- images


class TimeIsUp(Exception):  # noqa: N818  # no error: the run has taken the time that it was given
    pass


def image_rows(device: str, toy: bool, until: float) -> Iterator[Row]:
    for i, extractor in enumerate(("fedsc", "fedce")):
        left_s = (until - time.monotonic()) / (2 - i)
        with tempfile.TemporaryDirectory() as name:
            yield tried(f"images, {extractor}", partial(images, extractor, device, toy, left_s, Path(name)))


def images(extractor: str, device: str, toy: bool, left_s: float, base: Path) -> Row:
    """A whole run of the Networked MoE, or what it had reached when the time was up."""
    from fedexperts import Scenario, run

    began_s, last = time.monotonic(), dict[str, Any]()
    scenario = Scenario.load(EXAMPLE, [f"model.accelerator={device}", "model.config.width=64", "model.config.stem_stride=1"])
    scenario = toy_images(scenario, base) if toy else scenario.changed(cluster=[with_images(scenario)])
    step_s = step_time_s(scenario, extractor, device)
    full_s = step_s * scenario.train.local_steps * scenario.cluster[0].devices * STAGES["extractor_cycles"]
    share = 0.03 if toy else min(1.0, LEFT * left_s / full_s)
    stages = {name: max(1, round(share * cycles)) for name, cycles in STAGES.items()}
    cycles = sum(stages.values())
    scenario = scenario.changed(
        networked={"extractor": extractor, **stages},
        train={"cycles": cycles},
        evaluation={"every_cycles": max(1, cycles // 4)},
    )

    def listener(event: dict[str, Any]) -> None:
        if event["event"] in ("evaluate", "end"):
            last.update(event)
        if last and event["event"] != "end" and time.monotonic() - began_s > left_s:
            raise TimeIsUp

    ended = "whole run"
    try:
        run(scenario, base / "run", listener=listener)
    except TimeIsUp:
        ended = f"STOPPED after cycle {last['cycle']} of {cycles}"
    train, samples = scenario.train, scenario.cluster[0].samples
    made = stages["extractor_cycles"] if ended == "whole run" else min(last["cycle"], stages["extractor_cycles"])
    epochs = made * train.local_steps * train.batch_size * scenario.cluster[0].devices / samples
    keys = ("accuracy", "macro_f1", "macro_auc", "personal_accuracy", "local_ratio")
    found = {key: last[key] for key in keys} | {"even_accuracy": last["even_test"]["accuracy"]}
    return Row(
        f"{extractor}, width {scenario.model.config['width']}, {'/'.join(map(str, stages.values()))} cycles",
        f"accuracy {100 * found['accuracy']:.1f} %, even {100 * found['even_accuracy']:.1f} %",
        f"own expert alone {100 * found['personal_accuracy']:.1f} %, F1 {found['macro_f1']:.3f}",
        f"{ended}; {epochs:.1f} epochs of the extractor over {samples} images; {time.monotonic() - began_s:.0f} s, "
        f"{1e3 * step_s:.1f} ms/step",
        {**found, "stages": stages, "step_s": step_s, "epochs": epochs, "ended": ended},
    )


def with_images(scenario: Any) -> dict[str, Any]:
    """The example's cluster, with no more images than there are here."""
    import pyarrow.parquet as parquet

    (cluster,) = scenario.cluster
    files = sorted((Path(os.environ["FEDEXPERTS_DATA"]) / "cifar10").glob("train-*-of-5.parquet"))
    there = sum(parquet.read_metadata(path).num_rows for path in files)
    return {**cluster.model_dump(exclude_none=True), "samples": min(cluster.samples, there)}


def step_time_s(scenario: Any, extractor: str, device: str) -> float:
    """A gradient step of the extractor, roughly: the batch, or two views of it, forward and backward."""
    import torch

    from fedexperts.moe.auto import new_model

    model: Any = new_model(scenario.model.config, 0, kind="image-classifier", outputs=10).to(device)
    batch = scenario.train.batch_size * (2 if extractor == "fedsc" else 1)
    optimizer = torch.optim.AdamW(model.parameters())
    images = torch.zeros(batch, 3, model.config.image_size, model.config.image_size, device=device)
    for i in range(20):
        if i == 10:
            began_s = clock(device)
        optimizer.zero_grad()
        model.representations(images).square().sum().backward()
        optimizer.step()
    return (clock(device) - began_s) / 10 + MOVED_S


def toy_images(scenario: Any, base: Path) -> Any:
    sys.path.insert(0, str(EXAMPLE.parent.parent / "tests"))
    import pictures

    pictures.npz(base / "train.npz", 60)
    pictures.npz(base / "test.npz", 60, seed=1)
    tiny = {
        **scenario.model.config,
        "width": 8,
        "image_size": pictures.SIDE,
        "expert_hidden": 8,
        "projection_size": 8,
        "num_experts": 3,
    }
    cluster = {"name": "c", "devices": 3, "data": str(base / "train.npz"), "test": str(base / "test.npz"), "samples": 60}
    return scenario.changed(model={"config": tiny}, train={"local_steps": 1, "batch_size": 4}, cluster=[cluster])


# ---- parts and table


def child(part: str, folder: Path, device: str, toy: bool, seconds: float) -> None:
    """One part in this process; its rows go to a file, one by one."""

    def rows() -> Iterator[Row]:
        try:
            yield from rows_of(part, device, toy, time.monotonic() + seconds - SPARE_S)
        except Exception as error:
            yield failed(f"{part}: the rest", error)

    with (folder / f"{part}.jsonl").open("w") as file:
        for row in rows():
            file.write(json.dumps(asdict(row), default=str) + "\n")
            file.flush()


def apart(part: str, folder: Path, seconds: float) -> str:
    """One part in a process of its own; why it failed, if it did."""
    command = [sys.executable, __file__, "--child", part, "--folder", str(folder), "--minutes", str(seconds / 60)]
    with (folder / f"{part}.log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            code = process.wait(seconds + GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return f"ended after {seconds + GRACE_S:.0f} s"
    said = (folder / f"{part}.log").read_text().strip().splitlines()
    return "" if code == 0 else f"exit code {code}: {said[-1][:300] if said else 'no word'}"


def here(part: str, folder: Path, _: float) -> str:
    import torch

    torch.set_num_threads(1)  # as a run sets it
    child(part, folder, "cpu", True, 3600.0)  # at its size it needs no limit
    return ""


def play(minutes: float, out: Path, way: Callable[[str, Path, float], str], device: dict[str, Any]) -> bool:
    """All parts, printed and written as they end; whether all went well."""

    def say(text: str) -> None:
        print(text, flush=True)
        with (out / "table.txt").open("a") as file:
            file.write(text + "\n")

    began_s, spent, found, well = time.monotonic(), 0.0, {}, True
    say("  ".join(f"{key} {value}" for key, value in device.items()))
    for part, share in PARTS.items():
        spent += share
        seconds = max(1.0, 60 * minutes * spent - (time.monotonic() - began_s))
        why = way(part, out, seconds)
        file = out / f"{part}.jsonl"
        rows = [Row(**json.loads(text)) for text in file.read_text().splitlines()] if file.exists() else []
        file.unlink(missing_ok=True)
        rows += [Row(f"{part}: the rest", FAILED, note=why)] if why else []
        well = well and all(row.found != FAILED for row in rows)
        found[part] = [asdict(row) for row in rows]
        say("\n".join([f"\n{part}, {time.monotonic() - began_s:.0f} s from the start", *map(line, rows)]))
        (out / "gpu.json").write_text(json.dumps({**device, "parts": found}, indent=1, default=str))
    return well


def described(toy: bool) -> dict[str, Any]:
    import torch
    import transformers

    facts = {"torch": torch.__version__, "transformers": transformers.__version__}
    if toy:
        return {"device": "cpu, toy size: the figures mean nothing", **facts}
    if not torch.cuda.is_available():
        sys.exit("no GPU that torch can use is here, nothing was measured; --toy runs through on the CPU")
    card = torch.cuda.get_device_properties(0)
    return {"device": card.name, "GB": round(card.total_memory / 1e9, 1), **facts}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=7.5, help="of all parts together")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of gpu.json, and of what the parts said")
    parser.add_argument("--child", choices=PARTS)
    parser.add_argument("--folder", type=Path)
    parser.add_argument(
        "--toy", action="store_true", help="smallest size, on the CPU, in this process; the figures mean nothing"
    )
    args = parser.parse_args(argv)
    if args.child:
        child(args.child, args.folder, "cuda", False, 60 * args.minutes)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    for name in ("table.txt", *(f"{part}.jsonl" for part in PARTS)):
        (args.out / name).unlink(missing_ok=True)
    if not play(args.minutes, args.out, here if args.toy else apart, described(args.toy)):
        sys.exit(1)


if __name__ == "__main__":
    main()
