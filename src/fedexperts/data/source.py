"""Sources of labelled token sequences.

A source is named by a string in the scenario: ``digits:<domain>`` (scikit-learn's handwritten digits, no download), or
the path of a file in JSON with one ``{"input_ids": [...], "label": n}`` on each line, or one list of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..errors import InputError
from ..reading import short
from ..seeds import Stream, stream
from . import digits
from .files import files, objects

Samples = dict[str, Tensor]
"""Tensors with a common first dimension; ``labels`` among them."""
MOST_TOKENS = 2 * 10**9
"""Of a file, with padding: 16 GB of token numbers."""


@dataclass(frozen=True)
class Splits:
    """What a source offers: a device's training data, test data, and a small shared set that may leave the devices.

    ``validation`` decides on targets and plateaus; ``kept`` are the numbers of those training samples that it was not made of.
    """

    train: Samples
    test: Samples | None
    shared: Samples
    validation: Samples | None = None
    kept: Tensor | None = None


def load(spec: str, base: Path, seed: int = 0) -> Splits:
    """Load a source; the seed decides on splits that a source makes itself.

    Raises:
        InputError: unknown domain, missing or malformed file, no samples.
    """
    if spec.startswith("digits:"):
        return Splits(*digits.load(spec.removeprefix("digits:"), seed))
    samples = pool([read_jsonl(path) for path in files(spec, base)])
    return Splits(samples, None, samples)


def read_jsonl(path: Path) -> Samples:
    """Token sequences and labels; shorter sequences are padded on the right with 0 and masked.

    Raises:
        InputError: as `files.objects`, or with its place an object is not ``{"input_ids": [...], "label": n}``; there are none,
            or too many tokens.
    """
    rows = [_row(where, row) for where, row in objects(path)]
    if not rows:
        raise InputError(f"data = {str(path)!r}: holds no samples; every cluster needs data")
    lengths = torch.tensor([len(ids) for ids, _ in rows])
    longest = int(lengths.max())
    if len(rows) * longest > MOST_TOKENS:
        raise InputError(
            f"data = {str(path)!r}: {len(rows)} samples of up to {longest} tokens (sample {int(lengths.argmax()) + 1}) would "
            f"be padded to one length; at most {MOST_TOKENS:,} tokens in all: cut the longest, or split the file"
        )
    tokens = [torch.tensor(ids, dtype=torch.long) for ids, _ in rows]
    samples = {"input_ids": pad_sequence(tokens, batch_first=True), "labels": torch.tensor([label for _, label in rows])}
    if int(lengths.min()) < longest:
        samples["attention_mask"] = (torch.arange(longest) < lengths[:, None]).long()
    return samples


def _row(where: str, row: dict[str, Any]) -> tuple[list[int], int]:
    if missing := [name for name in ("input_ids", "label") if name not in row]:
        raise InputError(f'{where}: must be {{"input_ids": [...], "label": n}}; there is no {missing[0]!r}')
    if empty := [name for name in ("input_ids", "label") if row[name] is None]:
        raise InputError(f"{where}: {empty[0]!r} has no value; fill it in, or leave the row out")
    ids, label = row["input_ids"], row["label"]
    if not isinstance(ids, list) or not ids:
        raise InputError(f"{where}: input_ids = {short(ids)}: must be a list of at least one token number")
    for name, value in [("label", label), *(("input_ids", token) for token in ids)]:
        if type(value) is not int or not 0 <= value < 2**63:
            raise InputError(f"{where}: {name} holds {short(value)}: must be a whole number, 0 or above")
    return ids, label


def hold_out(splits: Splits, share: float, seed: int, by_label: bool) -> Splits:
    """A share of the training samples as validation data; in equal shares of every label, where labels say who gets what.

    The draw depends on the seed and the number of samples alone, so that clusters with the same samples hold the same ones out.

    Raises:
        InputError: nothing would be left of either.
    """
    n = size(splits.train)
    order = stream(Stream.HOLD_OUT, seed).permutation(n)
    if by_label:
        order = order[np.argsort(splits.train["labels"].numpy()[order], kind="stable")]
    held = np.diff(np.floor(np.arange(n + 1) * share + 1e-9)) > 0  # every so-manieth
    if not 0 < held.sum() < n:
        raise InputError(
            f"evaluation.validation = {share:g}: of {n} training samples it holds out {held.sum()}; give a file of validation "
            "data, another share or more data, or set it to 0 to judge every cycle on the test data"
        )
    kept, out = (torch.from_numpy(np.sort(order[chosen])) for chosen in (~held, held))
    return replace(splits, train=take(splits.train, kept), validation=take(splits.train, out), kept=kept)


def size(samples: Samples) -> int:
    """Number of samples."""
    return len(samples["labels"])


def some(n: int, first: int, count: int, seed: int) -> list[int]:
    """Numbers of ``count`` of n samples, ascending: those from ``first`` on in an order that depends on the seed alone."""
    order = stream(Stream.SAMPLES, seed).permutation(n)
    return sorted(order[first : first + count].tolist())


def take(samples: Mapping[str, Tensor], chosen: Tensor) -> Samples:
    """The chosen samples."""
    return {key: value[chosen] for key, value in samples.items()}


def first(samples: Mapping[str, Tensor], n: int) -> Samples:
    """The first n samples."""
    return {key: value[:n] for key, value in samples.items()}


def lengths(samples: Mapping[str, Tensor]) -> Tensor | None:
    """Tokens of each sample, of a question with its options; None where all samples have equally many."""
    masks = [value.flatten(start_dim=1) for key, value in samples.items() if key.endswith("_mask")]
    if not masks:
        return None
    tokens_N = torch.cat(masks, dim=1).sum(dim=1)
    return None if bool((tokens_N == tokens_N[0]).all()) else tokens_N


def ends(samples: Mapping[str, Tensor]) -> Tensor:
    """Columns of each sequence up to its last token: its length where padding is on the right."""
    shape = samples["input_ids"].shape
    mask_NL = samples.get("attention_mask", torch.ones(shape, dtype=torch.long))
    return (mask_NL * torch.arange(1, shape[1] + 1, device=mask_NL.device)).amax(dim=1)


def trimmed(samples: Mapping[str, Tensor]) -> Samples:
    """Sequences without the columns on the right that are padding in all of them; other samples as they are."""
    if "input_ids" not in samples or "attention_mask" not in samples:
        return dict(samples)
    longest = max(1, int(ends(samples).max()))
    return {key: value[:, :longest] if _by_token(key) else value for key, value in samples.items()}


def pool(sets: Sequence[Samples]) -> Samples:
    """All samples in one set; token sequences of different lengths are padded and masked."""
    if len(sets) == 1:
        return sets[0]
    if "input_ids" not in sets[0] or len({(s["input_ids"].shape[1], "attention_mask" in s) for s in sets}) == 1:
        return {key: torch.cat([samples[key] for samples in sets]) for key in sets[0]}
    length = max(samples["input_ids"].shape[1] for samples in sets)

    def widened(key: str, values: Tensor) -> Tensor:
        return torch.nn.functional.pad(values, (0, length - values.shape[1])) if _by_token(key) else values

    masked = [{"attention_mask": torch.ones_like(samples["input_ids"]), **samples} for samples in sets]
    return {key: torch.cat([widened(key, s[key]) for s in masked]) for key in masked[0]}


def _by_token(key: str) -> bool:
    """Whether an entry has a column for each token, by its name, as transformers names them."""
    return key.endswith(("_ids", "_mask"))
