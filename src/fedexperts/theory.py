"""Theorems 1 and 2 of the EMS-FL paper: what bounds the mean of ‖∇F‖² over T orbital cycles, for EMS-FL and for the baseline.

Letters as in the paper: C clusters, γ_c the ratio of (35) and γ the largest, T cycles, L-smoothness (40), G the bounds of
gradients (41), σ and ζ those of their errors (43), (44), (47), η step sizes, and A = G_E² + σ_E², B = G_U² + σ_U².

Published are (45) and (48). They follow from (64) and (77) only with equality of the step sizes, η^E = η^U/γ = 1/√T, which the
theorems state as inequalities. For any step sizes, summing (64) and (77) over the cycles gives, with the smaller descent m,

    EMS-FL    (F₀ − F*) / (T·C·m) + 5·L·C²·[C·(η^E·γ)²·A + (η^U)²·B] / m          m = min(η^E·min γ_c, η^U)
    baseline  (F₀ − F*) / (T·C·m) + 5·L·C²·[(η^E)²·(A + ζ_E²) + (η^U)²·B] / m      m = min(η^E, η^U)

Descent has min γ_c: a local step is −η^E·g with E[g] = γ_c·∇F (42), so the slowest group counts, and γ bounds only how far a
group moves. (52) multiplies by γ once more; that reading is `twice`. The constants 5 were derived again for C ≥ 2: they also
cover the moves of other groups between t' and t, which (53) leaves out (`tests/test_theory.py` has the sums).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .reading import short

MEANINGS = {
    "smoothness": "L of (40): how much the gradient of the global loss changes, at most, per distance",
    "gap": "F₀ − F*: the global loss at the start less the least there is",
    "grad_expert": "G_E of (41): the largest norm of the global loss's gradient by the experts",
    "grad_gate": "G_U of (41): the largest norm of the global loss's gradient by the gate",
    "sigma_expert": "σ_E of (43): the standard deviation of an expert's local gradient, over γ",
    "sigma_gate": "σ_U of (44): the standard deviation of the gate's local gradient",
    "zeta_expert": "ζ_E of (47): what the clusters' different data add to it in the baseline",
}
"""What each constant is; options of the command line have these names, with hyphens."""
FACTOR = 5.0
"""Of (64) and (77)."""
MOST = 1e30
"""Of a constant; squares and products of all of them stay finite."""
MOST_CYCLES = 10**12


@dataclass(frozen=True)
class Constants:
    """Of Assumptions 1 to 4; see `MEANINGS`.

    Raises:
        InputError: one is negative, above `MOST` or no number, or smoothness is 0.
    """

    smoothness: float
    gap: float
    grad_expert: float
    grad_gate: float
    sigma_expert: float
    sigma_gate: float
    zeta_expert: float

    def __post_init__(self) -> None:
        for field in fields(self):
            _check(field.name, getattr(self, field.name))

    @classmethod
    def of(cls, given: Mapping[str, float | None]) -> Constants:
        """From numbers of which some may be missing.

        Raises:
            InputError: some are, and are named with what they mean; or one cannot be.
        """
        for name, value in given.items():
            if value is not None:
                _check(name, value)
        if missing := [name for name in MEANINGS if given.get(name) is None]:
            raise InputError(
                f"missing {'; '.join(f'{option(name)}, {MEANINGS[name]}' for name in missing)}: give each a number"
            )
        return cls(**{name: float(value) for name, value in given.items() if name in MEANINGS and value is not None})

    @property
    def expert(self) -> float:
        """A = G_E² + σ_E²."""
        return self.grad_expert**2 + self.sigma_expert**2

    @property
    def gate(self) -> float:
        """B = G_U² + σ_U²."""
        return self.grad_gate**2 + self.sigma_gate**2


def _check(name: str, value: float) -> None:
    if not 0 <= value <= MOST:
        raise InputError(f"{option(name)} = {value:g}: must be a number from 0 to {MOST:g}; it is {MEANINGS[name]}")
    if name == "smoothness" and value == 0:  # (40); or the term of the steps would be gone
        raise InputError(f"{option(name)} = 0: must be a number above 0; it is {MEANINGS[name]}")


def option(name: str) -> str:
    """How the command line says it."""
    return "--" + name.replace("_", "-")


@dataclass(frozen=True)
class Setting:
    """What is trained how.

    Attributes:
        gammas: γ_c of each cluster, so that there are C of them.
        cycles: T.
        eta_expert, eta_gate: step sizes; None is equality, 1/√T and γ/√T.

    Raises:
        InputError: a number that cannot be.
    """

    gammas: tuple[float, ...]
    cycles: int
    eta_expert: float | None = None
    eta_gate: float | None = None

    def __post_init__(self) -> None:
        if not self.gammas:
            raise InputError("--clusters = 0: must be 1 or more")
        for gamma in self.gammas:
            if not 1e-6 <= gamma <= 1e6:
                raise InputError(
                    f"--gamma = {gamma:g}: must be a number above 0, from 1e-06 to 1e+06; it is the ratio γ_c of (35), as "
                    "`assign` prints it"
                )
        if not 1 <= self.cycles <= MOST_CYCLES:
            raise InputError(
                f"--cycles = {short(self.cycles)}: must be from 1 to {MOST_CYCLES:g}; it is T, the number of orbital cycles"
            )
        for name in ("eta_expert", "eta_gate"):
            eta = getattr(self, name)
            if eta is not None and not 1e-30 <= eta <= 1e6:
                raise InputError(
                    f"{option(name)} = {eta:g}: must be a number above 0, from 1e-30 to 1e+06; it is a step size, or left out "
                    "for equality"
                )

    @property
    def clusters(self) -> int:
        """C."""
        return len(self.gammas)

    @property
    def gamma(self) -> float:
        """γ = max γ_c."""
        return max(self.gammas)

    @property
    def steps(self) -> tuple[float, float]:
        """(η^E, η^U)."""
        equal = 1 / math.sqrt(self.cycles)
        expert = equal if self.eta_expert is None else self.eta_expert
        return expert, self.gamma * equal if self.eta_gate is None else self.eta_gate


def ems_fl_published(setting: Setting, k: Constants) -> float:
    """(45)."""
    C, g, root = setting.clusters, setting.gamma, math.sqrt(setting.cycles)
    return k.gap / (g * C * root) + FACTOR * k.smoothness * C**2 * g * (C * k.expert + k.gate) / root


def sync_published(setting: Setting, k: Constants) -> float:
    """(48)."""
    C, g, root = setting.clusters, setting.gamma, math.sqrt(setting.cycles)
    expert = k.expert + k.zeta_expert**2
    return k.gap / (C * root) + FACTOR * k.smoothness * C**2 * (expert + g**2 * k.gate) / root


def ems_fl_general(setting: Setting, k: Constants, twice: bool = False) -> float:
    """From (64), for any step sizes; ``twice`` scales by γ once more, as (52) does."""
    C, (eta_e, eta_u) = setting.clusters, setting.steps
    eta_e *= setting.gamma if twice else 1.0
    m = min(eta_e * min(setting.gammas), eta_u)
    moved = C * (eta_e * setting.gamma) ** 2 * k.expert + eta_u**2 * k.gate
    return k.gap / (setting.cycles * C * m) + FACTOR * k.smoothness * C**2 * moved / m


def sync_general(setting: Setting, k: Constants) -> float:
    """From (77), for any step sizes."""
    C, (eta_e, eta_u) = setting.clusters, setting.steps
    m = min(eta_e, eta_u)
    moved = eta_e**2 * (k.expert + k.zeta_expert**2) + eta_u**2 * k.gate
    return k.gap / (setting.cycles * C * m) + FACTOR * k.smoothness * C**2 * moved / m


def conditions(setting: Setting) -> dict[str, dict[str, Any]]:
    """What the theorems ask for, whether it holds, and why not."""
    g, (eta_e, eta_u), equal = setting.gamma, setting.steps, 1 / math.sqrt(setting.cycles)
    slack = 1 + 1e-12
    said = {
        "clusters": (setting.clusters >= 2, f"C = {setting.clusters}: (51), (57) and (64) need C ≥ 2"),
        "gamma_at_least_1": (
            min(setting.gammas) >= 1 / slack,
            f"γ_c = {min(setting.gammas):g}: the paper has γ in [1, C]; a cluster below 1 sees less of its experts' data than "
            "others do, so they are the wrong experts",
        ),
        "gamma_at_most_C": (g <= setting.clusters * slack, f"γ = {g:g}: is above C = {setting.clusters}, which (35) cannot be"),
        "steps": (
            eta_e <= eta_u / g * slack and eta_u / g <= equal * slack,
            f"η^E = {eta_e:g}, η^U/γ = {eta_u / g:g}, 1/√T = {equal:g}: the theorems need η^E ≤ η^U/γ ≤ 1/√T",
        ),
        "steps_equal": (
            math.isclose(eta_e, equal, rel_tol=1e-9) and math.isclose(eta_u / g, equal, rel_tol=1e-9),
            f"η^E = {eta_e:g}, η^U/γ = {eta_u / g:g}, 1/√T = {equal:g}: (45), (48) follow from (64), (77) with equality only",
        ),
    }
    return {name: {"holds": holds, "reason": None if holds else reason} for name, (holds, reason) in said.items()}


NEEDED = ("clusters", "gamma_at_least_1", "gamma_at_most_C", "steps")
"""What both theorems ask for: where one fails no corrected bound is given. The sums of (64) and (77) need C ≥ 2 alone, so that
these conditions are the stricter; only (45) and (48) themselves need equality of the steps."""


def bounds(setting: Setting, k: Constants) -> dict[str, Any]:
    """Both theorems, published and corrected, as plain data; ``corrected`` is None where a condition fails.

    Raises:
        InputError: a constant or number of the setting is out of range.
    """
    asked = conditions(setting)
    reasons = [asked[name]["reason"] for name in NEEDED if not asked[name]["holds"]]
    reason = "; ".join(reasons) or None

    def both(published: float, corrected: float, **more: float) -> dict[str, Any]:
        found = {"published": published, "corrected": corrected, **more}
        shown = {name: value if name == "published" or reason is None else None for name, value in found.items()}
        return {**shown, "reason": reason}

    return {
        "clusters": setting.clusters,
        "cycles": setting.cycles,
        "gamma": setting.gamma,
        "gammas": list(setting.gammas),
        "eta_expert": setting.steps[0],
        "eta_gate": setting.steps[1],
        "constants": vars(k) | {},
        "ems_fl": both(ems_fl_published(setting, k), ems_fl_general(setting, k), scaled_twice=ems_fl_general(setting, k, True)),
        "sync": both(sync_published(setting, k), sync_general(setting, k)),
        "conditions": asked,
        "ems_fl_ahead": ahead(setting.clusters, k),
    }


def ahead(clusters: int, k: Constants) -> list[list[float]]:
    """Ranges of γ in [1, C] in which (45) is below (48); T does not matter, as both fall with its root.

    Their difference times γ·√T is a cubic in γ; the first beginning of a range is where EMS-FL overtakes.
    """
    C, five = clusters, FACTOR * k.smoothness * clusters**2
    d = k.gap / C
    linear = -d - five * (k.expert + k.zeta_expert**2)
    cubic: NDArray[np.float64] = np.array([-five * k.gate, five * (C * k.expert + k.gate), linear, d])
    while len(cubic) > 1 and abs(cubic[0]) * float(C) ** (len(cubic) - 1) <= 1e-16 * np.abs(cubic[1:]).max():
        cubic = cubic[1:]  # nothing beside the others for any γ up to C; for its sake roots would overflow
    roots = np.roots(cubic) if len(cubic) > 1 else np.array([])
    real = sorted(float(r.real) for r in roots if abs(r.imag) < 1e-9 * max(1.0, abs(r)) and 1 < r.real < C)
    edges = [1.0, *real, float(C)]
    ranges: list[list[float]] = []
    for a, b in pairwise(edges):
        if b > a and np.polyval(cubic, (a + b) / 2) < 0:
            if ranges and ranges[-1][1] == a:
                ranges[-1][1] = b
            else:
                ranges.append([a, b])
    return ranges


def curves(setting: Setting, k: Constants, cycles: Sequence[int], gammas: Sequence[float]) -> dict[str, Any]:
    """The published bounds over T at the setting's γ, and over γ at its T with every γ_c alike: what a figure shows."""
    of = {"ems_fl": ems_fl_published, "sync": sync_published}
    over_T = {name: [f(Setting(setting.gammas, T), k) for T in cycles] for name, f in of.items()}
    over_g = {name: [f(Setting((g,) * setting.clusters, setting.cycles), k) for g in gammas] for name, f in of.items()}
    return {"over_cycles": {"cycles": list(cycles), **over_T}, "over_gamma": {"gamma": list(gammas), **over_g}}
