"""Models with some of the experts against the full model: masked, streamed, trained."""

from __future__ import annotations

import math
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from families import FAMILIES, LAYOUTS, PER_EXPERT, D, K, L, M, auto_class, batch, objective, plain, saved
from fedexperts.errors import InputError
from fedexperts.moe.auto import new_model
from fedexperts.moe.checkpoint import Checkpoint
from fedexperts.moe.layer import MoELayer
from fedexperts.moe.lora import LoRA
from fedexperts.moe.parts import GATE, NotMoEError, Piece, expert, is_expert
from fedexperts.moe.stream import FUSED, Stream
from fedexperts.moe.subset import load_full, load_into, load_streamed, load_subset
from fedexperts.moe.view import View
from fedexperts.train.device import Device, LocalTraining
from fedexperts.train.task import Task
from toy import Plain

KEEP = (2, 5)


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


def folder_of(family: str, folder: Path, layout: str = "as published", **options) -> Path:
    return saved(plain(family, **options), folder, layout)


def same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def inputs(samples: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in samples.items() if key != "labels"}


# ---- the whole model


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_full_model_is_what_transformers_loads(family, layout, tmp_path):
    reference = plain(family)
    saved(reference, tmp_path, layout)
    loaded = load_full(tmp_path, auto_class(family))
    assert same(loaded, auto_class(family).from_pretrained(tmp_path))
    assert torch.allclose(loaded(**inputs(batch())).logits, reference(**inputs(batch())).logits, atol=1e-5)
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_other_kinds_of_rotary_embeddings_are_rebuilt_too(tmp_path):
    rope = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
    reference = plain("mixtral", rope_parameters=rope)
    loaded = load_full(saved(reference, tmp_path))
    assert torch.equal(loaded(**inputs(batch())).logits, reference(**inputs(batch())).logits)


def test_weights_are_of_the_type_asked_for_and_frequencies_stay_exact(tmp_path):
    folder_of("mixtral", tmp_path)
    for model in (load_full(tmp_path, dtype=torch.bfloat16), load_subset(tmp_path, KEEP, dtype=torch.bfloat16)):
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}
        assert View(model)(batch()).isfinite().all()  # transformers' own grouped product wants larger sizes in bfloat16
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert same(load_full(tmp_path, dtype=torch.bfloat16), theirs)
    config = {"model_type": "mixtral", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "pad_token_id": 0}
    new = new_model({**config, "num_key_value_heads": 2, "vocab_size": 5, "intermediate_size": 8}, 0, torch.bfloat16)
    assert {parameter.dtype for parameter in new.parameters()} == {torch.bfloat16}


def test_tied_weights_stay_tied(tmp_path):
    folder_of("olmoe", tmp_path, tie_word_embeddings=True)
    model = load_subset(tmp_path, KEEP, AutoModelForCausalLM)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_language_model_becomes_a_classifier_whose_head_depends_on_the_seed_alone(tmp_path):
    saved(plain("mixtral", AutoModelForCausalLM), tmp_path)
    state = torch.get_rng_state()
    a, b, c = (load_full(tmp_path, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert same(a, b)
    assert not torch.equal(a.score.weight, c.score.weight)
    assert 0.1 < a.score.weight.std() < 0.6  # initializer_range is 0.3
    assert torch.equal(load_subset(tmp_path, KEEP, seed=1).score.weight, a.score.weight)


def test_a_classifier_is_no_language_model(tmp_path):
    with pytest.raises(InputError, match=r"lm_head\.weight' is missing"):
        load_full(folder_of("mixtral", tmp_path), AutoModelForCausalLM)


def test_olmoe_has_no_classifier_and_the_message_says_so(tmp_path):
    with pytest.raises(InputError, match="cannot build AutoModelForSequenceClassification of a 'olmoe' config"):
        load_full(folder_of("olmoe", tmp_path))


# ---- some of its experts


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_subset_is_a_plain_model_of_the_kept_experts_and_nothing_else_is_read(family, layout, tmp_path):
    full = plain(family)
    checkpoint = Checkpoint(saved(full, tmp_path, layout))
    model = load_subset(checkpoint, KEEP, auto_class(family))
    assert (checkpoint.experts, model.config.num_experts_per_tok) == (M, 2)
    for name, tensor in model.state_dict().items():
        whole = full.state_dict()[name]
        assert torch.equal(tensor, whole[list(KEEP)] if name.endswith(PER_EXPERT) else whole), name
    assert checkpoint.read_B == sum(t.numel() * 4 for t in model.state_dict().values())


def test_a_saved_subset_is_loaded_by_plain_transformers(tmp_path):
    model = load_subset(folder_of("mixtral", tmp_path / "full"), KEEP)
    model.save_pretrained(tmp_path / "subset")
    assert same(AutoModelForSequenceClassification.from_pretrained(tmp_path / "subset"), model)


def test_k_is_at_most_the_number_of_kept_experts(tmp_path):
    model = load_subset(folder_of("mixtral", tmp_path), (4,))
    assert (model.config.num_local_experts, model.config.num_experts_per_tok) == (1, 1)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ((), r"keep = \(\): a model needs at least one expert"),
        ((1, 6), r"keep = \[1, 6\]: there is no expert 6; give numbers in 0…5"),
        ((-1,), r"there is no expert -1"),
        ((1, 1), r"an expert is named twice"),
    ],
)
def test_a_wrong_choice_of_experts_is_refused(keep, message, tmp_path):
    with pytest.raises(InputError, match=message):
        load_subset(folder_of("mixtral", tmp_path), keep)


