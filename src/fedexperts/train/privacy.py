"""Differential privacy of shared correlation matrices: symmetric Gaussian noise, and the (ε, δ) that it gives.

What is protected is one sample of one client, and in the matrices R_i alone. The weights that clients share beside them are
trained on the same samples and are **not** protected by this: (ε, δ) is what the matrices add to them. So R_i is to be of a
model that is given, as the one that came down to the client; the bound below does not hold for one that was then trained
on the very samples.

Sensitivity, for data sets of which one sample is replaced, so that n stays and may be public (protocols share it as q_i).
R = (1/n) Σ_s A_s, where A_s is zzᵀ of a sample, or the mean of this over its views; ‖z‖ ≤ c makes every A_s positive
semidefinite with ‖A_s‖_F ≤ c². Replacing a sample moves R by (A − A′)/n, and as ⟨A, A′⟩ ≥ 0 for semidefinite matrices, ‖A
− A′‖_F ≤ √(‖A‖² + ‖A′‖²) ≤ √2·c²: the sensitivity is √2·c²/n. Removing a sample moves R by (A − R′)/n, with R′ the mean
of the rest, so no farther, and adding one less far; but then n, and the noise that is set by it, would themselves tell of
the sample, so that no guarantee for this adjacency is claimed.

Noise. G with independent entries of standard deviation σ·√2·c²/n makes R + G a Gaussian mechanism of noise multiplier σ,
since the Frobenius norm is the Euclidean norm of the entries. Its symmetric part loses nothing of that: it is computed from
R + G.

The noise comes from a seeded generator, so that runs repeat. Who knows the seed can take it off again: in a deployment it
is to be drawn from the system and kept secret. Rounding of floating-point noise is not accounted for.

Shapes: D numbers of a representation.
Sources: Networked MoE, Sec. III-A; FedSC (Jing et al., ICML 2024); Balle and Wang, ICML 2018 (analytic Gaussian mechanism).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

TIGHT_UP_TO = 20.0
"""√T/σ up to which privacy losses are composed exactly; above, ε is in the hundreds, and Rényi's bound serves."""


@dataclass(frozen=True)
class Guarantee:
    """What T releases of one client's matrix add to the shared weights about one of its samples, which is replaced: (ε, δ)."""

    epsilon: float
    delta: float
    sigma: float
    releases: int

    def __str__(self) -> str:
        return (
            f"({self.epsilon:.3g}, {self.delta:g})-differential privacy of one sample in {self.releases} releases of a "
            f"client's correlation matrix (Gaussian noise of multiplier {self.sigma:g}), given the shared weights: these leak "
            "beside it, and the shared weights are not protected by it"
        )


def sensitivity(norm: float, samples: int) -> float:
    """√2·c²/n: how far replacing one of the n samples can move R in Frobenius norm; derived above.

    Raises:
        InputError: ``norm`` is not above 0, or there is no sample.
    """
    if not norm > 0:
        raise InputError(f"norm = {norm:g}: must be above 0; give the length to which representations are clipped")
    if samples < 1:
        raise InputError(f"samples = {samples}: must be at least 1; a client without data shares no matrix")
    return math.sqrt(2) * norm**2 / samples


def noisy(r_DD: NDArray[np.floating], sigma: float, norm: float, samples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """R + N, symmetric to the bit: N = (G + Gᵀ)/2, entries of G independent with standard deviation s = σ·√2·c²/n.

    N has variance s² on the diagonal and s²/2 off it. R is to be of representations clipped to ``norm`` (see `fedsc.clipped`),
    with the mean over ``samples`` samples.

    Raises:
        InputError: a bound is out of range, R is not a square matrix, or it cannot be a mean of matrices within ``norm``.
    """
    if not 0 < sigma < math.inf:
        raise InputError(f"sigma = {sigma:g}: must be above 0 and finite; without noise share R itself")
    if r_DD.ndim != 2 or r_DD.shape[0] != r_DD.shape[1]:
        raise InputError(f"R of shape {r_DD.shape}: must be a square matrix, of one correlation for each pair of numbers")
    if not np.trace(r_DD) <= norm**2 * (1 + 1e-3):  # Tr R is the mean of ‖z‖²
        raise InputError(
            f"norm = {norm:g}: the trace of R is {np.trace(r_DD):g}, above norm² = {norm**2:g}; clip representations first"
        )
    g_DD = rng.normal(scale=sigma * sensitivity(norm, samples), size=r_DD.shape)
    released_DD = r_DD + g_DD
    symmetric: NDArray[np.float64] = (released_DD + released_DD.T) / 2
    return symmetric


def guarantee(sigma: float, releases: int, delta: float) -> Guarantee:
    """(ε, δ) after T releases of noise multiplier σ, each on the whole of a client's data: no gain by sampling is claimed.

    Each release may depend on those before it, as that of a trained model does.

    Privacy loss distributions of Google's dp-accounting, tight for Gaussians, and Rényi's bound where ε is in the hundreds.

    Raises:
        InputError: the extra is not installed, or a value is out of range.
    """
    if not 0 < sigma < math.inf:
        raise InputError(f"sigma = {sigma:g}: must be above 0 and finite; without noise there is no guarantee")
    if releases < 1:
        raise InputError(f"releases = {releases}: must be at least 1; a matrix that is not shared needs no noise")
    if not 0 < delta < 1:
        raise InputError(f"delta = {delta:g}: must lie between 0 and 1; take less than one over the number of samples")
    try:
        import dp_accounting
        from dp_accounting.pld import PLDAccountant
        from dp_accounting.rdp import RdpAccountant
    except ImportError as error:
        raise InputError(f"sigma = {sigma:g}: its (ε, δ) needs an accountant; pip install 'fedexperts[privacy]'") from error
    accountant = PLDAccountant() if math.sqrt(releases) / sigma <= TIGHT_UP_TO else RdpAccountant()
    accountant.compose(dp_accounting.GaussianDpEvent(sigma), releases)
    return Guarantee(float(accountant.get_epsilon(delta)), delta, sigma, releases)
