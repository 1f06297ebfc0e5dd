"""The digits source: disjoint splits, a token range for each domain, and labels that are permuted, not lost."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from fedexperts.data import digits
from fedexperts.data.digits import DOMAINS, MIXTURES, POSITIONS, RANGE, SHARED, SWAPS, TEST, VOCABULARY, label_map
from fedexperts.errors import InputError

IMAGES = 1797
SPLITS = ("train", "test", "shared")


def splits(domain: str, seed: int = 0) -> dict[str, dict[str, Tensor]]:
    return dict(zip(SPLITS, digits.load(domain, seed), strict=True))


def rows(samples: dict[str, Tensor]) -> list[tuple[int, ...]]:
    return [tuple(row) for row in samples["input_ids"].tolist()]


@pytest.fixture(params=DOMAINS)
def domain(request) -> str:
    return request.param


def test_shapes_and_types(domain):
    for samples in splits(domain).values():
        n = len(samples["labels"])
        assert samples["input_ids"].shape == (n, POSITIONS)
        assert samples["input_ids"].dtype == samples["labels"].dtype == torch.long
        assert set(samples["labels"].tolist()) == set(range(10))


def test_splits_together_hold_every_image_once(domain):
    sizes = {name: len(samples["labels"]) for name, samples in splits(domain).items()}
    assert sizes == {"train": IMAGES - TEST - SHARED, "test": TEST, "shared": SHARED}


def test_no_image_is_in_two_splits(domain):
    """Were one in two, another would be missing; a few different images look the same after rounding to levels."""
    distinct = {row for samples in splits(domain).values() for row in rows(samples)}
    assert len(distinct) > 0.99 * IMAGES


@pytest.mark.parametrize("split", SPLITS)
def test_domains_have_the_same_images_in_the_same_split(split):
    """Pixel levels of an image are the same multiset in every domain that only turns it."""
    turned = [splits(name)[split]["input_ids"] % RANGE for name in DOMAINS if name != "inverted"]
    signatures = [sorted(rows({"input_ids": levels(tokens).sort(dim=1).values})) for tokens in turned]
    assert signatures[0] == signatures[1] == signatures[2]


def levels(tokens_NP: Tensor) -> Tensor:
    """The pixel levels behind tokens of one domain, two to a token."""
    pair = tokens_NP - torch.arange(POSITIONS) * (RANGE // POSITIONS)
    base = round((RANGE // POSITIONS) ** 0.5)
    return torch.cat([pair // base, pair % base], dim=1)


def test_tokens_lie_in_the_domains_own_range(domain):
    low = DOMAINS.index(domain) * RANGE
    for samples in splits(domain).values():
        assert low <= int(samples["input_ids"].min())
        assert int(samples["input_ids"].max()) < low + RANGE


def test_every_position_has_tokens_of_its_own(domain):
    samples = splits(domain)["train"]
    seen: list[set[int]] = [set(samples["input_ids"][:, at].tolist()) for at in range(POSITIONS)]
    assert sum(map(len, seen)) == len(set.union(*seen))


def test_the_vocabulary_has_one_more_token_for_padding():
    assert len(DOMAINS) * RANGE + 1 == VOCABULARY
    used = torch.cat([samples["input_ids"].flatten() for name in DOMAINS for samples in splits(name).values()])
    assert int(used.max()) < VOCABULARY - 1


@pytest.mark.parametrize("name", DOMAINS)
def test_a_domains_labels_are_a_permutation_that_swaps_what_it_says(name):
    found = label_map(name).tolist()
    assert sorted(found) == list(range(10))
    expected = {a: b for pair in SWAPS[name] for a, b in (pair, pair[::-1])}
    assert {digit: answer for digit, answer in enumerate(found) if answer != digit} == expected


def test_domains_answer_differently():
    assert len({tuple(label_map(name).tolist()) for name in DOMAINS}) == len(DOMAINS)


@pytest.mark.parametrize("split", ["train", "test"])
def test_devices_data_have_the_domains_labels(domain, split):
    undo = torch.from_numpy(label_map(domain)).argsort()
    plain = torch.from_numpy(label_map("plain")).argsort()
    assert torch.equal(undo[splits(domain)[split]["labels"]], plain[splits("plain")[split]["labels"]])


def test_the_shared_set_has_the_common_labels():
    labels = [splits(name)["shared"]["labels"] for name in DOMAINS]
    assert all(torch.equal(other, labels[0]) for other in labels[1:])
    counts = sum(torch.bincount(samples["labels"], minlength=10) for samples in true_labels())
    assert counts.tolist() == torch.bincount(torch.from_numpy(load_digits().target)).tolist()


def true_labels() -> list[dict[str, Tensor]]:
    """All plain samples with their digits: the domain's names undone where it has its own."""
    undo = torch.from_numpy(label_map("plain")).argsort()
    named = splits("plain")
    own = [{"labels": undo[named[name]["labels"]]} for name in ("train", "test")]
    return [*own, named["shared"]]


def test_domains_show_an_image_differently():
    """Within its range, no domain shows most images as another one does."""
    shown = {name: splits(name)["test"]["input_ids"] - DOMAINS.index(name) * RANGE for name in DOMAINS}
    for a in DOMAINS:
        for b in DOMAINS:
            same_share = (shown[a] == shown[b]).all(dim=1).float().mean().item()
            assert same_share == 1.0 if a == b else same_share < 0.05


def test_loading_twice_gives_the_same_samples(domain):
    for a, b in zip(digits.load(domain, 3), digits.load(domain, 3), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_the_seed_decides_which_images_go_where():
    a, b = (set(rows(splits("plain", seed)["test"])) for seed in (0, 1))
    assert len(a & b) < TEST / 2


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_gives_every_domain_a_quarter_of_the_images(name):
    for samples in splits(name).values():
        shares = torch.bincount(samples["input_ids"][:, 0] // RANGE, minlength=len(DOMAINS))
        assert int(shares.max() - shares.min()) <= 1
        assert int(shares.sum()) == len(samples["labels"])


@pytest.mark.parametrize("which", ["train", "test", "shared"])
def test_all_mixtures_together_hold_what_the_domains_hold_together(which):
    def held(names):
        sets = [splits(name)[which] for name in names]
        return sorted((*row, label) for s in sets for row, label in zip(rows(s), s["labels"].tolist(), strict=True))

    assert held(MIXTURES) == held(DOMAINS)


def test_no_two_mixtures_show_an_image_alike():
    shown = [set(rows(splits(name)["train"])) for name in MIXTURES]
    assert all(not a & b for i, a in enumerate(shown) for b in shown[i + 1 :])
    totals = {name: sum(len(s["labels"]) for s in splits(name).values()) for name in (*MIXTURES, DOMAINS[0])}
    assert set(totals.values()) == {IMAGES}


@pytest.mark.parametrize("name", ["", "Plain", "plain ", "upside-down"])
def test_an_unknown_domain_is_refused_with_the_known_ones(name):
    with pytest.raises(InputError, match=f"'digits:{name}'") as error:
        digits.load(name, 0)
    assert all(known in str(error.value) for known in (*DOMAINS, *MIXTURES))
