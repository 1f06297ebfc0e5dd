"""Sizes against Table I, and the memory formulas against what autograd and the allocator hold on small real models.

Two ways of training are counted, both through the view: an expert's own weights, and its adapters.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM

from fedexperts.errors import InputError
from fedexperts.moe.lora import LoRA
from fedexperts.moe.meta import meta_view, outline_of
from fedexperts.moe.outline import Outline, Shape
from fedexperts.moe.parts import NotMoEError, expert
from fedexperts.moe.size import Training, Work, activations_B, adapter_numbers, memory, parts, uploads, working_B
from fedexperts.moe.view import View

LLAMA_X3: dict[str, Any] = json.loads((Path(__file__).parents[2] / "examples" / "llama3-8b-x3.json").read_text())
MIXTRAL_8X7B = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 32000,
    "rope_theta": 1e6,
}
REL = 0.05
"""How far the formula may be off."""
EXPERT_SET_B = 11_274_289_152
"""Experts of 176,160,768 parameters in 32 layers, in bfloat16."""


def shape(view: View) -> Shape:
    found = outline_of(view).shape
    assert found is not None
    return found


@pytest.fixture(scope="module")
def llama() -> Outline:
    return outline_of(meta_view(LLAMA_X3))


def test_table_i_uploads(llama: Outline) -> None:
    sizes = uploads(llama, rank=4)
    assert sizes.lora_B == {f"expert:{m}": 14_155_776 for m in range(3)}
    assert sizes.gate_B == 786_432
    assert sizes.baseline_B == 43_253_760
    assert sizes.ratio == pytest.approx(3.0556, abs=1e-4)


def test_two_expert_sets_less_per_device(llama: Outline) -> None:
    sizes = memory(llama, [0], Work(), Training(4))
    saved_B = sizes["sync"]["training"]["weights_B"] - sizes["ems-fl-enhanced"]["training"]["weights_B"]
    assert saved_B == 2 * EXPERT_SET_B == 22_548_578_304
    assert sizes["ems-fl"]["training"]["weights_B"] == sizes["sync"]["training"]["weights_B"]


def test_the_papers_difference_in_memory(llama: Outline) -> None:
    """Table I: 46.00 − 23.23 = 22.77 GB: two expert sets, and 16 bytes for each number of their adapters."""
    sizes = memory(llama, [0], Work(), Training(4))
    enhanced, baseline = sizes["ems-fl-enhanced"]["training"], sizes["sync"]["training"]
    persistent = ("weights_B", "adapters_B", "gradients_B", "optimizer_B")
    assert sum(baseline[key] - enhanced[key] for key in persistent) == pytest.approx(22.77e9, abs=0.02e9)


def test_mixtral_8x7b_has_its_size() -> None:
    sizes = parts(outline_of(meta_view(MIXTRAL_8X7B)), "bfloat16")
    assert sum(row["parameters"] for row in sizes.values()) == 46_702_792_704
    assert set(sizes) == {"backbone", "gate", "head", *(f"expert:{m}" for m in range(8))}
    assert all(row["bytes"] == 2 * row["parameters"] for row in sizes.values())


def test_a_classifier_is_built_where_the_architectures_say_so() -> None:
    model = outline_of(meta_view({**MIXTRAL_8X7B, "architectures": ["MixtralForSequenceClassification"], "num_labels": 3}))
    assert parts(model, "float32")["head"] == {"parameters": 3 * 4096, "bytes": 4 * 3 * 4096}
    assert model.shape is not None
    assert model.shape.V == 0


def test_phases_of_a_device(llama: Outline) -> None:
    sizes = memory(llama, [0, 2], Work(), Training(4))
    streamed = sizes["ems-fl-enhanced"]["trial"]
    rest_B = sizes["sync"]["training"]["weights_B"] - 3 * EXPERT_SET_B
    assert streamed["weights_B"] == rest_B + 2 * EXPERT_SET_B // 32
    assert streamed["activations_B"] == streamed["gradients_B"] == streamed["adapters_B"] == 0
    tail, training = sizes["ems-fl-enhanced"]["gate_tail"], sizes["ems-fl-enhanced"]["training"]
    assert tail["gradients_B"] == 2 * 32 * 3 * 4096
    assert tail["adapters_B"] == 3 * 4 * 14_155_776 // 2
    assert training["optimizer_B"] == 2 * 8 * 14_155_776 // 2
    for phases in sizes.values():
        for phase in phases.values():
            assert phase["total_B"] == sum(size for key, size in phase.items() if key != "total_B")


def test_rank_and_experts_out_of_range(llama: Outline) -> None:
    assert adapter_numbers(llama, 4096) == 1024 * 7_077_888
    for rank in (0, 4097):
        with pytest.raises(InputError, match=rf"rank = {rank}: must lie between 1 and 4096"):
            uploads(llama, rank)
    for experts in ([], [3], [-1], [1, 1]):
        with pytest.raises(InputError, match="between 0 and 2"):
            memory(llama, experts, Work(), Training(4))


def test_other_models_are_refused() -> None:
    with pytest.raises(NotMoEError, match="no Mixture-of-Experts layer"):
        meta_view({"model_type": "llama", "num_hidden_layers": 1})
    with pytest.raises(NotMoEError, match="takes sigmoids"):
        meta_view({"model_type": "deepseek_v3", "num_hidden_layers": 4})
    with pytest.raises(NotMoEError, match="minimax"):
        memory(outline_of(meta_view({"model_type": "minimax", "num_hidden_layers": 2})), [0], Work())
    with pytest.raises(InputError, match="no-such-type"):
        meta_view({"model_type": "no-such-type"})
    with pytest.raises(InputError, match="mixtral"):
        meta_view({**MIXTRAL_8X7B, "num_experts_per_tok": 9})


def small(family: str, dtype: torch.dtype = torch.float32, **sizes: Any) -> View:
    """A real language model with random weights."""
    sizes = {"D": 128, "F": 224, "layers": 3, "M": 4, "K": 2, "V": 97, "options": {}, **sizes}
    config = AutoConfig.for_model(
        family,
        **{
            "hidden_size": sizes["D"],
            "intermediate_size": sizes["F"],
            "moe_intermediate_size": sizes["F"],
            "num_hidden_layers": sizes["layers"],
            "num_local_experts": sizes["M"],
            "num_experts": sizes["M"],
            "num_experts_per_tok": sizes["K"],
            "vocab_size": sizes["V"],
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": sizes["D"] // 8,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "bos_token_id": 2,
            **sizes["options"],
        },
    )
    torch.manual_seed(0)
    view = View(AutoModelForCausalLM.from_config(config).to(dtype))
    view.model.train()
    return view


def batch_of(work: Work, vocabulary: int) -> dict[str, Tensor]:
    ids = torch.randint(3, vocabulary, (work.batch, work.length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[-1, work.length // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask} if work.padded else {"input_ids": ids}


def loss_of(view: View, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(view(batch).float().flatten(0, 1), batch["input_ids"].flatten())


def saved_B(view: View, compute: Callable[[], Tensor]) -> int:
    """Bytes of the storages that autograd still holds after the forward pass, without parameters, buffers and adapters."""

    class Saved:
        def __init__(self, tensor: Tensor):
            self.tensor = tensor

    held: weakref.WeakSet[Saved] = weakref.WeakSet()

    def pack(tensor: Tensor) -> Saved:
        saved = Saved(tensor)
        held.add(saved)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        loss = compute()
    assert loss.requires_grad
    adapters = [leaf for part in view.leaves.values() for leaf in part.values()]
    known = {t.untyped_storage().data_ptr() for t in (*view.model.parameters(), *view.model.buffers(), *adapters)}
    storages = [saved.tensor.untyped_storage() for saved in held]
    return sum({s.data_ptr(): s.nbytes() for s in storages if s.data_ptr() not in known}.values())


def own_share(view: View, batch: dict[str, Tensor], experts: set[int]) -> float:
    counts_LM, _ = view.observe([{"input_ids": batch["input_ids"]}])
    view.model.train()
    return float(counts_LM[:, sorted(experts)].sum() / counts_LM.sum())


CASES = {  # family, sizes, batch, length, padded
    "two layers": ("mixtral", {"layers": 2}, 2, 64, False),
    "long": ("mixtral", {}, 1, 256, False),
    "wide": ("mixtral", {"D": 256, "F": 896}, 2, 64, False),
    "deep": ("mixtral", {"layers": 8}, 2, 64, False),
    "Top-1": ("mixtral", {"D": 256, "K": 1, "M": 3}, 2, 64, False),
    "padded": ("mixtral", {"D": 256}, 4, 96, True),
    "vocabulary": ("mixtral", {"V": 6000}, 2, 64, False),
    "Qwen3": ("qwen3_moe", {"D": 256, "F": 128, "M": 8, "K": 4}, 2, 96, False),
    "Qwen3 padded": ("qwen3_moe", {"M": 8}, 2, 96, True),
    "Qwen3 dense layers": ("qwen3_moe", {"layers": 4, "options": {"mlp_only_layers": [0, 2]}}, 2, 64, False),
    "Qwen2 shared expert": ("qwen2_moe", {"options": {"shared_expert_intermediate_size": 320}}, 2, 64, False),
    "FlexOlmo": ("flex_olmo", {"D": 256, "F": 128, "M": 8}, 2, 64, False),
    "Mellum": ("mellum", {"M": 8}, 2, 96, False),
    "Mellum padded": ("mellum", {"M": 8}, 2, 96, True),
    "Granite": ("granitemoe", {"D": 256, "F": 128, "M": 8}, 2, 64, False),
    "Granite padded": ("granitemoe", {"D": 256}, 4, 96, True),
    "OLMoE": ("olmoe", {"D": 256, "F": 128, "M": 8}, 2, 64, False),
}


@pytest.mark.parametrize("gate", [False, True], ids=["", "gate"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_activations_of_training_an_experts_weights(case: str, precision: str, gate: bool) -> None:
    family, sizes, batch, length, padded = CASES[case]
    work = Work(batch, length, precision, padded)
    view = small(family, getattr(torch, precision), **sizes)
    samples = batch_of(work, view.model.config.vocab_size)
    own = own_share(view, samples, {1})
    view.freeze({expert(1), "gate"} if gate else {expert(1)})
    predicted = sum(activations_B(shape(view), work, own, gate=gate).values())
    assert predicted == pytest.approx(saved_B(view, lambda: loss_of(view, samples)), rel=REL)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("experts", [{1}, {0, 2}], ids=str)
@pytest.mark.parametrize("case", ["wide", "Top-1", "padded", "Qwen3"])
def test_activations_of_training_adapters_behind_a_masked_gate(case: str, experts: set[int], precision: str) -> None:
    family, sizes, batch, length, padded = CASES[case]
    work, rank = Work(batch, length, precision, padded), 4
    view = small(family, getattr(torch, precision), **sizes)
    samples = batch_of(work, view.model.config.vocab_size)
    view.adapt(LoRA(rank, alpha=8), seed=0)
    view.freeze({expert(m) for m in experts})
    view.route({expert(m) for m in experts})
    full = shape(view)
    predicted = activations_B(replace(full, K=min(full.K, len(experts))), work, 1.0, rank)
    assert sum(predicted.values()) == pytest.approx(saved_B(view, lambda: loss_of(view, samples)), rel=REL)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_activations_of_adapters_behind_an_open_gate(precision: str) -> None:
    work = Work(2, 96, precision)
    view = small("mixtral", getattr(torch, precision), D=256, F=512, layers=6)
    samples = batch_of(work, 97)
    own = own_share(view, samples, {0, 3})
    view.adapt(LoRA(8, alpha=8), seed=0, only={expert(0), expert(3)})
    view.freeze({expert(0), expert(3)})
    predicted = sum(activations_B(shape(view), work, own, 8).values())
    assert predicted == pytest.approx(saved_B(view, lambda: loss_of(view, samples)), rel=REL)


class Live(TorchDispatchMode):
    """Counts the bytes of storages made while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage())._cdata not in known | self.seen:
                self._add(storage)
        return result

    def _add(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        self.seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)

        def drop() -> None:
            self.seen.discard(key)
            self.now -= size

        weakref.finalize(storage, drop)


