"""Noise on correlation matrices: its shape, its scale, what it must hide, and what it gives."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm as gaussian

from fedexperts.errors import InputError
from fedexperts.train.privacy import guarantee, noisy, sensitivity

C, N, SIGMA = 1.5, 40, 2.0


def representations(n: int = N, d: int = 6, seed: int = 0) -> np.ndarray:
    z_ND = np.random.default_rng(seed).normal(size=(n, d))
    return z_ND * np.minimum(1, C / np.linalg.norm(z_ND, axis=1, keepdims=True))


def mean(z_ND: np.ndarray) -> np.ndarray:
    return z_ND.T @ z_ND / len(z_ND)


# ---- sensitivity


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(1, 4))
def test_no_neighbour_is_farther_than_the_sensitivity(seed, n, d):
    z_ND, rng = representations(n, d, seed), np.random.default_rng(seed)
    other = z_ND.copy()
    other[0] = representations(1, d, seed + 1)[0]
    if rng.random() < 0.5:
        other[0] *= C / np.linalg.norm(other[0])
    for neighbour in (other, z_ND[1:]):
        assert np.linalg.norm(mean(z_ND) - mean(neighbour)) <= sensitivity(C, n) * (1 + 1e-12)


def test_the_sensitivity_is_reached():
    a, b = np.zeros((N, 2)), np.zeros((N, 2))
    a[0, 0] = b[0, 1] = C
    assert np.linalg.norm(mean(a) - mean(b)) == pytest.approx(sensitivity(C, N), rel=1e-12)
    one = np.zeros((N, 2))
    one[1:, 1], one[0, 0] = C, C
    assert np.linalg.norm(mean(one) - mean(one[1:])) == pytest.approx(sensitivity(C, N), rel=1e-12)


# ---- noise


def draws(times: int = 4000, d: int = 5) -> np.ndarray:
    rng, zero = np.random.default_rng(7), np.zeros((d, d))
    return np.stack([noisy(zero, SIGMA, C, N, rng) for _ in range(times)])


def test_what_is_shared_is_symmetric_to_the_bit():
    lopsided = mean(representations()) + np.triu(np.full((6, 6), 1e-9))  # as sums in another order would be
    for seed in range(20):
        released = noisy(lopsided, SIGMA, C, N, np.random.default_rng(seed))
        assert np.array_equal(released, released.T)


def test_the_noise_has_the_stated_variances():
    n_TDD, s = draws(), SIGMA * math.sqrt(2) * C**2 / N
    diagonal = np.diagonal(n_TDD, axis1=1, axis2=2) / s
    above = n_TDD[:, *np.triu_indices(5, 1)] * math.sqrt(2) / s
    for values in (diagonal, above):  # 20,000 and 40,000 values: three standard errors
        assert abs(values.mean()) < 3 / math.sqrt(values.size)
        assert abs(values.var() - 1) < 3 * math.sqrt(2 / values.size)
    together = np.concatenate([diagonal, above], axis=1)
    apart = np.corrcoef(together.T) - np.eye(15)
    assert np.abs(apart).max() < 4.5 / math.sqrt(len(n_TDD))


def test_the_noise_is_added_to_r_and_repeats_with_the_seed():
    r_DD = mean(representations())
    zero = noisy(np.zeros_like(r_DD), SIGMA, C, N, np.random.default_rng(3))
    assert np.allclose(noisy(r_DD, SIGMA, C, N, np.random.default_rng(3)) - r_DD, zero, atol=1e-12)
    assert not np.allclose(zero, noisy(np.zeros_like(r_DD), SIGMA, C, N, np.random.default_rng(4)))


# ---- the accountant


def exact(mu: float, delta: float) -> float:
    """ε of a Gaussian mechanism of sensitivity μ times its noise (Balle and Wang, Theorem 8)."""

    def excess(epsilon: float) -> float:
        low, high = gaussian.cdf(mu / 2 - epsilon / mu), gaussian.logcdf(-mu / 2 - epsilon / mu)
        return float(low - math.exp(epsilon + high) - delta)

    return float(brentq(excess, 0, 500, xtol=1e-12))


@pytest.mark.parametrize(("sigma", "releases"), [(1, 1), (5, 1), (0.5, 1), (20, 200), (30, 1000), (4, 7)])
@pytest.mark.parametrize("delta", [1e-5, 1e-3])
def test_epsilon_is_that_of_the_analytic_gaussian_mechanism(sigma, releases, delta):
    # T Gaussians of multiplier σ are one of σ/√T
    ours, wanted = guarantee(sigma, releases, delta).epsilon, exact(math.sqrt(releases) / sigma, delta)
    assert wanted * (1 - 1e-6) <= ours <= wanted * 1.001 + 1e-6
    rho = releases / (2 * sigma**2)
    assert ours < rho + 2 * math.sqrt(rho * math.log(1 / delta))  # zCDP's bound is looser


def test_less_noise_and_more_releases_cost_more():
    by_sigma = [guarantee(sigma, 10, 1e-5).epsilon for sigma in (0.8, 1.5, 5, 20, 200)]
    by_release = [guarantee(5, releases, 1e-5).epsilon for releases in (1, 2, 10, 100, 400)]
    assert by_sigma == sorted(by_sigma, reverse=True)
    assert by_release == sorted(by_release)
    assert len(set(by_sigma)) == len(set(by_release)) == 5


def test_almost_no_noise_is_bounded_and_quick():
    assert 1e4 < guarantee(0.01, 10, 1e-5).epsilon < 1e6


def test_the_text_says_what_is_not_protected():
    text = str(guarantee(20, 200, 1e-5))
    assert "(2.94, 1e-05)-differential privacy of one sample in 200 releases" in text
    assert "the shared weights are not protected" in text


def test_without_the_accountant_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(InputError, match=r"pip install 'fedexperts\[privacy\]'"):
        guarantee(1, 1, 1e-5)


# ---- wrong input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: guarantee(0, 1, 1e-5), "sigma = 0: must be above 0"),
        (lambda: guarantee(1, 0, 1e-5), "releases = 0: must be at least 1"),
        (lambda: guarantee(1, 1, 1.0), "delta = 1: must lie between 0 and 1"),
        (lambda: sensitivity(0, 3), "norm = 0: must be above 0"),
        (lambda: sensitivity(1, 0), "samples = 0: must be at least 1"),
        (lambda: noisy(np.zeros((2, 3)), 1, 1, 1, np.random.default_rng()), "must be a square matrix"),
        (lambda: noisy(np.eye(2), -1, 1, 1, np.random.default_rng()), "sigma = -1: must be above 0"),
        (lambda: noisy(np.eye(3), 1, 1.5, 1, np.random.default_rng()), "clip representations first"),
    ],
)
def test_wrong_input_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
