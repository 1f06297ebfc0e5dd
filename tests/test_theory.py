"""Theorems 1 and 2: by hand, where the paper contradicts itself, and on a toy for which its assumptions hold."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from fedexperts.errors import InputError
from fedexperts.theory import (
    MEANINGS,
    Constants,
    Setting,
    ahead,
    bounds,
    curves,
    ems_fl_general,
    ems_fl_published,
    sync_general,
    sync_published,
)

K = Constants(smoothness=2, gap=12, grad_expert=1, grad_gate=2, sigma_expert=3, sigma_gate=1, zeta_expert=4)  # A = 10, B = 5
HAND = Setting((2.0, 2.0, 2.0), 16)


def test_by_hand() -> None:
    """C = 3, γ = 2, T = 16: (45) is 12/(2·3·4) + 5·2·9·2·(3·10 + 5)/4; (48) is 12/(3·4) + 5·2·9·(10 + 16 + 4·5)/4."""
    assert ems_fl_published(HAND, K) == pytest.approx(0.5 + 1575)
    assert sync_published(HAND, K) == pytest.approx(1 + 1035)


@pytest.mark.parametrize("gamma", [1.0, 1.7, 3.0])
@pytest.mark.parametrize("T", [1, 4, 100])
def test_with_equal_steps_the_general_form_is_the_published_one(gamma: float, T: int) -> None:
    setting = Setting((gamma,) * 3, T)
    assert ems_fl_general(setting, K) == pytest.approx(ems_fl_published(setting, K))
    assert sync_general(setting, K) == pytest.approx(sync_published(setting, K))


def test_the_slowest_group_decides_how_fast_it_falls() -> None:
    """γ_c = 1 and 2: m = 1/4, so 12/(16·2·¼) + 5·2·4·[2·(2/4)²·10 + (2/4)²·5]/¼, by hand."""
    setting = Setting((1.0, 2.0), 16)
    assert ems_fl_general(setting, K) == pytest.approx(1.5 + 160 * (5 + 1.25))
    assert ems_fl_general(setting, K) > ems_fl_published(setting, K)


def test_another_setting_by_hand_from_the_proofs() -> None:
    """C = 2, γ_c = 2 and 1, T = 100, L = ½, F₀ − F* = 10, A = 2, B = 5, ζ² = 9; (64) and (77) added up over the cycles.

    Equality, η^E = 1/10, η^U = 1/5: 5(η^Eγ)²C⁴LA = 3.2, 5(η^U)²C³LB = 4, so (3.2 + 4)/(2·0.1) + 10/(100·2·0.1); (52) moves
    twice as far, (12.8 + 4)/(2·0.2), and the baseline 5(η^E)²C³L(A + ζ²) = 2.2. Steps of half of these: 1.8/0.1 and 1.55/0.1.
    """
    toy = Constants(smoothness=0.5, gap=10, grad_expert=1, grad_gate=2, sigma_expert=1, sigma_gate=1, zeta_expert=3)
    found = bounds(Setting((2.0, 1.0), 100), toy)
    assert found["ems_fl"]["published"] == pytest.approx(0.25 + 18)
    assert found["ems_fl"]["corrected"] == pytest.approx(0.5 + 36)
    assert found["ems_fl"]["scaled_twice"] == pytest.approx(0.25 + 42)
    assert found["sync"]["published"] == pytest.approx(0.5 + 31)
    assert found["sync"]["corrected"] == pytest.approx(0.5 + 31)
    halved = bounds(Setting((2.0, 1.0), 100, eta_expert=0.05, eta_gate=0.1), toy)
    assert halved["ems_fl"]["corrected"] == pytest.approx(1 + 18)
    assert halved["sync"]["corrected"] == pytest.approx(1 + 15.5)


def test_gamma_once_or_twice() -> None:
    """(52) on top of (42): steps of γη^E, so that m is still η^U, and groups move γ times as far."""
    found = bounds(HAND, K)
    m, moved = 0.5, 3 * (0.5 * 2) ** 2 * 10 + 0.5**2 * 5
    assert found["ems_fl"]["scaled_twice"] == pytest.approx(12 / (16 * 3 * m) + 90 * moved / m)
    assert found["ems_fl"]["corrected"] == pytest.approx(0.5 + 1575)


def test_steps_below_equality_are_covered_by_the_general_form_alone() -> None:
    """η^E = 1/8 and η^U/γ = 1/4 satisfy the theorem's inequalities, and then (45) does not bound: descent is half as fast."""
    setting = replace(HAND, eta_expert=1 / 8)
    found = bounds(setting, K)
    m = 1 / 4
    assert found["ems_fl"]["corrected"] == pytest.approx(12 / (16 * 3 * m) + 90 * (3 * (1 / 4) ** 2 * 10 + 1 / 4 * 5) / m)
    assert found["conditions"]["steps"]["holds"]
    assert not found["conditions"]["steps_equal"]["holds"]
    slow = Constants(1e-6, 1e6, 1, 1, 1, 1, 1)  # where the first term decides
    assert bounds(setting, slow)["ems_fl"]["corrected"] == pytest.approx(2 * ems_fl_published(setting, slow), rel=1e-3)


