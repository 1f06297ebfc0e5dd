"""Reading JSONL, padding and pooling."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedexperts.data.source import first, load, pool, read_jsonl, size, take, trimmed
from fedexperts.errors import InputError
from fedexperts.moe.auto import new_model
from fedexperts.moe.view import View

GOOD = '{"input_ids": [1, 2, 3], "label": 0}'


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines))
    return path


def row(ids: list[int], label: int = 0, **more) -> str:
    return json.dumps({"input_ids": ids, "label": label, **more})


def sample_set(ids: list[list[int]], mask: list[list[int]] | None = None) -> dict[str, torch.Tensor]:
    samples = {"input_ids": torch.tensor(ids), "labels": torch.arange(len(ids))}
    if mask:
        samples["attention_mask"] = torch.tensor(mask)
    return samples


# ---- reading


def test_sequences_of_one_length_need_no_mask(tmp_path):
    samples = read_jsonl(write(tmp_path / "a.jsonl", row([5, 6], 1), row([7, 8], 0)))
    assert {key: value.tolist() for key, value in samples.items()} == {"input_ids": [[5, 6], [7, 8]], "labels": [1, 0]}
    assert samples["input_ids"].dtype == samples["labels"].dtype == torch.long


def test_shorter_sequences_are_padded_with_zero_and_masked(tmp_path):
    samples = read_jsonl(write(tmp_path / "a.jsonl", row([5], 1), row([7, 0, 8], 0), row([9, 0], 2)))
    assert samples["input_ids"].tolist() == [[5, 0, 0], [7, 0, 8], [9, 0, 0]]
    assert samples["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1], [1, 1, 0]]
    assert samples["labels"].tolist() == [1, 0, 2]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.lists(st.integers(0, 50), min_size=1, max_size=6), st.integers(0, 9)), min_size=1, max_size=8))
def test_every_sequence_can_be_read_back(tmp_path_factory, given_rows):
    path = write(tmp_path_factory.mktemp("jsonl") / "a.jsonl", *(row(ids, label) for ids, label in given_rows))
    samples = read_jsonl(path)
    mask = samples.get("attention_mask", torch.ones_like(samples["input_ids"])).bool()
    back = [ids[valid].tolist() for ids, valid in zip(samples["input_ids"], mask, strict=True)]
    assert list(zip(back, samples["labels"].tolist(), strict=True)) == given_rows


def test_other_keys_of_a_line_are_ignored(tmp_path):
    assert size(read_jsonl(write(tmp_path / "a.jsonl", row([1], 0, text="one")))) == 1


@pytest.mark.parametrize(
    "line",
    [
        "[1, 2]",
        "3",
        '{"input_ids": [1, 2]}',
        '{"label": 1}',
        '{"input_ids": 5, "label": 1}',
        '{"input_ids": ["a"], "label": 1}',
        '{"input_ids": [1], "label": null}',
        '{"input_ids": [null], "label": 1}',
        '{"input_ids": [1], "label": NaN}',
    ],
)
def test_a_malformed_line_is_refused_with_file_and_number(tmp_path, line):
    with pytest.raises(InputError, match=r"a\.jsonl, line 2: .*(must be|has no value; fill it in)"):
        read_jsonl(write(tmp_path / "a.jsonl", GOOD, line, GOOD))


@pytest.mark.parametrize(
    "line",
    [
        '{"input_ids": [1.5], "label": 1}',
        '{"input_ids": [1], "label": 0.9}',
        '{"input_ids": "123", "label": 1}',
        '{"input_ids": [1], "label": "1"}',
        '{"input_ids": [true], "label": 1}',
    ],
)
def test_what_is_not_a_whole_number_is_refused_instead_of_converted(tmp_path, line):
    with pytest.raises(InputError, match=r"a\.jsonl, line 2"):
        read_jsonl(write(tmp_path / "a.jsonl", GOOD, line))


@pytest.mark.parametrize(
    "line",
    [
        '{"input_ids": [1], "label": Infinity}',
        '{"input_ids": [100000000000000000000], "label": 1}',
        '{"input_ids": [1], "label": 100000000000000000000}',
    ],
)
def test_a_number_beyond_64_bits_is_refused_with_its_line(tmp_path, line):
    with pytest.raises(InputError, match=r"a\.jsonl, line 2"):
        read_jsonl(write(tmp_path / "a.jsonl", GOOD, line))


def test_an_empty_sequence_is_refused_with_its_line(tmp_path):
    with pytest.raises(InputError, match=r"line 2: input_ids = \[\]: must be"):
        read_jsonl(write(tmp_path / "a.jsonl", GOOD, row([])))


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"a\.jsonl.*holds no samples"):
        read_jsonl(write(tmp_path / "a.jsonl"))


def test_a_missing_file_is_refused_with_its_path(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.jsonl.*No such file"):
        read_jsonl(tmp_path / "nowhere.jsonl")


def test_a_folder_is_refused_with_its_path(tmp_path):
    with pytest.raises(InputError, match="is not a regular file"):
        read_jsonl(tmp_path)


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InputError, match=r"a\.jsonl"):
        read_jsonl(tmp_path / "a.jsonl")


# ---- sources


def test_a_file_is_its_own_shared_set_and_has_no_test_data(tmp_path):
    write(tmp_path / "a.jsonl", GOOD)
    splits = load("a.jsonl", tmp_path)
    assert splits.test is None
    assert splits.train["input_ids"].tolist() == splits.shared["input_ids"].tolist() == [[1, 2, 3]]


def test_an_absolute_path_needs_no_base(tmp_path):
    assert size(load(str(write(tmp_path / "a.jsonl", GOOD)), Path("/nowhere")).train) == 1


def test_digits_come_with_test_data(tmp_path):
    splits = load("digits:plain", tmp_path)
    assert splits.test is not None
    assert min(size(splits.train), size(splits.test), size(splits.shared)) > 100


def test_an_unknown_domain_is_refused(tmp_path):
    with pytest.raises(InputError, match="digits:nothing"):
        load("digits:nothing", tmp_path)


@pytest.mark.parametrize("pad_token_id", [0, 31])
def test_padding_does_not_change_what_a_classifier_says_of_a_sample(tmp_path, pad_token_id):
    """transformers' classifiers look for the last token that is not ``pad_token_id``, not at the attention mask."""
    config = {"model_type": "mixtral", "vocab_size": 32, "hidden_size": 8, "intermediate_size": 8, "num_labels": 3}
    config |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "initializer_range": 0.5}
    model = new_model({**config, "pad_token_id": pad_token_id}, seed=0).eval()
    together = read_jsonl(write(tmp_path / "a.jsonl", row([3, 4]), row([5, 6, 7, 8, 9])))
    alone = read_jsonl(write(tmp_path / "b.jsonl", row([3, 4])))
    view = View(model)
    assert torch.allclose(view(together)[0], view(alone)[0], atol=1e-5)


