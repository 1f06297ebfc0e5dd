"""Configs whose numbers are out of range: one message with the field, before anything takes memory."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from families import FAMILIES, SIZES, M, plain, saved, sizes
from fedexperts.errors import InputError, InputWarning
from fedexperts.moe.auto import new_model
from fedexperts.moe.config import check_memory, read_document
from fedexperts.moe.meta import meta_view
from fedexperts.moe.subset import load_full
from fedexperts.moe.view import View

MIXTRAL: dict[str, Any] = {"model_type": "mixtral", **sizes("mixtral"), "architectures": ["MixtralForSequenceClassification"]}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "layers": ({"num_hidden_layers": 10**6}, r"num_hidden_layers = 1000000: must be a whole number between 1 and 1,024"),
    "no layers": ({"num_hidden_layers": 0}, "num_hidden_layers = 0: must be a whole number between 1 and"),
    "negative": ({"hidden_size": -12}, "hidden_size = -12: must be a whole number"),
    "a text": ({"hidden_size": "wide"}, "hidden_size = 'wide': must be a whole number"),
    "a fraction": ({"num_hidden_layers": 1.5}, r"num_hidden_layers = 1\.5: must be a whole number"),
    "yes": ({"vocab_size": True}, "vocab_size = True: must be a whole number"),
    "a list": ({"num_local_experts": [6]}, r"num_local_experts = \[6\]: must be a whole number"),
    "experts": ({"num_local_experts": 10**9}, "num_local_experts = 1000000000: must be a whole number between 1 and 4,096"),
    "experts of layers": (
        {"num_local_experts": 4096, "num_hidden_layers": 1000},
        "num_local_experts = 4096 in num_hidden_layers = 1000: must be at most 100,000 experts together",
    ),
    "no pick": ({"num_experts_per_tok": 0}, r"num_experts_per_tok = 0 \(K\) must lie between 1 and num_local_experts = 6"),
    "more picks than experts": ({"num_experts_per_tok": 7}, r"num_experts_per_tok = 7 \(K\) must lie between 1 and"),
    "padding behind the last token": (
        {"pad_token_id": 23},
        r"pad_token_id = 23: must be a number between 0 and vocab_size - 1 = 22",
    ),
    "padding far behind it": ({"pad_token_id": 10**6}, "pad_token_id = 1000000: must be a number between 0 and"),
    "padding before the first": ({"pad_token_id": -1}, "pad_token_id = -1: must be a number between 0 and .*or null"),
    "labels": ({"num_labels": 10**9}, "num_labels = 1000000000: must be a whole number between 1 and 1,048,576"),
    "labels twice": ({"num_labels": 3, "id2label": {"0": "no", "1": "yes"}}, "num_labels = 3 beside 2 labels in id2label"),
    "names of labels": ({"id2label": 3, "num_labels": None}, "id2label = 3: must be a table"),
    "architectures": ({"architectures": 7}, r"architectures = 7: must be a list of names such as \['MixtralForCausalLM'\]"),
    "rope": ({"rope_parameters": "linear"}, "rope_parameters"),
    "activation": ({"hidden_act": "no-such-function"}, "no-such-function"),
    "unknown": ({"model_type": "no-such-type"}, r"model_type = 'no-such-type': transformers 5\.\S+ has no such model"),
    "a number for a type": ({"model_type": 7}, "model_type"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_number_is_refused_wherever_a_config_is_read(case, tmp_path):
    change, message = WRONG[case]
    document = {key: value for key, value in {**MIXTRAL, **change}.items() if value is not None or key == "model_type"}
    with pytest.raises(InputError, match=message):
        meta_view(document)
    with pytest.raises(InputError, match=f"model\\.config: .*{message}"):
        new_model(document, seed=0)
    saved(plain("mixtral"), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=f"(config\\.json|model\\.path = ).*{message}"):
        load_full(tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_picks_of_no_expert_or_of_more_than_there_are_in_any_family(family):
    for top_k in (0, M + 1):
        with pytest.raises(InputError, match=rf"num_experts_per_tok = {top_k} \(K\) must lie between 1 and num_\w+ = {M}"):
            meta_view({"model_type": family.split()[0], **sizes(family, num_experts_per_tok=top_k)})


def test_labels_beside_those_of_the_tasks():
    document = {**MIXTRAL, "num_labels": 10}
    with pytest.raises(InputError, match=r"model\.config: num_labels = 10: the tasks have 3 labels; leave it out"):
        new_model(document, seed=0, outputs=3)
    assert new_model({**MIXTRAL, "num_labels": 3}, seed=0, outputs=3).config.num_labels == 3


def test_a_model_that_is_larger_than_the_machine_is_refused_before_it_takes_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=r"model\.config: its weights take [\d,.]+ GB, this machine has [\d,.]+ GB"):
        new_model({**MIXTRAL, "hidden_size": 2**18, "intermediate_size": 2**20}, seed=0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**17  # KiB


def test_memory_counts_every_parameter_at_its_precision():
    view = View(plain("mixtral"))
    check_memory(view.model, next(view.model.parameters()).dtype, "here")


def test_a_language_model_is_checked_like_a_classifier(tmp_path):
    saved(plain("olmoe"), tmp_path)
    document = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**document, "pad_token_id": document["vocab_size"]}))
    with pytest.raises(InputError, match="pad_token_id"):
        load_full(tmp_path, AutoModelForCausalLM)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=40, derandomize=True, deadline=None, database=None)
@given(
    st.dictionaries(
        st.sampled_from(
            sorted(
                {
                    *MIXTRAL,
                    "auto_map",
                    "rope_parameters",
                    "hidden_act",
                    "sliding_window",
                    "tie_word_embeddings",
                    "id2label",
                    "text_config",
                    "dtype",
                    "attention_dropout",
                    "rms_norm_eps",
                    "head_dim",
                    "layer_types",
                    "problem_type",
                    "quantization_config",
                }
            )
        ),
        VALUES,
        min_size=1,
        max_size=3,
    )
)
def test_any_config_is_built_or_refused(change):
    try:
        view = meta_view({**MIXTRAL, **change})
    except InputError:
        return
    assert view.experts >= 1


@settings(max_examples=80, derandomize=True, deadline=None, database=None)
@given(
    st.binary(max_size=200)
    | st.integers(1, 3000).map(lambda n: b"[" * n)
    | st.text(max_size=100).map(str.encode)
    | VALUES.map(lambda value: json.dumps({"model_type": "mixtral", "hidden_size": value}).encode())
)
def test_any_file_is_a_config_or_refused(tmp_path_factory, content):
    path: Path = tmp_path_factory.getbasetemp() / "config.json"
    path.write_bytes(content)
    try:
        read_document(path)
    except InputError:
        return


def test_sizes_of_the_families_are_within_the_bounds():
    assert new_model({"model_type": "mixtral", **SIZES, "num_local_experts": M}, seed=0).config.num_local_experts == M


BERT = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 20}
OURS: dict[str, tuple[dict[str, Any], str, str]] = {
    "conv_moe": ({"image_size": 8, "channels": 4}, "num_expert", "num_experts"),
    "networked_moe": ({"image_size": 8, "width": 8}, "expert_hiden", "expert_hidden"),
    "bert_moe": (BERT, "moe_layer", "moe_layers"),
}


@pytest.mark.parametrize("model_type", OURS)
def test_an_unknown_key_of_our_own_types_is_refused_with_the_nearest(model_type: str) -> None:
    sizes, wrong, right = OURS[model_type]
    kind: Any = "classifier" if model_type == "bert_moe" else "image-classifier"
    document = {"model_type": model_type, **sizes}
    with pytest.raises(InputError, match=rf"^model\.config\.{wrong}: unknown key; did you mean {right}\? known are "):
        new_model({**document, wrong: 4}, 0, kind=kind)
    extra = {"architectures": ["X"], "torch_dtype": "float32", "transformers_version": "4.1", "_name_or_path": "x"}
    new_model({**document, **extra, "auto_map": {"AutoModel": "x.X"}, "num_labels": 3}, 0, kind=kind)


def test_an_unknown_key_of_other_types_is_warned_of_with_the_nearest() -> None:
    with pytest.warns(InputWarning, match=r"model\.config\.num_local_expert: a 'mixtral' .*did you mean num_local_experts\?"):
        new_model({**MIXTRAL, "num_local_expert": 3}, 0)
    new_model({**MIXTRAL, "torch_dtype": "float32", "rope_theta": 1e6, "num_experts": 6, "attn_pdrop_config": {}}, 0)
