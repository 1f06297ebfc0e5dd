"""``fedexperts bound``: Theorems 1 and 2, published and corrected, for given constants or those of a scenario."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InputError
from ..theory import MEANINGS, Constants, Setting, bounds, curves
from ..writing import check_replaceable, on_disk
from .bound_tables import rows_table
from .common import Force, output, print_json, say, warn
from .run import Json, Set, load

ScenarioArgument = Annotated[
    Path | None, typer.Argument(metavar="[SCENARIO.toml]", help="Clusters, cycles, γ and constants of it.")
]
Clusters = Annotated[int | None, typer.Option(help="C; needed without a scenario, unless --gamma has one for each.")]
Gamma = Annotated[
    str | None, typer.Option(help="γ of all clusters, or γ_c of each with commas between; as assign prints them.")
]
Cycles = Annotated[int | None, typer.Option(help="T, orbital cycles.")]


def constant(name: str) -> Any:
    """An option for one of the constants."""
    return typer.Option(help=MEANINGS[name].replace("[", "\\["), show_default=False)


def command(
    scenario: ScenarioArgument = None,
    clusters: Clusters = None,
    gamma: Gamma = None,
    cycles: Cycles = None,
    smoothness: Annotated[float | None, constant("smoothness")] = None,
    gap: Annotated[float | None, constant("gap")] = None,
    grad_expert: Annotated[float | None, constant("grad_expert")] = None,
    grad_gate: Annotated[float | None, constant("grad_gate")] = None,
    sigma_expert: Annotated[float | None, constant("sigma_expert")] = None,
    sigma_gate: Annotated[float | None, constant("sigma_gate")] = None,
    zeta_expert: Annotated[float | None, constant("zeta_expert")] = None,
    eta_expert: Annotated[float | None, typer.Option(help="η^E; left out: 1/√T.")] = None,
    eta_gate: Annotated[float | None, typer.Option(help="η^U; left out: γ/√T.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write a page with both bounds over T and γ there, for example bound.html.")
    ] = None,
    force: Force = False,
    set_: Set = [],  # noqa: B006  # typer wants the default to be a list, and nobody writes to it
    json: Json = False,
) -> None:
    """Bound the gradients that EMS-FL and the baseline end with, by the paper's theorems; say which conditions fail."""
    if out is not None:
        check_replaceable(out, "--out", force)
    given = {
        "smoothness": smoothness,
        "gap": gap,
        "grad_expert": grad_expert,
        "grad_gate": grad_gate,
        "sigma_expert": sigma_expert,
        "sigma_gate": sigma_gate,
        "zeta_expert": zeta_expert,
    }
    gammas = None if gamma is None else _gammas(gamma, clusters, scenario is not None)
    estimated = None
    if scenario is not None:
        gammas, cycles, given, estimated = _of_scenario(scenario, set_, gammas, clusters, cycles, given)
    if gammas is None:
        raise InputError(
            "missing --gamma, γ_c of (35): how relevant its own experts are to a cluster, over the others; as `assign` has it"
        )
    if cycles is None:
        raise InputError("missing --cycles, T: the number of orbital cycles")
    setting = Setting(gammas, cycles, eta_expert, eta_gate)
    constants = Constants.of(given)
    document = {"estimated": estimated, **bounds(setting, constants)}
    if estimated:
        warn("constants were estimated at a few points, where the assumptions name suprema: values with them are no bounds")
    if out is not None:
        shown = curves(setting, constants, _over_cycles(cycles), _over_gamma(setting.clusters))
        with on_disk(out, "make room, or name another place", "--out"):
            from ..report.theory_html import write_theory

            write_theory(document, shown, out)
        say(f"{out}")
    if json:
        print_json(document)
        return
    heads = ("scheme", "published", "corrected", "γ counted twice, (52)")
    output.print(rows_table(f"the mean of ‖∇F‖² over {cycles:,} cycles is at most", heads, _rows(document)))
    for sentence in _sentences(document):
        say(sentence, output)