@pytest.mark.parametrize(
    ("setting", "failing", "said"),
    [
        (Setting((2.0, 0.5), 16), "gamma_at_least_1", r"γ_c = 0\.5"),
        (Setting((3.0, 2.0), 16), "gamma_at_most_C", r"γ = 3: is above C = 2"),
        (Setting((1.0,), 16), "clusters", r"C = 1"),
        (Setting((2.0, 2.0), 16, eta_expert=0.3), "steps", r"η\^E = 0\.3"),
        (Setting((2.0, 2.0), 16, eta_gate=0.6), "steps", r"1/√T = 0\.25"),
    ],
)
def test_where_a_condition_fails_only_what_was_published_is_there(setting: Setting, failing: str, said: str) -> None:
    found = bounds(setting, K)
    assert [name for name, row in found["conditions"].items() if not row["holds"] and name != "steps_equal"] == [failing]
    for scheme in ("ems_fl", "sync"):
        assert found[scheme]["published"] > 0
        assert found[scheme]["corrected"] is None
        assert found[scheme]["reason"] == found["conditions"][failing]["reason"]
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(found["ems_fl"]["reason"])


@pytest.mark.parametrize("seed", range(20))
def test_where_ems_fl_overtakes(seed: int) -> None:
    """Against a fine grid of γ."""
    rng = np.random.default_rng(seed)
    k = Constants(*np.exp(rng.uniform(-4, 4, 7)))
    clusters = int(rng.integers(2, 9))
    ranges = ahead(clusters, k)
    for gamma in np.linspace(1, clusters, 301)[1:-1]:
        setting = Setting((gamma,) * clusters, 9)
        lead = sync_published(setting, k) - ems_fl_published(setting, k)
        if abs(lead) > 1e-9 * sync_published(setting, k):
            assert any(a <= gamma <= b for a, b in ranges) == (lead > 0)


@pytest.mark.parametrize("grad_gate", [1e-160, 1e-20, 1e30])
def test_constants_of_any_size_have_a_crossing(grad_gate: float) -> None:
    """A gate that weighs next to nothing changes nothing; one that weighs all leaves only γ(C·0 + B) against γ²·B."""
    setting = Setting((2.0,) * 5, 10**12)
    k = Constants(1.0, 1.0, 1.0, grad_gate, 1.0, 0.0, 9.0)
    found = bounds(setting, k)
    without = ahead(5, replace(k, grad_gate=0.0))
    assert found["ems_fl_ahead"] == (without if grad_gate < 1 else [[pytest.approx(1.0), 5.0]])
    assert all(map(math.isfinite, (found[name][kind] for name in ("ems_fl", "sync") for kind in ("published", "corrected"))))


def test_without_gradients_nobody_is_ahead_and_curves_are_the_bounds() -> None:
    assert ahead(3, Constants(1, 0, 0, 0, 0, 0, 0)) == []
    assert ahead(3, Constants(1, 1, 0, 0, 0, 0, 0)) == [[1.0, 3.0]]
    found = curves(HAND, K, [1, 16], [1.0, 2.0])
    assert found["over_cycles"]["ems_fl"][1] == found["over_gamma"]["ems_fl"][1] == ems_fl_published(HAND, K)
    assert found["over_cycles"]["sync"][1] == found["over_gamma"]["sync"][1] == sync_published(HAND, K)