# ---- a view of some experts


def views(family: str, folder: Path, keep: tuple[int, ...] = KEEP, **options) -> tuple[View, View]:
    """The full model, masked to ``keep``, and the subset."""
    folder_of(family, folder)
    full = View(load_full(folder, auto_class(family)), **options)
    return full, View(load_subset(folder, keep, auto_class(family)), kept=keep, **options)


def names(keep: tuple[int, ...]) -> frozenset[str]:
    return frozenset(expert(m) for m in keep)


@pytest.mark.parametrize("keep", [KEEP, (5, 0, 2), (4,)])
def test_a_subset_computes_what_the_masked_full_model_computes(family, keep, tmp_path):
    full, subset = views(family, tmp_path, keep)
    full.route(names(keep))
    assert torch.allclose(subset(batch()), full(batch()), atol=1e-5)
    subset.route(names(keep))
    assert torch.allclose(subset(batch()), full(batch()), atol=1e-5)
    assert np.array_equal(subset.observe([batch()])[0], full.observe([batch()])[0][:, keep])


def test_parts_of_a_subset_have_the_experts_global_numbers(family, tmp_path):
    full, subset = views(family, tmp_path)
    assert set(subset.parts) == {"expert:2", "expert:5", "gate", "backbone", "head"}
    assert (subset.kept, subset.experts, subset.top_k, subset.layers) == (KEEP, 2, K, L)
    for part in names(KEEP):
        ours, theirs = subset.export(part), full.export(part)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_subset_with_layer_granularity(tmp_path):
    full, subset = views("mixtral", tmp_path, granularity="layer")
    assert {part for part in subset.parts if is_expert(part)} == {f"expert:{layer}.{m}" for layer in range(L) for m in KEEP}
    allowed = {"expert:0.5", "expert:1.2", "expert:1.5"}
    full.route(allowed)
    subset.route(allowed)
    assert torch.allclose(subset(batch()), full(batch()), atol=1e-5)


def test_routing_to_one_of_the_kept_experts(tmp_path):
    full, subset = views("mixtral", tmp_path)
    for view in (full, subset):
        view.route({"expert:5"})
    assert torch.allclose(subset(batch()), full(batch()), atol=1e-5)
    with pytest.raises(KeyError, match=r"experts \[3\]: the gate knows \[2, 5\]"):
        subset.route({"expert:3"})


def test_a_subset_takes_its_rows_of_a_full_gate(tmp_path):
    full, subset = views("mixtral", tmp_path)
    gate = {name: tensor + 1 for name, tensor in full.export("gate").items()}
    subset.install("gate", gate)
    assert all(torch.equal(tensor, gate[name][[2, 5]]) for name, tensor in subset.parts["gate"].items())


