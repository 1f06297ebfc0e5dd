"""``fedexperts demo``: EMS-FL against the synchronous baseline on real data, without any download."""

from __future__ import annotations

import shutil
from collections.abc import Set
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from ..errors import InputError
from ..report.html import write_report
from ..report.table import results_table
from ..runs.lock import LEFTOVERS, claimed, is_free
from ..scenario import Scenario
from ..writing import check_folder, check_replaceable, on_disk
from .common import console, output, print_json, running, say
from .run import Json

PAGE, INITIAL = "report.html", "initial"


def command(
    out: Annotated[Path, typer.Option(help="Where the runs and the report go.")] = Path("runs/demo"),
    seed: Annotated[int | None, typer.Option(help="Change the seed.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Remove what an earlier demo left in --out.")] = False,
    json: Json = False,
) -> None:
    """Tune an MoE on handwritten digits over a satellite schedule, with every protocol and a γ ≈ 1 control."""
    from ..runs.parallel import folder, run_many

    scenario = demo_scenario(seed)
    jobs = demo_jobs(scenario)
    check_folder(out, "--out")
    if not is_free(out):
        if not force:
            raise InputError(f"--out {out}: already holds files; name another folder, or add --force")
        remove_earlier(out, {INITIAL, PAGE, *map(folder, jobs)})
    with claimed(out):  # what cannot be written shows before the warm-up
        pass
    jobs = warmed_up(scenario, jobs, out)
    for name in ("ems-fl", "ems-fl, γ ≈ 1"):
        report = before_training(jobs[name])
        gammas = ", ".join(f"{cluster} {gamma:.2f}" for cluster, gamma in report["gamma"].items())
        console.print(Text.assemble((name, "bold"), f": γ before training: {gammas}\n  {report['advice']}"), soft_wrap=True)
    with running({name: job.train.cycles for name, job in jobs.items()}) as show:
        summaries = run_many(jobs, out, progress=show)
    write_report(
        {name: out / folder(name) for name in jobs},
        out / PAGE,
        "FedExperts demo: handwritten digits, four domains",
    )
    if json:
        print_json({"directory": str(out), "protocols": summaries})
    else:
        output.print(results_table(summaries))
        say(f"{out / PAGE}: accuracy against cycles, steps and MB; {out}/<run>/ledger.jsonl: every transfer and round")


def remove_earlier(out: Path, names: Set[str]) -> None:
    """Remove an earlier demo, if the folder holds nothing else.

    Raises:
        InputError: it does, or another demo is at work there.
    """
    if out.is_symlink():
        raise InputError(f"--out {out}: is a link, which --force does not remove; name the folder itself, or another one")
    if foreign := sorted({path.name for path in out.iterdir()} - names - LEFTOVERS):
        raise InputError(f"--out {out}: holds {foreign[0]!r}, which is no part of a demo; move it away, or name another folder")
    check_replaceable(out / PAGE, "--out")
    with claimed(out):
        shutil.rmtree(out)


def demo_scenario(seed: int | None = None) -> Scenario:
    """The packaged scenario."""
    scenario = Scenario.load(str(files(__package__).joinpath("demo.toml")))
    return scenario if seed is None else scenario.changed(seed=seed)


def on_round_robin(scenario: Scenario) -> Scenario:
    """The demo on the paper's own schedule: one slot for each cluster in turn, one local round a slot."""
    plan = {"kind": "round-robin", "slot_s": 60.0}
    return scenario.changed(plan=plan, train={"cycles": 12, "seconds_per_round": 60.0, "max_rounds": 8})


def demo_jobs(scenario: Scenario) -> dict[str, Scenario]:
    """Every run of the demo: three protocols, the baseline with C local rounds for each of its own, and γ ≈ 1 beside them.

    The controls differ from the others in who holds which samples alone: together their clusters hold the same. Learning rates
    are each run's best of one grid, on the paper's schedule and over tuning seeds that are not reported (benchmarks/tune.py).
    """
    from ..data.digits import MIXTURES

    clusters = len(scenario.cluster)
    mixed = [
        {**c.model_dump(exclude_none=True), "data": f"digits:{mixture}"}
        for c, mixture in zip(scenario.cluster, MIXTURES, strict=True)
    ]
    assert isinstance(scenario.train.seconds_per_round, float)  # so it is in the packaged scenario
    c_rounds = {"seconds_per_round": scenario.train.seconds_per_round / clusters}
    return {
        "ems-fl-enhanced": scenario.changed(protocol="ems-fl-enhanced", train=TUNED["ems-fl-enhanced"]),
        "ems-fl": scenario.changed(protocol="ems-fl", train=TUNED["ems-fl"]),
        "sync": scenario.changed(protocol="sync", train=TUNED["sync"]),
        "sync, C rounds": scenario.changed(protocol="sync", train={**TUNED["sync, C rounds"], **c_rounds}),
        "ems-fl, γ ≈ 1": scenario.changed(protocol="ems-fl", train=TUNED["ems-fl, γ ≈ 1"], cluster=mixed),
        "sync, γ ≈ 1": scenario.changed(protocol="sync", train=TUNED["sync, γ ≈ 1"], cluster=mixed),
        "sync, C rounds, γ ≈ 1": scenario.changed(
            protocol="sync", train={**TUNED["sync, C rounds, γ ≈ 1"], **c_rounds}, cluster=mixed
        ),
    }


TUNED: dict[str, dict[str, Any]] = {
    "sync": {"lr_expert": 1e-2, "lr_gate": 3e-3},
    "sync, C rounds": {"lr_expert": 3e-3, "lr_gate": 3e-3},
    "ems-fl": {"lr_expert": 3e-3, "lr_gate": 1e-2},
    "ems-fl-enhanced": {"lr_expert": 3e-2, "lr_gate": 3e-3},
    "ems-fl, γ ≈ 1": {"lr_expert": 3e-3, "lr_gate": 1e-2},
    "sync, γ ≈ 1": {"lr_expert": 3e-2, "lr_gate": 1e-3},
    "sync, C rounds, γ ≈ 1": {"lr_expert": 3e-3, "lr_gate": 1e-2},
}


def warmed_up(scenario: Scenario, jobs: dict[str, Scenario], out: Path) -> dict[str, Scenario]:
    """Warm the model up once; every run then starts from the same checkpoint, ``out/initial``."""
    import torch

    from ..method.methods import prepare
    from ..moe.written import readable

    torch.set_num_threads(1)
    prepared = prepare(scenario)
    with console.status("warm-up on the shared set"):
        prepared.begin()
    initial = (out / INITIAL).resolve()
    with on_disk(initial, "make room, and begin again with --force"):
        initial.mkdir(parents=True, exist_ok=True)
        prepared.view.model.save_pretrained(initial)  # type: ignore[operator]  # a Hugging Face model
        for weights in initial.glob("*.safetensors"):
            readable(weights)
    ready = {}
    for name, job in jobs.items():
        document = job.model_dump(exclude_none=True)
        document.pop("warmup", None)
        document["model"] = {k: v for k, v in document["model"].items() if k != "config"} | {"path": str(initial)}
        ready[name] = Scenario.parse(document, job.base)
    return ready


def before_training(scenario: Scenario) -> dict[str, Any]:
    """Trial pass and Algorithm 1 on the warmed-up model."""
    from ..method.methods import prepare
    from ..method.owners import assignment_report, split_experts
    from ..setup.prepare import counted

    prepared = prepare(scenario)
    counts = counted(prepared.trials())
    return assignment_report(scenario, counts, split_experts(scenario, counts))