@pytest.mark.parametrize("C", range(2, 60))
def test_the_constant_5_covers_what_53_leaves_out(C: int) -> None:
    """The terms of a cycle in (η^E·γ)²·L·A and (η^U)²·L·B, derived again with the moves of other groups between t' and t.

    Expert part, for each of C groups: (51) moves of all groups by C rounds times the own C rounds; (54) twice C rounds of that
    distance and once the own distance; (56) a half. Gate part, for each of C rounds: (60), the distance in (61), and (62).
    """
    expert = C * (C**2.5 + C**2 / 2) + C * (2 * C**2.5 + C**2) + C * C**2 / 2 + C * (C**3 / 2 + 2 * C**2)
    gate = C * C**2 / 2 + C * C**1.5 + C * (1 / 2 + 2 * C + 1 / 2)
    assert expert <= 5 * C**4
    assert gate <= 5 * C**3


@pytest.mark.parametrize("C", range(2, 60))
def test_the_constant_5_covers_the_baseline(C: int) -> None:
    """As a form in a = η^E·√(A + ζ²) and b = η^U·√B, moves a round, of one cycle; the cross terms a·b stay.

    (68) and (69): three times Σ n(a + b)·a over n < C rounds; (71): (C·a)²/2; (74) to (76): C rounds of C·a·b, twice
    Σ n(a + b)·b, C·b²/2.
    """
    n = C * (C - 1) / 2
    aa, ab, bb = 3 * n + C**2 / 2, 3 * n + C**2 + 2 * n, 2 * n + C / 2
    left = 5 * C**3 * np.eye(2) - np.array([[aa, ab / 2], [ab / 2, bb]])
    assert np.linalg.eigvalsh(left).min() >= 0


@pytest.mark.parametrize("seed", range(40))
def test_general_forms_are_the_sums_of_64_and_77(seed: int) -> None:
    """T·(descent of a cycle)·‖∇F‖² ≤ F₀ − F* + T·(rest of a cycle), coefficients as printed, the least descent for both."""
    rng = np.random.default_rng(seed)
    L, gap, g_e, g_u, s_e, s_u, zeta = (float(x) for x in np.exp(rng.uniform(-4, 4, 7)))
    C, T = int(rng.integers(2, 12)), int(rng.integers(1, 1000))
    gammas = tuple(float(x) for x in rng.uniform(1, C, C))
    g, eta_u = max(gammas), float(rng.uniform(0.01, 1)) * max(gammas) / math.sqrt(T)
    eta_e = eta_u / g * float(rng.uniform(0.01, 1))
    found = bounds(Setting(gammas, T, eta_e, eta_u), Constants(L, gap, g_e, g_u, s_e, s_u, zeta))

    rest = 5 * (eta_e * g) ** 2 * C**4 * L * (g_e**2 + s_e**2) + 5 * eta_u**2 * L * C**3 * (g_u**2 + s_u**2)
    descent = min(eta_e * min(gammas) * C, eta_u * C)
    assert found["ems_fl"]["corrected"] == pytest.approx((gap + T * rest) / (T * descent))
    rest = 5 * eta_e**2 * L * C**3 * (g_e**2 + zeta**2 + s_e**2) + 5 * eta_u**2 * L * C**3 * (g_u**2 + s_u**2)
    assert found["sync"]["corrected"] == pytest.approx((gap + T * rest) / (T * eta_e * C))
    rest = 5 * (eta_e * g**2) ** 2 * C**4 * L * (g_e**2 + s_e**2) + 5 * eta_u**2 * L * C**3 * (g_u**2 + s_u**2)
    assert found["ems_fl"]["scaled_twice"] == pytest.approx((gap + T * rest) / (T * C * min(eta_e * g * min(gammas), eta_u)))


def test_the_baseline_with_a_gate_that_is_the_slower_part() -> None:
    """η^E = 1/2, η^U = 1/4: (77)'s lesser descent is the gate's. 12/(16·3·¼) + 5·2·9·[(1/2)²·26 + (1/4)²·5]/¼, by hand."""
    assert sync_general(replace(HAND, eta_expert=1 / 2, eta_gate=1 / 4), K) == pytest.approx(1 + 360 * (6.5 + 0.3125))


def test_numbers_that_cannot_be() -> None:
    with pytest.raises(InputError, match=r"--smoothness = 0: must be a number above 0; it is L of \(40\)"):
        replace(K, smoothness=0.0)
    with pytest.raises(InputError, match=r"--smoothness = 0: must be a number above 0; it is L of \(40\)"):
        Constants.of(dict.fromkeys(MEANINGS, 0.0))
    with pytest.raises(InputError, match=r"--sigma-gate = -1: must be a number from 0 to 1e\+30; it is σ_U of \(44\)"):
        replace(K, sigma_gate=-1.0)
    with pytest.raises(InputError, match=r"missing --gap, F₀ − F\*.*; --zeta-expert, ζ_E of \(47\)"):
        Constants.of({name: None if name in ("gap", "zeta_expert") else 1.0 for name in MEANINGS})
    with pytest.raises(InputError, match=r"--gamma = 0: must be a number above 0"):
        Setting((0.0, 1.0), 3)
    with pytest.raises(InputError, match=r"--eta-gate = -1: must be a number above 0"):
        Setting((1.0, 1.0), 3, eta_gate=-1.0)
    with pytest.raises(InputError, match=r"--cycles = 0: must be from 1 to 1e\+12"):
        Setting((1.0, 1.0), 0)