@pytest.mark.parametrize("kept", [None, (0, 1), (2,), (2, 2), (2, 5, 1)])
def test_kept_must_fit_the_model(kept, tmp_path):
    model = load_subset(folder_of("mixtral", tmp_path), KEEP)
    if kept in (None, (0, 1)):
        assert View(model, kept=kept).kept == (0, 1)
    else:
        with pytest.raises(InputError, match="the model holds 2 experts in each layer"):
            View(model, kept=kept)


def devices(full: View, other: View, optimizer: str = "adamw") -> list[Device]:
    local = LocalTraining(local_steps=2, batch_size=4, optimizer=optimizer, lr_expert=1e-2, lr_gate=1e-2)
    return [
        Device("a/0", v, batch(12), {part: Piece(part, 0, v.export(part)) for part in v.parts}, local, 7, Plain(objective))
        for v in (full, other)
    ]


def trained_alike(pair: tuple[View, View], keep: tuple[int, ...], gate: bool, optimizer: str = "adamw") -> float:
    """Enhanced EMS-FL's local training on both views; the largest change that training made."""
    full, subset = pair
    both, task = devices(full, subset, optimizer), Task(names(keep) | ({GATE} if gate else set()), route=names(keep))
    assert [device.train(task, rounds=3) for device in both] == [6, 6]
    largest = 0.0
    for part in task.parts:
        for name, tensor in both[1].trained[part].items():
            theirs, start = both[0].trained[part][name], both[0].held[part].tensors[name]
            if part == GATE and len(tensor) < M:
                others = [m for m in range(M) if m not in keep]
                assert torch.equal(theirs[others], start[others])
                theirs, start = theirs[list(keep)], start[list(keep)]
            assert torch.allclose(tensor, theirs, atol=1e-5), (part, name)
            largest = max(largest, float((tensor - start).abs().max()))
    assert torch.allclose(subset(batch()), full(batch()), atol=1e-5)
    return largest


@pytest.mark.parametrize("gate", [False, True], ids=["experts", "experts and gate"])
def test_local_training_on_a_subset_equals_that_on_the_masked_full_model(family, gate, tmp_path):
    optimizer = "sgd" if family == "deepseek_v2" else "adamw"  # which blows up the rounding of one gradient near zero there
    assert trained_alike(views(family, tmp_path, KEEP), KEEP, gate, optimizer) > 1e-2


@pytest.mark.parametrize("top1", ["straight-through", "paper"])
def test_so_does_training_of_a_single_expert_under_a_frozen_gate(top1, tmp_path):
    """Its weight is 1; where the gate learns, the full model's lower layers see the gradient of the unmasked softmax."""
    assert trained_alike(views("mixtral", tmp_path, (4,), top1=top1), (4,), gate=False) > 1e-2


# ---- experts that are streamed


def streamed(
    family: str, folder: Path, keep: tuple[int, ...] = KEEP, cache: int = 0, **options
) -> tuple[View, View, Checkpoint]:
    """The full model, and one whose experts but ``keep`` are streamed."""
    checkpoint = Checkpoint(folder_of(family, folder))
    full = View(load_full(folder, auto_class(family)), **options)
    model = load_streamed(checkpoint, keep, auto_class(family))
    assert checkpoint.read_B == sum(t.numel() * 4 for t in model.state_dict().values())
    return full, View(model, kept=keep, stream=checkpoint, cache=cache, **options), checkpoint


@pytest.mark.parametrize("keep", [KEEP, ()])
def test_streamed_experts_compute_and_count_as_resident_ones(family, keep, tmp_path):
    full, view, _ = streamed(family, tmp_path, keep)
    assert (view.experts, view.kept, view.top_k) == (M, keep, K)
    assert {part for part in view.parts if is_expert(part)} == names(keep)
    assert torch.allclose(view(batch()), full(batch()), atol=1e-5)
    assert np.array_equal(view.observe([batch()])[0], full.observe([batch()])[0])


@pytest.mark.parametrize("keep", [KEEP, ()])
def test_gradients_of_the_gate_and_all_below_pass_through_streamed_experts(family, keep, tmp_path):
    full, view, _ = streamed(family, tmp_path, keep)
    for v in (full, view):
        v.freeze(but=set(view.parts))
        objective(v(batch()), batch()["labels"]).backward()
    for part, tensors in view.parts.items():
        for name, leaf in tensors.items():
            theirs = full.parts[part][name].grad
            assert (leaf.grad is None) == (theirs is None), (part, name)
            assert theirs is None or torch.allclose(leaf.grad, theirs, atol=1e-5), (part, name)
    assert max(leaf.grad.abs().max() for leaf in view.parts[GATE].values()) > 1e-3