PEAKS = {
    "vocabulary": {"V": 8000, "F": 512},
    "picks": {"K": 4, "F": 128, "V": 97},
    "wide experts": {"F": 896, "K": 1, "V": 97},
}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", PEAKS)
def test_temporaries_bound_the_peak(case: str, precision: str) -> None:
    work = Work(2, 128, precision)
    view = small("mixtral", getattr(torch, precision), D=256, layers=4, **PEAKS[case])
    samples = batch_of(work, view.model.config.vocab_size)
    letters = shape(view)
    with torch.no_grad(), Live() as trial:
        view(samples)
    assert 0.6 <= trial.peak / working_B(letters, work, gradients=False) <= 1.05
    trained = {expert(m) for m in range(view.experts)}
    for _, _, leaf in view.freeze(trained):
        leaf.grad = torch.zeros_like(leaf)
    with Live() as training:
        loss_of(view, samples).backward()
    predicted = sum(activations_B(letters, work).values()) + working_B(letters, work, gradients=True)
    assert training.peak == pytest.approx(predicted, rel=0.15)


@pytest.mark.parametrize("experts", [[0], [0, 3]])
def test_what_a_device_loads_changes_its_weights_alone(experts: list[int]) -> None:
    model = outline_of(meta_view(MIXTRAL_8X7B))
    usual, every = (memory(model, experts, Work(1, 384, "bfloat16"), Training(4, load)) for load in (None, "all"))
    phases = every["ems-fl-enhanced"]
    assert {phase["weights_B"] for phase in phases.values()} == {usual["ems-fl"]["training"]["weights_B"]}
    for name, phase in phases.items():
        ours = usual["ems-fl-enhanced"][name]
        assert {k: v for k, v in phase.items() if k not in ("weights_B", "total_B")} == {
            k: v for k, v in ours.items() if k not in ("weights_B", "total_B")
        }
    assert every["sync"] == usual["sync"]
    own, streamed = (memory(model, experts, Work(1, 384, "bfloat16"), Training(4, load)) for load in ("own", "stream"))
    assert own == {"ems-fl-enhanced": {"training": usual["ems-fl-enhanced"]["training"]}}
    assert streamed == {"ems-fl-enhanced": usual["ems-fl-enhanced"]}