# ---- sets of samples


def test_size_take_and_first():
    samples = sample_set([[1, 2], [3, 4], [5, 6]])
    assert size(samples) == 3
    assert take(samples, torch.tensor([2, 0]))["input_ids"].tolist() == [[5, 6], [1, 2]]
    assert take(samples, torch.tensor([2, 0]))["labels"].tolist() == [2, 0]
    assert first(samples, 2)["labels"].tolist() == [0, 1]
    assert size(first(samples, 10)) == 3


def test_pooling_sets_of_one_shape_concatenates_them():
    pooled = pool([sample_set([[1, 2]]), sample_set([[3, 4], [5, 6]])])
    assert {key: value.tolist() for key, value in pooled.items()} == {
        "input_ids": [[1, 2], [3, 4], [5, 6]],
        "labels": [0, 0, 1],
    }


def test_pooling_different_lengths_pads_and_masks():
    pooled = pool([sample_set([[1, 2]]), sample_set([[3, 4, 5, 6], [7, 8, 9, 0]], [[1, 1, 1, 1], [1, 1, 1, 0]])])
    assert pooled["input_ids"].tolist() == [[1, 2, 0, 0], [3, 4, 5, 6], [7, 8, 9, 0]]
    assert pooled["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]]
    assert pooled["labels"].tolist() == [0, 0, 1]


def test_pooling_a_masked_and_an_unmasked_set_of_one_length_masks_both():
    pooled = pool([sample_set([[1, 2]]), sample_set([[3, 0]], [[1, 0]])])
    assert pooled["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert pooled["input_ids"].tolist() == [[1, 2], [3, 0]]


def test_sets_without_tokens_are_concatenated_as_they_are():
    a = {"x": torch.zeros(1, 2), "labels": torch.zeros(1)}
    assert pool([a, a])["x"].shape == (2, 2)


def test_whatever_is_by_token_is_widened_when_sets_are_pooled() -> None:
    """Two sets of pairs of texts: which of the two a token belongs to must not get lost."""
    sets = [
        {
            "input_ids": torch.ones(2, width, dtype=torch.long),
            "attention_mask": torch.ones(2, width, dtype=torch.long),
            "token_type_ids": torch.full((2, width), 1),
            "labels": torch.arange(2),
        }
        for width in (3, 5)
    ]
    pooled = pool(sets)
    assert {name: tuple(values.shape) for name, values in pooled.items()} == {
        "input_ids": (4, 5), "attention_mask": (4, 5), "token_type_ids": (4, 5), "labels": (4,)
    }  # fmt: skip
    assert pooled["token_type_ids"].sum(dim=1).tolist() == [3, 3, 5, 5]
    alone = take(pooled, torch.tensor([0, 1]))
    assert trimmed(alone)["token_type_ids"].tolist() == [[1, 1, 1]] * 2