def test_a_gate_tail_on_streamed_experts_equals_that_on_the_full_model(family, tmp_path):
    full, view, _ = streamed(family, tmp_path)
    pair = devices(full, view)
    for device in pair:
        device.train(Task(frozenset({GATE})), rounds=2)
    ours, theirs = (device.trained[GATE] for device in pair)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in ours)


@pytest.mark.parametrize(("keep", "gate"), [(KEEP, True), ((4,), True), ((4,), False)])
def test_training_under_the_mask_needs_no_other_expert_and_is_that_of_the_full_model(keep, gate, tmp_path):
    full, view, checkpoint = streamed("mixtral", tmp_path, keep)
    before = checkpoint.read_B
    changed = trained_alike((full, view), keep, gate)
    assert changed > 1e-2
    assert checkpoint.read_B == before


def test_only_experts_that_tokens_meet_are_read_and_again_in_the_backward_pass(tmp_path):
    full, view, checkpoint = streamed("mixtral", tmp_path)
    one = {"input_ids": batch()["input_ids"][:1, :2]}
    met = full.observe([one])[0] > 0
    met[:, KEEP] = False
    assert 0 < met.sum() < L * (M - len(KEEP))
    expert_B = sum(t[0].numel() * 4 for n, t in full.model.state_dict().items() if "layers.0.mlp.experts" in n)
    before = checkpoint.read_B
    view.freeze(but={GATE, "backbone"})
    output = view(one)
    assert checkpoint.read_B - before == met.sum() * expert_B
    output.sum().backward()
    assert checkpoint.read_B - before == 2 * met.sum() * expert_B


def test_masked_to_its_own_experts_nothing_is_read(tmp_path):
    _, view, checkpoint = streamed("mixtral", tmp_path)
    before = checkpoint.read_B
    view.route(names(KEEP))
    view(batch())
    assert checkpoint.read_B == before


@pytest.mark.parametrize("cache", [0, 1, 2, M])
def test_streamed_experts_take_no_more_memory_than_one_or_the_cache(cache, tmp_path, monkeypatch):
    _, view, _ = streamed("mixtral", tmp_path, cache=cache)
    taken: list[weakref.ref[Tensor]] = []
    slot = Stream._slot

    def watched(*args):
        found = slot(*args)
        taken.extend(weakref.ref(tensor.untyped_storage()) for tensor in found.weights)
        return found

    monkeypatch.setattr(Stream, "_slot", watched)
    monkeypatch.setattr(Checkpoint, "read", None)  # whose memory is fresh
    view.freeze(but={GATE, "backbone"})
    for _ in range(2):
        view(batch()).sum().backward()
    most = 2 * (L * min(cache, M - len(KEEP)) if cache else 1)
    assert 0 < len(taken) <= most
    assert all(ref() is not None for ref in taken)
    assert cache < M or len(taken) == most


@pytest.mark.parametrize("cache", [1, 2, 3, M])
def test_a_cache_changes_no_bit_and_reads_less(cache, tmp_path):
    """The same passes, of several batches in turn, forward and backward; what is read is what does not fit."""
    _, plain, without = streamed("mixtral", tmp_path)
    _, view, checkpoint = streamed("mixtral", tmp_path, cache=cache)
    batches = [batch(), {"input_ids": batch()["input_ids"][:1, :3]}, batch()]
    read = []
    for one in (plain, view):
        before = without.read_B + checkpoint.read_B
        leaves = [leaf for _, _, leaf in one.freeze(but={GATE, "backbone"})]
        outputs = []
        for given in batches:
            outputs.append(one(given))
            outputs[-1].sum().backward()
        outputs += [leaf.grad for leaf in leaves]
        read.append((outputs, without.read_B + checkpoint.read_B - before))
    assert all(torch.equal(a, b) for a, b in zip(read[0][0], read[1][0], strict=True))
    assert read[1][1] <= read[0][1]
    if cache == M:
        expert_B = sum(4 * math.prod(checkpoint.shape(f"model.layers.0.mlp.experts.{kind}")[1:]) for kind in FUSED)
        assert read[1][1] <= L * (M - len(KEEP)) * expert_B, "each expert once"


