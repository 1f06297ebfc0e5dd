"""FedSC: clients' gradients add up to that of the global objective; augmentations are seeded and do what they say."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fedexperts.errors import InputError
from fedexperts.train.fedsc import (
    OFFICIAL,
    Augmentation,
    both_views,
    clipped,
    correlation,
    global_loss,
    local_loss,
    others,
    two_views,
)

D, SIZES, NORM = 5, (3, 8, 21), 1.3


def extractor() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, D)).double()


def clients() -> list[tuple[Tensor, Tensor]]:
    """Two views of each image of three clients, unequal in size and in kind."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for shift, n in enumerate(SIZES):
        x_N = torch.randn(n, 6, generator=generator, dtype=torch.float64) + shift
        made.append(tuple(x_N + 0.3 * torch.randn(n, 6, generator=generator, dtype=torch.float64) for _ in range(2)))
    return made


def shares() -> list[float]:
    return [n / sum(SIZES) for n in SIZES]


def gradient(model: nn.Module, loss: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def matrices(model: nn.Module) -> list[Tensor]:
    return [correlation(both_views(*(clipped(model(x), NORM) for x in views))) for views in clients()]


def of_all(model: nn.Module) -> Tensor:
    z_ND, plus_ND = (torch.cat([model(views[side]) for views in clients()]) for side in (0, 1))
    return global_loss(z_ND, plus_ND, NORM)


def of_one(model: nn.Module, i: int, q_i: float, others_DD: Tensor) -> Tensor:
    z_BD, plus_BD = (model(x) for x in clients()[i])
    return local_loss(z_BD, plus_BD, q_i, others_DD, NORM)


def test_clients_gradients_add_up_to_the_global_one():
    model, q_M = extractor(), shares()
    wanted = gradient(model, of_all(model))
    total = sum(q * gradient(model, of_one(model, i, q, others(matrices(model), q_M, i))) for i, q in enumerate(q_M))
    assert wanted.abs().max() > 1e-2
    assert torch.allclose(total, wanted, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("wrong", ["equal weights", "own data alone", "the release's first round"])
def test_other_weights_give_another_gradient(wrong):
    model, q_M = extractor(), shares()
    weights = {"equal weights": [1 / 3] * 3, "own data alone": [1.0] * 3, "the release's first round": [1.0] * 3}[wrong]
    wanted = gradient(model, of_all(model))
    total = sum(q * gradient(model, of_one(model, i, weights[i], others(matrices(model), q_M, i))) for i, q in enumerate(q_M))
    assert (total - wanted).norm() > 1e-2 * wanted.norm()


def test_without_the_stop_gradient_cross_terms_count_twice():
    model, q_M = extractor(), shares()
    r_MDD = matrices(model)
    total = torch.zeros(())
    for i, q in enumerate(q_M):
        mine, rest = r_MDD[i], sum(q_M[j] * r_MDD[j] for j in range(3) if j != i) / (1 - q)
        z_BD, plus_BD = (clipped(model(x), NORM) for x in clients()[i])
        total = total + q * (q * (mine**2).sum() / 2 + (1 - q) * (mine * rest).sum() - (z_BD * plus_BD).sum(1).mean())
    cross = sum(q_M[i] * q_M[j] * (r_MDD[i] * r_MDD[j]).sum() for i in range(3) for j in range(3) if i != j)
    assert torch.allclose(total, of_all(model) + cross / 2)
    wanted, doubled = gradient(model, of_all(model)), gradient(model, total)
    assert (doubled - wanted).norm() > 1e-2 * wanted.norm()


def test_r_of_the_others_carries_no_gradient():
    model = extractor()
    assert not others(matrices(model), shares(), 0).requires_grad
    rest = sum(matrices(model)[1:]).detach().requires_grad_()
    of_one(model, 0, 0.2, rest).backward()
    assert rest.grad is None


def test_the_global_loss_is_an_expectation_over_pairs():
    model = extractor().requires_grad_(False)
    z_ND, plus_ND = (clipped(torch.cat([model(views[side]) for views in clients()]), NORM) for side in (0, 1))
    views = torch.cat([z_ND, plus_ND])
    pairs = torch.tensor([float(x @ y) ** 2 for x in views for y in views], dtype=torch.float64)
    expected = pairs.mean() / 2 - torch.stack([x @ y for x, y in zip(z_ND, plus_ND, strict=True)]).mean()
    assert torch.allclose(of_all(model), expected)


def test_others_is_the_weighted_mean():
    r_MDD = [torch.full((2, 2), float(v)) for v in (1, 10, 100)]
    assert torch.allclose(others(r_MDD, [0.5, 0.3, 0.2], 0), torch.full((2, 2), (3 + 20) / 0.5))
    q_M = [0.5, 0.3, 0.2]
    assert torch.allclose(0.3 * r_MDD[1] + 0.7 * others(r_MDD, q_M, 1), sum(q * r for q, r in zip(q_M, r_MDD, strict=True)))
    assert torch.allclose(others(r_MDD, [1 / 3] * 3, 2), torch.full((2, 2), 5.5))  # the release's plain mean


def test_r_is_symmetric_to_the_bit_and_has_two_forms():
    z_BD, plus_BD = (torch.randn(50, D, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    r_DD = correlation(z_BD)
    assert torch.equal(r_DD, r_DD.T)
    assert torch.allclose(r_DD, torch.stack([torch.outer(z, z) for z in z_BD]).mean(dim=0), atol=1e-6)
    assert torch.allclose(correlation(z_BD, plus_BD)[0, 1], (z_BD[:, 0] * plus_BD[:, 1]).mean())


def test_long_representations_are_clipped_and_short_ones_left():
    z_BD = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    assert torch.allclose(clipped(z_BD, 2.0), torch.tensor([[1.2, 1.6], [0.3, 0.4], [0.0, 0.0]]))
    leaf = torch.zeros(1, 2, requires_grad=True)
    clipped(leaf, 1.0).sum().backward()
    assert leaf.grad.isfinite().all()


def test_a_few_steps_pull_views_together_and_images_apart():
    model = extractor()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first = of_all(model).item()
    for _ in range(30):
        optimizer.zero_grad()
        of_all(model).backward()
        optimizer.step()
    assert of_all(model).item() < first - 0.05


def test_the_released_schedule():
    assert (OFFICIAL.own_weight(0.1, 0), OFFICIAL.own_weight(0.1, 100)) == pytest.approx((1.0, 0.6))
    assert (OFFICIAL.rate(0), OFFICIAL.rate(100), OFFICIAL.rate(200)) == pytest.approx((0.06, 0.03, 0.0))
    assert OFFICIAL.norm**2 == pytest.approx(4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: others([torch.eye(2)] * 2, [0.5, 0.6], 0), "sum to 1"),
        (lambda: others([torch.eye(2)], [1.0], 0), "at least 2"),
        (lambda: clipped(torch.ones(1, 2), 0.0), "norm = 0: must be above 0"),
        (lambda: local_loss(torch.ones(1, 2), torch.ones(1, 2), 1.5, None, 1.0), "own_weight = 1.5: must lie in 0…1"),
        (lambda: Augmentation()(torch.full((1, 3, 8, 8), 2.0), torch.Generator()), "must be bytes or lie in 0…1"),
    ],
)
def test_wrong_input_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


# ---- augmentations

NOTHING = Augmentation(0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def some_images(n: int = 64, channels: int = 3, side: int = 32) -> Tensor:
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.2


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_without_any_change_images_stay():
    assert torch.allclose(NOTHING(some_images(), seeded()), some_images(), atol=1e-6)
    bytes_ = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.allclose(NOTHING(bytes_, seeded()) * 255, bytes_.float(), atol=1e-3)


@pytest.mark.parametrize("kernel", [Augmentation(), Augmentation(4, 1.0, 0.5, 0.4, 0.4, 0.0, 0.0, 0.8, 0.2)])
@pytest.mark.parametrize(("channels", "side"), [(3, 32), (1, 28)])
def test_views_depend_on_the_seed_alone(kernel, channels, side):
    x_BCSS = some_images(16, channels, side)
    view = kernel(x_BCSS, seeded(1))
    assert torch.equal(view, kernel(x_BCSS, seeded(1)))
    assert not torch.equal(view, kernel(x_BCSS, seeded(2)))
    assert view.shape == x_BCSS.shape
    assert 0 <= float(view.min()) <= float(view.max()) <= 1


def test_two_views_are_two_draws_in_the_models_range():
    one, other = two_views(some_images(), Augmentation(), seeded())
    assert torch.allclose((one + 1) / 2, Augmentation()(some_images(), seeded()), atol=1e-6)
    assert not torch.equal(one, other)
    assert (one.min() < -0.9, one.max() > 0.5) == (True, True)


def test_a_flip_mirrors_half_of_the_images():
    x_BCSS = some_images(400, 1, 8)
    view = Augmentation(0, 1.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)(x_BCSS, seeded())
    mirrored = (view - x_BCSS.flip(-1)).abs().amax(dim=(1, 2, 3)) < 1e-5
    kept = (view - x_BCSS).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert bool((mirrored ^ kept).all())
    assert 160 < int(mirrored.sum()) < 240


def test_a_padded_crop_shifts_by_whole_pixels_over_black():
    x_BCSS = some_images(2500, 1, 8)
    view = Augmentation(2, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)(x_BCSS, seeded())
    padded = torch.nn.functional.pad(x_BCSS, (2, 2, 2, 2))
    shifts = [(dy, dx) for dy in range(5) for dx in range(5)]
    near = torch.stack([(view - padded[:, :, y : y + 8, x : x + 8]).abs().amax(dim=(1, 2, 3)) < 1e-5 for y, x in shifts])
    assert bool((near.sum(dim=0) == 1).all())
    assert bool(((near.sum(dim=1) - 100).abs() < 40).all())  # all shifts alike


def test_a_resized_crop_is_a_part_of_the_image():
    ramp = torch.linspace(0.1, 0.9, 32).expand(200, 1, 32, 32)
    view = Augmentation(0, 0.2, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)(ramp, seeded())
    span = (view[:, 0, :, -2] - view[:, 0, :, 1]).mean(dim=1) / (ramp[0, 0, 0, -2] - ramp[0, 0, 0, 1])
    assert float(span.max()) <= 1.001
    assert math.sqrt(0.2 * 3 / 4) * 0.95 < float(span.min()) < 0.6
    assert float(view.min()) > 0.05  # nothing from beyond the edges


def test_grey_and_hue_keep_the_luma():
    x_BCSS = some_images()
    luma = (x_BCSS * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(dim=1)
    grey = Augmentation(0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)(x_BCSS, seeded())
    assert torch.allclose(grey, luma.unsqueeze(1).expand_as(grey), atol=1e-5)
    pale = luma.unsqueeze(1) + 0.1 * (x_BCSS - luma.unsqueeze(1))  # so that no turned colour is clamped
    turned = Augmentation(0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.5, 1.0, 0.0)(pale, seeded())
    after = (turned * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(dim=1)
    assert torch.allclose(after, luma, atol=1e-3)
    assert (turned - pale).abs().amax() > 0.03


@pytest.mark.parametrize("which", ["brightness", "contrast", "saturation"])
def test_jitter_scales_within_its_span(which):
    options = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0} | {which: 0.4}
    x_BCSS = some_images(300) * 0.1 + 0.4
    view = Augmentation(0, 1.0, 0.0, hue=0.0, jitter=0.8, grey=0.0, **options)(x_BCSS, seeded())
    measure = {
        "brightness": lambda x: x.mean(dim=(1, 2, 3)),
        "contrast": lambda x: x.std(dim=(1, 2, 3)),
        "saturation": lambda x: x.std(dim=1).mean(dim=(1, 2)),
    }[which]
    factors = measure(view) / measure(x_BCSS)
    assert 0.58 < float(factors.min()) < 0.65
    assert 1.35 < float(factors.max()) < 1.42
    assert 30 < int(((factors - 1).abs() < 1e-4).sum()) < 90  # a fifth stays as it was
