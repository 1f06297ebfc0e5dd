"""scikit-learn's handwritten digits (1,797 images of 8 × 8 pixels, UCI) as token sequences in four domains.

An image becomes 32 tokens: pixels are rounded to a few levels, two neighbours make one token, and every token carries its
position and its domain's own range, so that the domains are as distinguishable as languages. Each domain shows the image
in its own way and writes the answer in its own way (a permutation of the ten labels). The shared set shows the images in
the domain's way but has the common labels: what a domain calls them is only known on its devices, and is to be learnt there.

A control needs clusters with all kinds of data: each of the four mixtures shows every image in another domain, a quarter of the
images in each, so that all mixtures together hold exactly what the four domains hold together.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from ..errors import InputError

Samples = dict[str, torch.Tensor]

LEVELS = 3
POSITIONS = 32
RANGE = POSITIONS * LEVELS**2
DOMAINS = ("plain", "inverted", "rotated", "mirrored")
MIXTURES = ("mixed-0", "mixed-1", "mixed-2", "mixed-3")
SWAPS = {
    "plain": [(0, 1), (2, 3)],
    "inverted": [(4, 5), (6, 7)],
    "rotated": [(8, 9), (0, 2)],
    "mirrored": [(1, 3), (5, 7)],
}
VOCABULARY = RANGE * len(DOMAINS) + 1
"""Token ids of all domains and one for padding."""
TEST, SHARED = 300, 500
"""Images that are held back for testing and for the shared set; 997 are left to train on."""


def load(domain: str, seed: int) -> tuple[Samples, Samples, Samples]:
    """Training, test and shared samples of a domain, or of a mixture.

    The seed decides which images go where; for one seed no image is in two of the three sets, whatever the domain.

    Raises:
        InputError: there is no such domain.
    """
    if domain not in (*DOMAINS, *MIXTURES):
        raise InputError(f"data = 'digits:{domain}': unknown domain; there are {', '.join((*DOMAINS, *MIXTURES))}")
    train, test, shared = _split(seed)
    return _samples(train, domain), _samples(test, domain), _samples(shared, domain, common_labels=True)


@cache
def _split(seed: int) -> tuple[NDArray[np.int64], ...]:
    """Image numbers for training, test and the shared set."""
    labels = load_digits().target
    seed %= 2**32  # numpy's older generators take no larger ones
    rest, test = train_test_split(np.arange(len(labels)), test_size=TEST, stratify=labels, random_state=seed)
    train, shared = train_test_split(rest, test_size=SHARED, stratify=labels[rest], random_state=seed)
    return train, test, shared


def _samples(images: NDArray[np.int64], domain: str, common_labels: bool = False) -> Samples:
    digits = load_digits()
    parts, names = [images], [domain]
    if domain in MIXTURES:
        parts = [images[i :: len(DOMAINS)] for i in range(len(DOMAINS))]
        names = [DOMAINS[(i + MIXTURES.index(domain)) % len(DOMAINS)] for i in range(len(DOMAINS))]
    tokens = [_tokens(digits.images[part], name) for part, name in zip(parts, names, strict=True)]
    maps = [np.arange(10) if common_labels else label_map(name) for name in names]
    labels = [numbers[digits.target[part]] for part, numbers in zip(parts, maps, strict=True)]
    return {"input_ids": torch.from_numpy(np.concatenate(tokens)), "labels": torch.from_numpy(np.concatenate(labels))}


def _tokens(images_NHW: NDArray[np.float64], domain: str) -> NDArray[np.int64]:
    shown = {
        "plain": lambda x: x,
        "inverted": lambda x: 16 - x,
        "rotated": lambda x: np.rot90(x, 1, (1, 2)),
        "mirrored": lambda x: x[:, :, ::-1],
    }[domain](images_NHW)
    level = np.rint(shown / 16 * (LEVELS - 1)).astype(np.int64).reshape(len(shown), POSITIONS, 2)
    pair = level[..., 0] * LEVELS + level[..., 1]
    tokens: NDArray[np.int64] = DOMAINS.index(domain) * RANGE + np.arange(POSITIONS) * LEVELS**2 + pair
    return tokens


def label_map(domain: str) -> NDArray[np.int64]:
    """What a domain calls each digit."""
    labels = np.arange(10)
    for a, b in SWAPS[domain]:
        labels[a], labels[b] = b, a
    return labels