@pytest.mark.parametrize("cache", [1, 2, 3])
def test_a_backward_pass_begins_with_what_the_forward_pass_has_left(cache, tmp_path, monkeypatch):
    """The experts met come back in the opposite order: those that are kept are met first, and only the others are read."""
    _, view, _ = streamed("mixtral", tmp_path, cache=cache)
    reads = []
    read = Stream._read
    monkeypatch.setattr(Stream, "_read", lambda *args: (reads.append(args[2]), read(*args))[1])
    view.freeze(but={GATE, "backbone"})
    view(batch()).sum().backward()
    reads.clear()
    view(batch()).sum().backward()
    assert len(reads) == L * 2 * (M - len(KEEP) - cache)


def test_what_a_layer_met_first_the_last_time_is_read_by_a_thread_beside_the_layer_before(tmp_path, monkeypatch):
    _, view, _ = streamed("mixtral", tmp_path, (), cache=2)
    by: list[tuple[str, str]] = []
    read = Stream._read

    def watched(self, block, m, slot):
        by.append((threading.current_thread().name, block))
        read(self, block, m, slot)

    monkeypatch.setattr(Stream, "_read", watched)
    with torch.no_grad():
        whole = [view(batch()) for _ in range(2)]
    assert torch.equal(*whole)
    ahead = [block for name, block in by if name.startswith("experts")]
    assert ahead
    assert all("layers.0" not in block for block in ahead), "nothing comes before the first layer"


def test_a_damaged_file_is_told_of_by_whichever_thread_reads_it(tmp_path, monkeypatch):
    _, view, checkpoint = streamed("mixtral", tmp_path, (), cache=1)
    view.observe([batch()])

    def refuses(*args):
        raise InputError("the file is damaged")

    monkeypatch.setattr(checkpoint, "read_into", refuses)
    with pytest.raises(InputError, match="damaged"):
        view.observe([batch()])


@pytest.mark.parametrize("granularity", ["global", "layer"])
def test_newer_values_are_put_over_a_streamed_expert_without_a_copy(granularity, tmp_path):
    full, view, checkpoint = streamed("mixtral", tmp_path, (), granularity=granularity)
    parts = [part for part in full.parts if is_expert(part)]
    for part in parts:
        newer = {name: tensor * 1.5 for name, tensor in full.export(part).items()}
        full.install(part, newer)
        view.install(part, newer)
    before = checkpoint.read_B
    assert torch.allclose(view(batch()), full(batch()), atol=1e-5)
    assert checkpoint.read_B == before
    with pytest.raises(KeyError, match="expert:6"):
        view.install("expert:6", {})


@pytest.mark.parametrize("average", ["refactor", "merge"])
def test_adapters_of_streamed_and_of_kept_experts(average, tmp_path):
    """A gate tail after training with adapters: whatever pieces hold, streamed experts compute as resident ones."""
    full, view, _ = streamed("mixtral", tmp_path)
    for v in (full, view):
        v.adapt(LoRA(2, 4.0, average), seed=0)
    for part in filter(is_expert, full.parts):
        newer = {name: tensor + 0.1 for name, tensor in full.export(part).items()}
        full.install(part, newer)
        view.install(part, newer)
    assert torch.allclose(view(batch()), full(batch()), atol=1e-5)
    pair = devices(full, view, "sgd")  # AdamW blows up the rounding of gradients near zero
    for device in pair:
        device.train(Task(frozenset({GATE, "expert:5"})), rounds=2)
    for part in (GATE, "expert:5"):
        ours, theirs = (device.trained[part] for device in pair)
        assert ours.keys() == theirs.keys()
        assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in ours), part


def test_streaming_runs_in_bfloat16(tmp_path):
    checkpoint = Checkpoint(folder_of("mixtral", tmp_path))
    view = View(load_streamed(checkpoint, (1,), dtype=torch.bfloat16), kept=(1,), stream=checkpoint)
    full = View(load_full(tmp_path, dtype=torch.bfloat16))
    assert view(batch()).dtype == torch.bfloat16
    assert torch.equal(view(batch()), full(batch()))