class LogCosh:
    """F = Σ_c w_c·log cosh(e_c − a_c) + log cosh(u − b): smooth, with gradients that are bounded everywhere.

    A quadratic's are not, so that (41) holds for no G. Each group of experts is one number, as is the gate.
    """

    def __init__(self, gammas: tuple[float, ...], sigma: float, zeta: float, seed: int):
        self.gammas, self.sigma, self.zeta = np.array(gammas), sigma, zeta
        self.rng = np.random.default_rng(seed)
        self.w = np.linspace(1.0, 0.5, len(gammas))
        self.constants = Constants(
            smoothness=1.0,
            gap=float(np.sum(self.w * np.log(np.cosh(2.0))) + np.log(np.cosh(1.0))),  # at e = 0, u = 0; the least is 0
            grad_expert=float(np.linalg.norm(self.w)),
            grad_gate=1.0,
            sigma_expert=sigma,
            sigma_gate=sigma,
            zeta_expert=zeta,
        )

    def expert(self, e: np.ndarray) -> np.ndarray:
        return self.w * np.tanh(e - 2.0)

    def gate(self, u: float) -> float:
        return math.tanh(u - 1.0)

    def noise(self, size: float) -> float:
        return size * self.rng.choice([-1.0, 1.0])

    def ems_fl(self, setting: Setting) -> float:
        """The mean of ‖∇F‖² over cycles: a cluster in contact hands in what it has trained, then the gate is trained."""
        C, (eta_e, eta_u), total = setting.clusters, setting.steps, 0.0
        e, local, u = np.zeros(C), np.zeros(C), 0.0
        for t in range(setting.cycles * C):
            if t % C == 0:
                total += float(np.sum(self.expert(e) ** 2)) + self.gate(u) ** 2
            e[t % C] = local[t % C]
            scaled = self.gammas * self.expert(local)
            local = local - eta_e * np.array([g + self.noise(self.sigma * setting.gamma) for g in scaled])
            u -= eta_u * (self.gate(u) + self.noise(self.sigma))
        return total / setting.cycles

    def sync(self, setting: Setting) -> float:
        C, (eta_e, eta_u), total = setting.clusters, setting.steps, 0.0
        e, u = np.zeros(C), 0.0
        each = math.hypot(self.sigma, self.zeta) / math.sqrt(C)
        for t in range(setting.cycles * C):
            if t % C == 0:
                total += float(np.sum(self.expert(e) ** 2)) + self.gate(u) ** 2
            e = e - eta_e * (self.expert(e) + np.array([self.noise(each) for _ in range(C)]))
            u -= eta_u * (self.gate(u) + self.noise(self.sigma))
        return total / setting.cycles


@pytest.mark.parametrize("gammas", [(1.0, 1.0), (2.0, 2.0), (1.0, 3.0, 2.0), (1.5, 1.5, 1.5, 1.5)])
@pytest.mark.parametrize("T", [4, 64, 400])
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_on_a_toy_that_keeps_the_assumptions_gradients_stay_below(gammas: tuple[float, ...], T: int, share: float) -> None:
    equal = Setting(gammas, T)
    setting = Setting(gammas, T, share * equal.steps[0], share * equal.steps[1])
    toys = [LogCosh(gammas, 0.5, 1.0, seed) for seed in range(5)]
    k = toys[0].constants
    found = bounds(setting, k)
    measured = {"ems_fl": np.mean([toy.ems_fl(setting) for toy in toys]), "sync": np.mean([toy.sync(setting) for toy in toys])}
    for scheme, mean in measured.items():
        loose = found[scheme]["corrected"] / mean
        print(f"{scheme}, γ {gammas}, T {T}, steps × {share}: measured {mean:.3g}, bound {loose:.0f} times that")
        assert mean <= found[scheme]["corrected"]
        assert share < 1 or mean <= found[scheme]["published"]
        assert loose > 3
