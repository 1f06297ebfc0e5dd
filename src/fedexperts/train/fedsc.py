"""FedSC: federated self-supervised training of a feature extractor with the spectral contrastive loss, (3) and (4).

Shapes: B images of a batch, N images of a client, M clients, C channels, S side in pixels, D numbers of a representation.
Matrices are R_DD. A representation is F(x; θ_F) of an augmented image; two views of one image are z_BD and plus_BD.

Sources: Networked MoE, Sec. III-A; FedSC (Jing et al., ICML 2024), whose released code `OFFICIAL` and the defaults of
`Augmentation` restate in part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError

LUMA = (0.299, 0.587, 0.114)
"""ITU-R BT.601: what red, green and blue give to grey."""
CHROMA = ((0.596, -0.274, -0.322), (0.211, -0.523, 0.312))
"""The two colour axes of YIQ; turning in their plane turns the hue and keeps the grey."""


@dataclass(frozen=True)
class Augmentation:
    """The kernel 𝒜: how an image is changed at random. Every image of a batch draws for itself.

    The default is that of FedSC's release: resized crops of 20 to 100 % of the area, mirror images, colour jitter in 80 %, grey
    in 20 %. There the four jitters come in a random order and hues turn in HSV; here the order is fixed and hues turn in YIQ.

    Attributes:
        padding: pixels by which a box may reach over the edges, where it finds black.
        least_area: a box takes a share of the area from here to 1, with sides 3:4 to 4:3, and is scaled to the whole.
        flip: probability of a mirror image.
        brightness, contrast, saturation: factors are drawn from 1 ± this.
        hue: turns by at most this share of a circle.
        jitter: probability that these four apply at all.
        grey: probability of an image without colours.
    """

    padding: int = 0
    least_area: float = 0.2
    flip: float = 0.5
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    jitter: float = 0.8
    grey: float = 0.2

    def __call__(self, x_BCSS: Tensor, generator: torch.Generator) -> Tensor:
        """Augmented images, floats in 0…1, from bytes or from floats in 0…1; ``generator`` lives on the CPU.

        Scale them to what the model takes afterwards. Grey images (C = 1) have no colours to change.

        Raises:
            InputError: floats outside 0…1.
        """
        x_BCSS = x_BCSS / 255 if not x_BCSS.is_floating_point() else x_BCSS
        if len(x_BCSS) and not 0 <= float(x_BCSS.min()) <= float(x_BCSS.max()) <= 1:
            raise InputError(
                f"images from {x_BCSS.min():g} to {x_BCSS.max():g}: must be bytes or lie in 0…1; augment, then scale"
            )
        return self._coloured(self._cut(x_BCSS, generator), generator)

    def _cut(self, x_BCSS: Tensor, generator: torch.Generator) -> Tensor:
        """Box and mirror image in one step of sampling."""
        n, side = len(x_BCSS), x_BCSS.shape[-1]
        area_B = _uniform(n, self.least_area, 1.0, generator)
        ratio_B = _uniform(n, -1.0, 1.0, generator).mul(math.log(4 / 3) / 2).exp() if self.least_area < 1 else torch.ones(n)
        size_B2 = torch.stack([(area_B.sqrt() * r).clamp(max=1.0) for r in (ratio_B, 1 / ratio_B)], dim=1)
        along_B2 = _uniform(2 * n, -1.0, 1.0, generator).view(n, 2)
        if self.least_area < 1:
            centre_B2 = along_B2 * (1 - size_B2 + 2 * self.padding / side)  # in half sides
        else:  # by whole pixels, so that nothing is blurred
            pixels_B2 = (along_B2 * (self.padding + 0.5)).round().clamp(-self.padding, self.padding)
            centre_B2 = pixels_B2 * 2 / side
        mirror_B = torch.where(torch.rand(n, generator=generator) < self.flip, -1.0, 1.0)
        theta_B23 = torch.zeros(n, 2, 3)
        theta_B23[:, 0, 0], theta_B23[:, 1, 1] = size_B2[:, 0] * mirror_B, size_B2[:, 1]
        theta_B23[:, :, 2] = centre_B2
        grid = F.affine_grid(theta_B23.to(x_BCSS), list(x_BCSS.shape), align_corners=False)
        return F.grid_sample(x_BCSS, grid, padding_mode="zeros", align_corners=False).clamp(0, 1)

    def _coloured(self, x_BCSS: Tensor, generator: torch.Generator) -> Tensor:
        """Brightness, contrast, saturation, hue, in this order; then grey."""
        n, colours = len(x_BCSS), x_BCSS.shape[1] == 3
        applies_B = torch.rand(n, generator=generator) < self.jitter
        spans = (self.brightness, self.contrast, self.saturation)
        factors = [torch.where(applies_B, _uniform(n, 1 - span, 1 + span, generator), 1.0) for span in spans]
        brightness, contrast, saturation = (f.to(x_BCSS).view(n, 1, 1, 1) for f in factors)
        turn_B = torch.where(applies_B, _uniform(n, -self.hue, self.hue, generator), 0.0).to(x_BCSS)
        grey_B = (torch.rand(n, generator=generator) < self.grey).to(x_BCSS.device)
        x_BCSS = (x_BCSS * brightness).clamp(0, 1)
        x_BCSS = _towards(_grey(x_BCSS).mean(dim=(2, 3), keepdim=True), x_BCSS, contrast)
        if not colours:
            return x_BCSS
        if self.saturation:
            x_BCSS = _towards(_grey(x_BCSS), x_BCSS, saturation)
        if self.hue:
            x_BCSS = _turned(x_BCSS, turn_B)
        return torch.where(grey_B.view(n, 1, 1, 1), _grey(x_BCSS), x_BCSS)


def two_views(x_BCSS: Tensor, kernel: Augmentation, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """x and x⁺ ~ 𝒜(·|x̄) of each image, in −1…1 as `moe.resnet` takes them; raises as `Augmentation`."""
    one, other = (kernel(x_BCSS, generator) * 2 - 1 for _ in range(2))
    return one, other


def _uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator) * (high - low) + low


def _grey(x_BCSS: Tensor) -> Tensor:
    """One channel: of colours their luma."""
    if x_BCSS.shape[1] != 3:
        return x_BCSS
    return (x_BCSS * x_BCSS.new_tensor(LUMA).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)


def _towards(start: Tensor, x_BCSS: Tensor, factor: Tensor) -> Tensor:
    """The images with their distance from ``start`` times a factor."""
    return (start + factor * (x_BCSS - start)).clamp(0, 1)


def _turned(x_BCSS: Tensor, turn_B: Tensor) -> Tensor:
    """Hues turned by shares of a circle, in the plane of YIQ's colours: a linear stand-in for the turn in HSV."""
    into = x_BCSS.new_tensor((LUMA, *CHROMA))
    angle_B = 2 * math.pi * turn_B
    turn_B33 = torch.zeros(len(turn_B), 3, 3).to(x_BCSS)
    turn_B33[:, 0, 0] = 1
    turn_B33[:, 1, 1] = turn_B33[:, 2, 2] = angle_B.cos()
    turn_B33[:, 1, 2], turn_B33[:, 2, 1] = -angle_B.sin(), angle_B.sin()
    return torch.einsum("bij,bjyx->biyx", torch.linalg.inv(into) @ turn_B33 @ into, x_BCSS).clamp(0, 1)