def test_a_streamed_model_without_its_stream_is_refused(tmp_path):
    checkpoint = Checkpoint(folder_of("mixtral", tmp_path))
    with pytest.raises(InputError, match="the gate has 6 rows; give stream"):
        View(load_streamed(checkpoint, KEEP), kept=KEEP)
    with pytest.raises(InputError, match=r"kept = \(2, 6\)"):
        View(load_streamed(checkpoint, KEEP), kept=(2, 6), stream=checkpoint)
    with pytest.raises(InputError, match="the gate has 2 rows, the stream's checkpoint 6"):
        View(load_subset(checkpoint, KEEP), kept=KEEP, stream=checkpoint)


def test_our_own_layer_is_not_streamed(tmp_path):
    with pytest.raises(NotMoEError, match="cannot be streamed"):
        View(own(2), stream=Checkpoint(folder_of("mixtral", tmp_path)))


# ---- our own layer


def own(experts: int, top_k: int = K) -> nn.Module:
    torch.manual_seed(0)
    bodies = [nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, D)) for _ in range(experts)]
    return nn.Sequential(nn.Linear(D, D), nn.BatchNorm1d(D), MoELayer(D, bodies, top_k), nn.Linear(D, 3)).eval()


def test_our_own_layer_is_filled_from_the_file_of_the_full_module(tmp_path):
    full, part = own(M), own(len(KEEP))
    save_file(full.state_dict(), tmp_path / "full.safetensors")
    load_into(part, tmp_path / "full.safetensors", KEEP)
    full[2].router.allowed_E = torch.tensor([m in KEEP for m in range(M)])
    x_TD = torch.randn(9, D)
    assert torch.allclose(part(x_TD), full(x_TD), atol=1e-6)


def test_a_view_of_our_own_layer_names_the_kept_experts_by_their_global_numbers(tmp_path):
    full, part = own(M), own(len(KEEP))
    save_file(full.state_dict(), tmp_path / "full.safetensors")
    load_into(part, tmp_path / "full.safetensors", KEEP)
    whole, subset = View(full), View(part, kept=KEEP)
    assert {p for p in subset.parts if is_expert(p)} == names(KEEP)
    for name in subset.parts:
        ours, theirs = subset.export(name), whole.export(name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(t, theirs[n][[2, 5]] if name == GATE else theirs[n]) for n, t in ours.items()), name
    whole.route({"expert:5"})
    subset.route({"expert:5"})
    x_TD = {"x": torch.randn(9, D)}
    assert torch.allclose(part(x_TD["x"]), full(x_TD["x"]), atol=1e-6)


def test_a_bare_layer_is_filled_too(tmp_path):
    full, part = MoELayer(D, [nn.Linear(D, D) for _ in range(M)], K), MoELayer(D, [nn.Linear(D, D) for _ in KEEP], K)
    save_file(full.state_dict(), tmp_path / "full.safetensors")
    load_into(part, tmp_path / "full.safetensors", KEEP)
    assert torch.equal(part.experts[1].bias, full.experts[5].bias)
    assert torch.equal(part.gate.weight, full.gate.weight[[2, 5]])


@pytest.mark.parametrize(
    ("change", "keep", "message"),
    [
        ({"0.weight": None}, KEEP, r"tensor '0\.weight' is missing"),
        ({"2.experts.5.0.weight": torch.ones(2, 2)}, KEEP, r"'2\.experts\.5\.0\.weight' has shape \[2, 2\]"),
        ({"2.gate.weight": torch.ones(M)}, KEEP, r"'2\.gate\.weight' has shape \[6\]"),
        ({}, (2, 6), r"there is no expert 6; give numbers in 0…5"),
    ],
)
def test_a_file_that_does_not_fit_our_own_layer_is_refused(change, keep, message, tmp_path):
    tensors = {**own(M).state_dict(), **change}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, tmp_path / "full.safetensors")
    with pytest.raises(InputError, match=message):
        load_into(own(len(KEEP)), tmp_path / "full.safetensors", keep)


def test_a_module_without_our_layer_is_refused(tmp_path):
    with pytest.raises(NotMoEError, match="Linear: no MoELayer in it"):
        load_into(nn.Linear(2, 2), tmp_path / "none.safetensors", KEEP)