def _gammas(text: str, clusters: int | None, scenario: bool) -> tuple[float, ...] | None:
    try:
        found = tuple(float(word) for word in text.split(","))
    except ValueError as error:
        raise InputError(
            f"--gamma {text!r}: must be a number, or one for each cluster with commas between, as 2,1.5,1.2"
        ) from error
    if len(found) > 1:
        if clusters is not None and clusters != len(found):
            raise InputError(
                f"--clusters = {clusters}: --gamma has {len(found)} numbers; give one for each cluster, or one for all"
            )
        return found
    if clusters is None and not scenario:
        raise InputError("missing --clusters, C: the number of device clusters")
    if clusters is not None and not 1 <= clusters <= 100_000:
        raise InputError(f"--clusters = {clusters}: must be from 1 to 100,000; it is C, the number of device clusters")
    return found * (clusters or 1)


def _of_scenario(
    path: Path,
    overrides: list[str],
    gammas: tuple[float, ...] | None,
    clusters: int | None,
    cycles: int | None,
    given: dict[str, float | None],
) -> tuple[tuple[float, ...], int, dict[str, float | None], dict[str, Any] | None]:
    """What the command line leaves out: γ_c by a trial pass, and constants by a few gradients."""
    loaded = load(path, None, None, overrides)
    if loaded.by_client:
        raise InputError(
            f"protocol = {loaded.protocol!r}: the theorems are of EMS-FL and its baseline; use --set protocol=ems-fl"
        )
    names = [cluster.name for cluster in loaded.cluster]
    if clusters is not None and clusters != len(names):
        raise InputError(f"--clusters = {clusters}: the scenario has {len(names)}; leave it out")
    if gammas is not None and len(gammas) not in (1, len(names)):
        raise InputError(f"--gamma: {len(gammas)} numbers for {len(names)} clusters; give one for each, or one for all")
    cycles = cycles or loaded.train.cycles
    missing = [name for name, value in given.items() if value is None]
    if gammas is not None and not missing:
        return gammas * (len(names) if len(gammas) == 1 else 1), cycles, given, None
    import torch

    from ..method.capacity import most_experts
    from ..method.methods import prepare
    from ..method.owners import assignment_report, split_experts
    from ..runs.constants import SAMPLES, STEPS, estimated
    from ..setup.prepare import counted

    torch.set_num_threads(1)
    prepared = prepare(loaded)
    prepared.begin()
    counts = counted(prepared.trials())
    owned = split_experts(loaded, counts, most_experts(prepared))
    measured: dict[str, float] = assignment_report(loaded, counts, owned)["gamma"]
    gammas = tuple(measured.values()) if gammas is None else gammas * (len(names) if len(gammas) == 1 else 1)
    if not missing:
        return gammas, cycles, given, None
    found = vars(estimated(prepared, owned, dict(zip(names, gammas, strict=True))))
    how = {"constants": missing, "points": STEPS + 1, "samples_per_device": SAMPLES}
    return gammas, cycles, {name: found[name] if value is None else value for name, value in given.items()}, how


def _rows(document: dict[str, Any]) -> list[list[str]]:
    def shown(value: float | None) -> str:
        return "–" if value is None else f"{value:.4g}"

    ems, sync = document["ems_fl"], document["sync"]
    return [
        ["EMS-FL, (45)", shown(ems["published"]), shown(ems["corrected"]), shown(ems["scaled_twice"])],
        ["baseline, (48)", shown(sync["published"]), shown(sync["corrected"]), ""],
    ]


def _sentences(document: dict[str, Any]) -> list[str]:
    told = []
    for row in document["conditions"].values():
        if not row["holds"]:
            told.append(f"fails: {row['reason']}")
    if document["ems_fl"]["corrected"] is None:
        told.append("so only what was published can be computed, and it bounds nothing here")
    ranges = document["ems_fl_ahead"]
    if ranges:
        told.append("EMS-FL's bound is the lower one for γ in " + ", ".join(f"{a:.3g}…{b:.3g}" for a, b in ranges))
    else:
        told.append(f"EMS-FL's bound is above the baseline's for every γ in 1…{document['clusters']}")
    return told


def _over_cycles(cycles: int) -> list[int]:
    """T from 1 to ten times as many, evenly on a logarithmic axis."""
    return sorted({round(10 ** (k / 20)) for k in range(int(20 * len(str(10 * cycles))) + 1)})


def _over_gamma(clusters: int) -> list[float]:
    return [1 + (clusters - 1) * k / 60 for k in range(61)]