@dataclass(frozen=True)
class Schedule:
    """How FedSC is trained.

    Attributes:
        norm: c, the longest that a representation may be; see `clipped`.
        rounds, epochs, batch_size: rounds between server and clients, local epochs of each, images of a batch.
        lr, momentum, weight_decay: of SGD; the rate follows `rate`.
        max_gradient: global norm to which gradients are clipped.
        passes: augmented passes over the data of which R_i is the mean, with two views each.
        own_weights: what takes the place of q_i in (4), in the first round and after the last, linear between; None is q_i.
    """

    norm: float
    rounds: int
    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    max_gradient: float
    passes: int
    own_weights: tuple[float, float] | None = None

    def rate(self, round_: int) -> float:
        """The learning rate of a round counted from 0: a cosine from ``lr`` to 0 after the last."""
        return self.lr * (1 + math.cos(math.pi * round_ / self.rounds)) / 2

    def own_weight(self, q_i: float, round_: int) -> float:
        """What weighs a client's own matrix in (4)."""
        if self.own_weights is None:
            return q_i
        first, last = self.own_weights
        return first + (last - first) * round_ / self.rounds


OFFICIAL = Schedule(2.0, 200, 5, 512, 0.06, 0.9, 2.5e-4, 1.5, 5, (1.0, 0.2))
"""The authors' release (ShusenJing/FedSC_ICML2024, the script with shared matrices), restated for (4): its loss is twice
that, with a rate of 0.03, a decay of 5e-4 and gradients up to 3, which are the same steps. Its own weights fall from 1 to
0.2 whatever the clients' sizes, so that it does not follow the gradient of (3), and its R̄_{−i} is a plain mean: `others`
with equal q. Of these a run takes `rate` and `own_weight` over its own rounds (`networked.schedule = "falling"`); the rest,
SGD with a momentum that starts anew every round among it, is not what a scenario's FedSC does.

With all clients in each round these are 200 × 5 = 1,000 epochs at home. Where they are drawn, max(⌊0.2·M⌋, 2) of M a round and
all in the first, a client of ten makes 5 + 0.2 · 199 · 5 = 204 in expectation. R is taken on the model of the round before
anybody trains, over 5 passes of all of a client's data, and those drawn use the others' of that very model. Its projection
512 → 1024 → 512 on top of the extractor, to which c and R belong, is `moe.resnet.projection`. Its noise on R, 0.00104 on each
entry and not symmetric, is stated without an (ε, δ); ours is in `privacy`."""


