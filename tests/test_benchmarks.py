"""Every benchmark at toy size: it runs, what it asserts of itself holds, and its table has its rows."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from fedexperts.moe.parts import Piece
from fedexperts.runs.run import _Run
from marks import some_slow
from processes import fork_instead_of_spawning
from scripts import loaded

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "benchmarks"
MODULES = {
    "deploy_flower.py",
    "deploy_memory.py",
    "deploy_rehearsal.py",
    "paper.py",
    "runs.py",
    "gpu_large.py",
    "memory_cache.py",
    "gpu_same.py",
    "gpu_table.py",
    "peers_hivemind.py",
    "simulator_same.py",
}  # other benchmarks import or start them
PROGRAMS = sorted(path.stem for path in FOLDER.glob("*.py") if path.name not in MODULES)
TESTED_ELSEWHERE = {"rederive"}  # in test_rederive.py
REAL_ALONE = {"deploy_traps"}  # of Flower's processes; it has no toy size
LONG = {"peers", "gates", "extractor", "network_question", "split", "tasks", "uplink"}
"""At toy size too; what they call has tests of its own."""
APART = {"alignment"}  # needs no torch, whose import is what a process of its own costs
LEDGER = (*((n, "in turn") for n in (100, 50, 25, 10)), (10, "the same"), (0, "in turn"))
DEMO = ("ems-fl-enhanced", "ems-fl", "sync", "sync, C rounds", "ems-fl, γ ≈ 1", "sync, γ ≈ 1", "sync, C rounds, γ ≈ 1")
ROWS = {  # beginnings of lines, in order
    "aggregate": [
        *(rf"memory, {way}, {by} " for way in ("copy", "add") for by in ("numpy", "torch")),
        *(rf"ours, {how}, {weights} " for how in ("held", "one by one") for weights in ("alike", "by samples")),
        *("ours, each made anew ", "a new tensor for each term ", "torch.stack, mean ", "Flower, aggregate_inplace "),
    ],
    "alignment": [
        *(
            rf" +{n} +{m}  {tool} +1 "
            for n, m in ((20, 8), (30, 12))
            for tool in ("balanced", "optimal", "one pass over D", "HiGHS, plain")
        ),
        *(rf" +{n} +{m}  {p} " for n, m in ((20, 8), (30, 12)) for p in ("random", "greedy", "balanced", "optimal")),
    ],
    "bound": ["random contacts", "random contacts", "Walker shell, a day"],
    "contrast": [
        "10 clients",
        *(
            rf"{how}, R of the model {whose} "
            for how in (r"\(4\) to the letter", "falling")
            for whose in ("as just trained", "that came down last", "that comes down now")
        ),
    ],
    "demo": [*(rf"{name} +γ \d" for name in DEMO), "ratio", "ems-fl / sync  ", *["ems-fl[^/]* / sync"] * 4],
    "deploy": ["links of this machine", "bare transfer", "our nodes, no network"],
    "extractor": ["never trained", *["one client"] * 4, *["ten clients"] * 3],
    "gpu": [
        "layer, ",
        *(
            rf"64 tokens, {of}: {by} "
            for of in ("all trained", "all frozen.*")
            for by in ("dense", "ours", "eager", "grouped_mm")
        ),
        "memory, ",
        *(rf"3 × Llama-3-8B, {held}, 1 × 384 " for held in ("1 of 3 there", "all, 1 trained", "all trained")),
        *(rf"Mixtral-8x7B, {held}" for held in ("2 of 8 there", "all 8, 2 trained")),
        *(rf"3 × Llama-3-8B, {held}, 8 questions × 4 " for held in ("1 of 3 there", "all, 1 trained", "all trained")),
        "same, ",
        *(rf"small Mixtral, logits, {kind} " for kind in ("float32", "bf16")),
        *(rf"{n} steps?, {of}, " for n, of in ((1, "all weights"), (5, "all weights"), (5, "adapters on 2 of 8"))),
        "logits, 2 of 8 experts there, 6 streamed ",
        "run: repeated on this device +same bytes +resumed: same bytes",
        "run: ems-fl ",
        "2 of 2 whole small runs +2 with the same ledger",
        "images, ",
        *(rf"{extractor}, width 8, 1/1/1 cycles +accuracy \d.*whole run" for extractor in ("fedsc", "fedce")),
    ],
    "gates": [
        "τ = 0.2",
        *(f"  {name}" for name in ("random", "rolling, raw", "rolling, product", "federated, as it was")),
        *(f"  {name}" for name in ("federated, plain descent, 100", "federated, product", "central gate", "oracle")),
    ],
    "jobs": [r"1 +\d", r"2 +\d.*\d \(\d", r"bound +\d", "memory "],
    "ledger": [
        *("events, ours ", "events, JSON alone ", "events, their bytes at once ", "disk, "),
        *("all written ", *(rf"{share} %, {which} " for share, which in LEDGER)),
    ],
    "lora": ["frozen", "ours, 2 of 8", "ours, all 8", "PEFT, all 8", "limit"],
    "memory": ["interpreter", "full", "PEFT", "subset", "streamed", "data of one domain", "all loaded", "2 of 8", "8 of 8"],
    "moe": [
        *(
            rf"{kind}, {of}, {by} "
            for kind in ("float32", "bfloat16")
            for of, by in (
                ("all trained", "dense"),
                ("all trained", "ours"),
                ("frozen, adapters on 2", "dense"),
                ("frozen, adapters on 2", "ours"),
                ("masked to 2, trained", "2 experts"),
                ("masked to 2, trained", "8 experts"),
            )
        ),
    ],
    "moments": ["sync +kept +", "sync +afresh +", " +afresh − kept"],
    "network_question": [
        "0 of 3 cells are there",
        *(rf"\| fashion w8, 0\.2, {name}, {n} \(1\) " for name, n in (("none", 0), ("fedce", 1), ("fedsc", 1))),
        "FedSC ahead of FedCE",
        "FedSC's probe",
        "verdict: ",
    ],
    "passes": [r"fedexperts +\d+ ", "sgp4 on our grid", r"skyfield +\d+ ", "Walker 30/30/1"],
    "peers": [
        "the expert, in one process",
        "bare round trip",
        "bare, with the expert",
        r"ours +\d",
        "ours, without the expert",
        *("healthy", "one of ten frozen", "three of ten dead"),
    ],
    "simulator": [r"ems-fl +\d+ ", r"sync +\d+ "],
    "simulator_peers": [
        r"ours, batched +\d",
        r"ours, one by one +\d",
        r"plain loop +[\d,]+ +\d+\.\d+×",
        "pfl +not compared: --toy",
        "Flower +not compared: --toy",
    ],
    "split": [rf"{case} +{p} " for case in ("demo", "uneven", "unfitted") for p in ("algorithm-1", "balanced", "optimal")],
    "startup": ["python alone", "fedexperts --help", "plan, no model"],
    "tasks": [
        *["Classification", "plain loop", "trimmed  ", "trimmed, bucketed  "] * 2,
        *["Classification", "plain loop", "trimmed  ", "trimmed, bucketed  ", "trimmed, bucketed, cached"] * 4,
        *["Multiple choice", "each option alone", "all options", "shared question", "seed 0: random"],
    ],
    "tune": [rf"{name} +lr_expert" for name in DEMO[:3] for _ in range(2)],
    "uplink": [rf"{p} {codec} " for p in ("sync", "ems-fl", "ems-fl-enhanced") for codec in ("exact", "bf16", "int8")],
}


@pytest.mark.parametrize(
    "name",
    some_slow((name for name in PROGRAMS if name not in TESTED_ELSEWHERE | REAL_ALONE), LONG),
)
def test_a_benchmark_runs_at_toy_size(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert name in ROWS, f"benchmarks/{name}.py: say here which rows its table has, and give it --toy"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    fork_instead_of_spawning(monkeypatch)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    script = FOLDER / f"{name}.py"
    module = loaded(script, monkeypatch)
    options = usage(module, capfd)
    assert "--toy" in options
    argv = ["--toy", *(["--out", str(tmp_path / "out")] if "--out" in options else [])]
    if name in APART:
        assert subprocess.run([sys.executable, script, *argv], check=False).returncode == 0
    else:
        module.main(argv)
    lines = iter(capfd.readouterr().out.splitlines())
    for row in ROWS[name]:
        assert any(re.match(row, line) for line in lines), f"no line {row!r} in its place"


def usage(module: ModuleType, capfd: pytest.CaptureFixture[str]) -> set[str]:
    """The options that its docstring says, which are those that it has, but for what it tells its own processes."""
    with pytest.raises(SystemExit):
        module.main(["--help"])
    has = set(re.findall(r"--[\w-]+", capfd.readouterr().out.split("\n\n")[0]))
    says = re.search(r"python benchmarks/\w+\.py((?:\s+\[[^\]]*\])+)", module.__doc__ or "")
    assert says, "no usage line"
    assert set(re.findall(r"--[\w-]+", says[1])) == has - {"--shell", "--child", "--folder", "--resident"}
    return has


def a_step(run: _Run) -> None:
    """As a warm-up would make it."""
    leaf = torch.nn.Parameter(torch.zeros(1))
    leaf.grad = torch.zeros(1)
    torch.optim.SGD([leaf]).step()


def a_judging(run: _Run) -> None:
    run._judged(run.protocol.model, run.prepared.validation)


@pytest.mark.parametrize(("besides", "said"), [(a_step, "22 steps made, 21 booked"), (a_judging, "without gradient")])
def test_what_moves_into_the_drivers_clock_is_noticed(
    besides: Callable[[_Run], None], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate, moved = _Run._evaluate, []

    def evaluated(run: _Run, model: dict[str, Piece], cycle: int | None) -> dict[str, Any]:
        if cycle == 1:
            moved.append(besides(run))
        return evaluate(run, model, cycle)

    monkeypatch.setattr(_Run, "_evaluate", evaluated)
    with pytest.raises(AssertionError, match=said):
        loaded(FOLDER / "simulator.py", monkeypatch).main(["--toy"])
    assert len(moved) == 1


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_benchmark_is_a_program(name: str) -> None:
    assert (FOLDER / f"{name}.py").read_text().endswith('\n\nif __name__ == "__main__":\n    main()\n')


def test_make_bench_runs_every_program() -> None:
    run = re.findall(r"benchmarks/(\w+)\.py", (ROOT / "Makefile").read_text())
    assert sorted(set(run)) == PROGRAMS
    assert len(run) == len(PROGRAMS) + 1, "the demo runs on both plans, all others once"