def clipped(z_BD: Tensor, norm: float) -> Tensor:
    """Representations no longer than ``norm``; longer ones are scaled to it. This bounds what one image does to R.

    Raises:
        InputError: the bound is not above 0.
    """
    if not norm > 0:
        raise InputError(f"norm = {norm:g}: must be above 0; the release of FedSC takes 1.414")
    length_B1: Tensor = torch.linalg.vector_norm(z_BD, dim=1, keepdim=True)
    return z_BD * (norm / length_B1.clamp_min(norm))


def correlation(z_BD: Tensor, plus_BD: Tensor | None = None) -> Tensor:
    """R = mean of z zᵀ, exactly symmetric; with ``plus_BD`` R⁺ = mean of z z⁺ᵀ, of two views of each image."""
    r_DD = z_BD.T @ (z_BD if plus_BD is None else plus_BD) / len(z_BD)
    return (r_DD + r_DD.T) / 2 if plus_BD is None else r_DD


def others(r_MDD: Sequence[Tensor], q_M: Sequence[float], i: int) -> Tensor:
    """R̄_{−i} = Σ_{j≠i} q_j R_j / (1 − q_i): the mean of the other clients, weighted by their data. It carries no gradient.

    Raises:
        InputError: the shares do not sum to 1, are not positive, or there is no other client.
    """
    if len(r_MDD) != len(q_M) or len(q_M) < 2:
        raise InputError(f"{len(r_MDD)} matrices and {len(q_M)} shares: R̄ of the others needs as many of both, at least 2")
    if min(q_M) <= 0 or abs(sum(q_M) - 1) > 1e-6:
        raise InputError(
            f"q = {list(q_M)}: shares must be above 0 and sum to 1; divide the clients' sample counts by their sum"
        )
    terms = [q * r_DD.detach() for j, (q, r_DD) in enumerate(zip(q_M, r_MDD, strict=True)) if j != i]
    return torch.stack(terms).sum(dim=0) / sum(q for j, q in enumerate(q_M) if j != i)


def both_views(z_BD: Tensor, plus_BD: Tensor) -> Tensor:
    """The 2B views of a batch, of which R is the mean."""
    return torch.cat([z_BD, plus_BD])


def attraction(z_BD: Tensor, plus_BD: Tensor) -> Tensor:
    """Tr R⁺, the mean of zᵀz⁺."""
    return (z_BD * plus_BD).sum(dim=1).mean()


def local_loss(z_BD: Tensor, plus_BD: Tensor, own_weight: float, others_DD: Tensor | None, norm: float) -> Tensor:
    """(4): −Tr R_i⁺ + ½ q_i ‖R_i‖² + (1 − q_i) Tr(R_i R̄_{−i}), of representations that are clipped here.

    The gradient of (3) comes out whole. With R = Σ q_i R_i, (3) is ℒ = ½‖R‖² − Σ q_i Tr R_i⁺, and

        dℒ = ⟨R, Σ q_i dR_i⟩ − Σ q_i Tr dR_i⁺ = Σ q_i (⟨R, dR_i⟩ − Tr dR_i⁺).

    R̄_{−i} being constant, (4) has dℒ_i = ⟨q_i R_i + (1 − q_i) R̄_{−i}, dR_i⟩ − Tr dR_i⁺, and the bracket's first entry is R. So
    Σ q_i ∇ℒ_i = ∇ℒ at equal parameters: the ½ of ‖R_i‖² goes by differentiation, and the cross term has none because each
    ⟨R_i, R_j⟩ is differentiated by client i in R_i and by client j in R_j. Were R̄ differentiated too, cross terms would count
    twice. The values differ: Σ q_i ℒ_i = ℒ + ½ Σ_{i≠j} q_i q_j ⟨R_i, R_j⟩.

    Over a minibatch R_i is estimated by the mean over its views, as in the release. Then ‖R_i‖² is too large by the estimate's
    variance, at most c⁴/B: it contains every view's product with itself and with its pair.

    Args:
        z_BD, plus_BD: two views of each image.
        own_weight: q_i, or what a `Schedule` has in its place.
        others_DD: R̄_{−i}; None, before any was shared, makes the client contrast with itself alone (q_i = 1).
        norm: c.

    Raises:
        InputError: the weight lies outside 0…1, or the norm is not above 0.
    """
    if not 0 <= own_weight <= 1:
        raise InputError(f"own_weight = {own_weight:g}: must lie in 0…1; it is the client's share of all samples")
    z_BD, plus_BD = clipped(z_BD, norm), clipped(plus_BD, norm)
    r_DD = correlation(both_views(z_BD, plus_BD))
    if others_DD is None:
        return (r_DD**2).sum() / 2 - attraction(z_BD, plus_BD)
    repulsion = own_weight * (r_DD**2).sum() / 2 + (1 - own_weight) * (r_DD * others_DD.detach()).sum()
    return repulsion - attraction(z_BD, plus_BD)


def global_loss(z_ND: Tensor, plus_ND: Tensor, norm: float) -> Tensor:
    """(3) over the union of all clients' images: ½ E[(zᵀz⁻)²] − E[zᵀz⁺] = ½‖R‖² − Tr R⁺, as x and x⁻ are independent."""
    return local_loss(z_ND, plus_ND, 1.0, None, norm)
