"""Devices trained as one batched computation are what they are one after the other, but for rounding."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import pictures
import small
from families import FAMILIES, batch, plain
from fedexperts import InputError, run
from fedexperts.data.choice import MultipleChoice
from fedexperts.data.classify import Classification
from fedexperts.data.language import CausalLM
from fedexperts.data.objective import Objective
from fedexperts.ledger import read
from fedexperts.moe.auto import new_model
from fedexperts.moe.layer import MoELayer
from fedexperts.moe.lora import LoRA
from fedexperts.moe.parts import BACKBONE, GATE, HEAD, Piece
from fedexperts.moe.view import View
from fedexperts.runs import checkpoint
from fedexperts.train import cohort
from fedexperts.train.cohort import Joint, Together, why_not
from fedexperts.train.device import Device, LocalTraining
from fedexperts.train.host import LocalHost
from fedexperts.train.task import Task
from stopped import KilledError, killed

E0, E1, E2 = "expert:0", "expert:1", "expert:2"
ADAM = LocalTraining(2, 4, "adamw", 0.01, 0.02, weight_decay=0.1, together=True)
DESCENT = replace(ADAM, optimizer="sgd", lr_expert=0.1, lr_gate=0.1)
IN_FLOAT32 = ("qwen3_next", "qwen3_5_moe_text", "deepseek_v2")
"""Families that compute some of it in float32, whatever the weights are in."""
EVERYTHING = Task(frozenset({E0, E2, GATE, BACKBONE, HEAD}))


class Perceptrons(nn.Module):
    """Features, four experts of which tokens meet ``top_k``, and a head."""

    def __init__(self, top_k: int = 1):
        super().__init__()
        torch.manual_seed(0)
        bodies = [nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)) for _ in range(4)]
        self.below, self.moe, self.head = nn.Linear(6, 6), MoELayer(6, bodies, top_k), nn.Linear(5, 3)
        self.config = None

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.moe(torch.tanh(self.below(x))))


def points(n: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator, dtype=torch.float64) + 2 * seed % 3
    return {"x": x, "labels": torch.randint(0, 3, (n,), generator=generator)}


def sentences(n: int, seed: int) -> dict[str, Tensor]:
    """Sequences of 3 to 9 tokens, so that batches are padded, and those of one device other than another's."""
    torch.manual_seed(seed)
    samples = batch(n, 9)
    ends_N = 3 + (torch.arange(n) * 5 + seed) % 7
    samples["attention_mask"] = (torch.arange(9) < ends_N[:, None]).long()
    return samples


def group(view: View, data: list[dict[str, Tensor]], local: LocalTraining, objective: Objective) -> list[Device]:
    model = {part: Piece(part, 0, view.export(part)) for part in view.parts}
    return [Device(f"a/{j}", view, one, model, local, 0, objective) for j, one in enumerate(data)]


def apart(a: Any, b: Any) -> float:
    """The largest difference of all numbers in two trees that must have the same keys."""
    if isinstance(a, Mapping):
        assert a.keys() == b.keys(), (a.keys(), b.keys())
        return max((apart(a[key], b[key]) for key in a), default=0.0)
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    return float((a - b).abs().max())


def compared(alone: list[Device], together: list[Device], task: Task, calls: int = 3, rounds: int = 2) -> float:
    """Trains both; how far they are apart at the end."""
    trained_by = Together()
    for _ in range(calls):
        steps = sum(device.train(task, rounds, 1.0) for device in alone)
        assert trained_by.train(together, task, rounds, 1.0)[0] == steps
        for a, b in zip(alone, together, strict=True):
            assert (a.steps, a.pending, a.round_s) == (b.steps, b.pending, b.round_s)
            assert a.loss == pytest.approx(b.loss, rel=1e-4)
    first = alone[0]
    start = {part: {n: first.view.start(part, first.held[part].tensors)[n] for n in of} for part, of in first.trained.items()}
    assert apart(first.trained, start) > 1e-3
    return max(
        apart([a.trained, a.optimizer_state][i], [b.trained, b.optimizer_state][i])
        for a, b in zip(alone, together, strict=True)
        for i in range(2)
    )


@pytest.mark.parametrize("local", [DESCENT, ADAM, replace(ADAM, proximal_mu=0.3), replace(ADAM, batch_size=None)], ids=str)
@pytest.mark.parametrize("top_k", [1, 2])
def test_experts_gate_backbone_and_head_of_each_device_are_its_own(top_k: int, local: LocalTraining) -> None:
    """With one pick some devices' tokens never meet an expert, whose moments and decay then rest."""
    view, data = View(Perceptrons(top_k).double()), [points(9, seed) for seed in range(5)]
    alone, together = (group(view, data, local, Classification(0, 3)) for _ in range(2))
    assert compared(alone, together, EVERYTHING) < 1e-9
    if top_k == 1 and local.optimizer == "adamw" and not local.proximal_mu:
        steps = {int(state["step"]) for device in together for state in device.optimizer_state.get(E0, {}).values()}
        assert len(steps) > 1  # so that this was tried


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_family_with_padding(family: str) -> None:
    """All that can be trained is, on sequences of several lengths; the language model's head gives a class too."""
    view, data = View(plain(family).double()), [sentences(9, seed) for seed in range(3)]
    objective: Objective = CausalLM() if hasattr(view.model, "lm_head") else Classification(0, 3)
    task = EVERYTHING if HEAD in view.parts and not isinstance(objective, CausalLM) else Task(EVERYTHING.parts - {HEAD})
    alone, together = (group(view, data, DESCENT, objective) for _ in range(2))
    assert compared(alone, together, task, calls=2, rounds=1) < (1e-5 if family in IN_FLOAT32 else 1e-12)


@pytest.mark.parametrize("route", [None, frozenset({E0, E1})], ids=["free", "masked"])
@pytest.mark.parametrize("average", ["refactor", "merge", "factors"])
def test_adapters_over_a_shared_model(average: Any, route: frozenset[str] | None) -> None:
    view, data = View(plain("mixtral")), [sentences(9, seed) for seed in range(4)]
    view.adapt(LoRA(2, 4.0, average), seed=0)
    alone, together = (group(view, data, DESCENT, Classification(0, 3)) for _ in range(2))
    assert compared(alone, together, Task(frozenset({E0, E1}), route=route)) < 1e-4


@pytest.mark.parametrize("loss", ["language model", "choices"])
def test_other_losses(loss: str) -> None:
    view = View(plain("mixtral", AutoModelForCausalLM).double())
    if loss == "language model":
        objective, data = CausalLM(), [sentences(9, seed) for seed in range(3)]
    else:
        objective, data = MultipleChoice("tokens"), [questions(8, seed) for seed in range(3)]
    alone, together = (group(view, data, DESCENT, objective) for _ in range(2))
    assert compared(alone, together, Task(frozenset({E0, E2, GATE, BACKBONE})), calls=2) < 1e-8


def questions(n: int, seed: int) -> dict[str, Tensor]:
    """Two or three options of one to three tokens each; questions lie at the right."""
    torch.manual_seed(seed)
    long = torch.arange(1, 7) > torch.arange(n)[:, None] % 3
    options = (torch.arange(3) < 1 + torch.arange(3 * n).view(n, 3, 1) % 3).long()
    options[::2, 2] = 0
    return {
        "question": torch.randint(0, 20, (n, 6)),
        "question_mask": long.long(),
        "option": torch.randint(0, 20, (n, 3, 3)),
        "option_mask": options,
        "option_characters": options.sum(dim=-1) * 4,
        "labels": torch.arange(n) % 2,
    }


def test_images() -> None:
    model = new_model(dict(pictures.CONFIG), 0, kind="image-classifier", outputs=4)
    view, data = View(model.double()), []
    for seed in range(3):
        x, y = pictures.images(12, seed)
        data.append({"pixel_values": torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(), "labels": torch.from_numpy(y)})
    alone, together = (group(view, data, ADAM, Classification(0, 4)) for _ in range(2))
    assert compared(alone, together, EVERYTHING) < 1e-8


def test_frozen_layers_are_computed_once_here_too(monkeypatch: pytest.MonkeyPatch) -> None:
    view, data = (
        View(plain("qwen3_moe", num_hidden_layers=4).double(), granularity="layer"),
        [sentences(9, s) for s in range(3)],
    )
    alone, together = (group(view, data, DESCENT, Classification(0, 3)) for _ in range(2))
    ran: list[int] = []
    view.model.model.layers[0].self_attn.register_forward_hook(lambda *_: ran.append(1))
    assert compared(alone, together, Task(frozenset({"expert:3.0", "expert:3.1", GATE} - {GATE})), calls=2) < 1e-12
    before, joint = len(ran), Together()
    joint.compared.add((frozenset({"expert:3.0"}), None))
    joint.train(together, Task(frozenset({"expert:3.0"})), 3, 1.0)
    assert all(device._kept is not None for device in together)
    assert len(ran) - before <= 1 + 2 * 3  # looking for activations, and comparing; no step


def test_devices_with_other_batches_train_apart_and_all_are_trained() -> None:
    """Batches of 3 samples, and of 4, which are all that one of these devices has."""
    view, data = View(Perceptrons().double()), [points(n, seed) for seed, n in enumerate([3, 4, 9, 7, 8, 3])]
    alone, together = (group(view, data, ADAM, Classification(0, 3)) for _ in range(2))
    assert compared(alone, together, EVERYTHING) < 1e-9


def test_fewer_at_once_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    view, data = View(Perceptrons().double()), [points(9, seed) for seed in range(5)]
    alone, together = (group(view, data, ADAM, Classification(0, 3)) for _ in range(2))
    seen: list[int] = []
    made = cohort.Joint.__init__
    monkeypatch.setattr(
        cohort.Joint, "__init__", lambda self, some, *rest: (seen.append(len(some)), made(self, some, *rest))[1]
    )
    monkeypatch.setattr(cohort, "CACHED_B", cohort.AT_ONCE_B)
    monkeypatch.setattr(cohort, "AT_ONCE_B", cohort.AT_ONCE_B // Together().at_once(together[0], EVERYTHING) * 2 + 1)
    assert compared(alone, together, EVERYTHING, calls=1) < 1e-9
    assert seen == [2, 2]  # one that is left over trains alone


def test_groups_are_of_about_the_same_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the last device of some would be left to train alone."""
    view = View(Perceptrons().double())
    devices = group(view, [points(9, 0)] * 13, ADAM, Classification(0, 3))
    monkeypatch.setattr(Together, "at_once", lambda *_: 4)
    groups = Together().split(devices, EVERYTHING)
    assert sorted(map(len, groups)) == [3, 3, 3, 4]
    assert [device for some in groups for device in some] == devices


def test_how_many_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a processor's cache holds, or 64, within 2 GB; a GPU has other caches, and is asked in fewer calls."""
    (device,) = group(View(Perceptrons()), [points(9, 0)], DESCENT, Classification(0, 3))
    beside_B = 4 * 4 * (6 * 8 + 8 + 8 * 5 + 5)
    found = []
    for each_B in (10**4, 10**6, 10**8, 3 * 10**9):
        monkeypatch.setattr(Device, "activations_B", lambda *_, of=each_B - beside_B: of)
        found.append(Together().at_once(device, Task(frozenset({E0}))))
    assert found == [1200, 64, 20, 1]
    monkeypatch.setattr(View, "device", torch.device("cuda"))
    monkeypatch.setattr(Device, "activations_B", lambda *_: 10**6 - beside_B)
    assert Together().at_once(device, Task(frozenset({E0}))) == 2000


def test_what_devices_hold_in_other_states_than_each_other_is_each_ones_own() -> None:
    """As after a contact in which some could not upload all: their frozen parts differ too."""
    view, data = View(Perceptrons().double()), [points(9, seed) for seed in range(4)]
    alone, together = (group(view, data, DESCENT, Classification(0, 3)) for _ in range(2))
    for devices in (alone, together):
        devices[1].train(Task(frozenset({GATE, E1})), 1)
        devices[2].receive([Piece(HEAD, 1, {n: 2 * t for n, t in devices[2].held[HEAD].tensors.items()})])
        for device in devices:
            device.steps = 2
    assert compared(alone, together, Task(frozenset({E0, BACKBONE}))) < 1e-12


def test_numbers_of_16_bits_are_no_mixed_samples() -> None:
    """A loss of about 1 is known to 0.008 in them."""
    for seed in range(0, 40, 5):
        view, data = View(Perceptrons(2).bfloat16()), [points(9, seed + j) for j in range(5)]
        data = [{**one, "x": (0.3 * one["x"]).bfloat16()} for one in data]
        alone, together = (group(view, data, DESCENT, Classification(0, 3)) for _ in range(2))
        for device in alone:
            device.train(EVERYTHING, 1, 1.0)
        Together().train(together, EVERYTHING, 1, 1.0)
        assert max(apart(a.trained, b.trained) for a, b in zip(alone, together, strict=True)) < 0.01


class Scaled(Perceptrons):
    """Has a tensor without dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.scale * x)


@pytest.mark.parametrize("local", [DESCENT, replace(ADAM, proximal_mu=0.3)], ids=str)
def test_a_number_is_trained_like_a_tensor(local: LocalTraining) -> None:
    view, data = View(Scaled().double()), [points(9, seed) for seed in range(4)]
    alone, together = (group(view, data, local, Classification(0, 3)) for _ in range(2))
    assert compared(alone, together, EVERYTHING) < 1e-9


class Linear(Perceptrons):
    """Has a layer of any form before the experts."""

    def __init__(self, name: str):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.name, self.weight = name, nn.Parameter(torch.randn(6, 6, generator=generator) / 2)
        self.bias = nn.Parameter(torch.randn(6, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        w, b = self.weight, self.bias
        makes: dict[str, Callable[[], Tensor]] = {
            "a vector": lambda: x * F.linear(x, b)[:, None],
            "a scalar bias": lambda: F.linear(x, w, b[0]),
            "one bias for all": lambda: F.linear(x, w, b[:1]),
            "a row as bias": lambda: F.linear(x, w, b[None]),
            "a frozen bias": lambda: F.linear(x, w, torch.ones_like(b.detach())),
            "transposed, twice": lambda: F.linear(F.linear(x, w.T, b).relu_(), w),
            "three dimensions": lambda: F.linear(x[:, None].expand(-1, 3, -1), w, b).sum(dim=1),
            "four dimensions": lambda: F.linear(x[:, None, None].expand(-1, 3, 2, -1), w).sum(dim=(1, 2)),
            "by name": lambda: F.linear(x, weight=w, bias=b),
        }
        return self.head(self.moe(torch.tanh(makes[self.name]())))


@pytest.mark.parametrize(
    "name",
    [
        "a vector",
        "a scalar bias",
        "one bias for all",
        "a row as bias",
        "a frozen bias",
        "transposed, twice",
        "three dimensions",
        "four dimensions",
        "by name",
    ],
)
def test_a_linear_layer_of_any_form(name: str) -> None:
    """As many devices as samples in a batch, so that one may not pass for the other."""
    view, data = View(Linear(name).double()), [points(9, seed) for seed in range(4)]
    alone, together = (group(view, data, ADAM, Classification(0, 3)) for _ in range(2))
    assert compared(alone, together, EVERYTHING) < 1e-9


class Mixing(Perceptrons):
    """Subtracts the mean over the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(dim=0))


def test_a_model_that_mixes_samples_is_refused() -> None:
    view, data = View(Mixing().double()), [points(9, seed) for seed in range(4)]
    devices = group(view, data, DESCENT, Classification(0, 3))
    with pytest.raises(InputError, match=r'train.cohort = "batched": a/0 has a loss of .* among others, and of .* alone'):
        Together().train(devices, EVERYTHING, 1, 1.0)
    assert not any(device.trained for device in devices)


class Uneven(Perceptrons):
    """Leaves the first sample out."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.head.weight.sum().expand(1, 3), super().forward(x[1:])])


def test_what_has_no_rows_of_devices_is_refused() -> None:
    view, data = View(Uneven().double()), [points(9, seed) for seed in range(4)]
    with pytest.raises(InputError, match=r'"batched": linear of \(15, 6\) has no rows of 4 devices; leave it out, or set it'):
        Together().train(group(view, data, DESCENT, Classification(0, 3)), EVERYTHING, 1, 1.0)


def test_what_is_drawn_at_random_is_refused() -> None:
    plain_one = View(Perceptrons())
    assert why_not(plain_one) is None
    dropping, normed = Perceptrons(), Perceptrons()
    dropping.moe.experts[0].append(nn.Dropout(0.1))
    normed.below = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))  # type: ignore[assignment]
    assert "moe.experts.0.3 draws at random" in str(why_not(View(dropping)))
    assert "below.1 draws at random in training, or mixes the samples" in str(why_not(View(normed)))
    assert "its gate draws noise" in str(why_not(View(Perceptrons(), noise_std=0.1)))


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"protocol": "aligned", "plan": {"kind": "always-on"}}, 'protocol = "aligned" has devices do each a task'),
        ({"train": {"local_loss": "fedprox:proximal"}}, "train.local_loss = 'fedprox:proximal' is of one device's loss"),
        ({"model": {"config": small.CONFIG, "noise_std": 0.1}}, "model.noise_std = 0.1 is drawn by each device"),
        ({"device": {"d": {"load": "stream"}}}, 'device.d.load = "stream" reads experts one after the other'),
    ],
)
def test_what_cannot_be_batched_is_refused_in_the_scenario(tables: dict[str, Any], message: str) -> None:
    tables = {**tables, "train": {**tables.get("train", {}), "cohort": "batched"}}
    with pytest.raises(InputError, match=r'train.cohort = "batched": ') as caught:
        small.scenario(**tables)
    assert message.replace('"aligned"', "'aligned'") in str(caught.value)
    assert "one-by-one" in str(caught.value) or "leave one of them out" in str(caught.value)


def test_a_model_with_dropout_is_refused_before_any_work(tmp_path: Path) -> None:
    given = small.scenario(train={"cohort": "batched"}, model={"config": {**small.CONFIG, "attention_dropout": 0.1}})
    with pytest.raises(InputError, match=r'train.cohort = "batched": .* draws at random in training.*; leave it out'):
        run(given, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_who_diverges_is_found_among_others() -> None:
    view, data = View(Perceptrons().double()), [points(9, seed) for seed in range(4)]
    data[2]["x"][4] = math.nan
    found = []
    for together in (False, True):
        host = LocalHost(group(view, data, replace(DESCENT, together=together), Classification(0, 3)))
        done = host.train(EVERYTHING, 2, 1.0, None)
        found.append((done.steps, done.broken, sorted(host.group["a/2"].trained)))
    assert found[0] == found[1]
    assert found[1][1]["a/2"]
    assert not found[1][1]["a/1"]


def test_what_all_hold_alike_is_there_once_after_a_checkpoint_too(tmp_path: Path) -> None:
    """Pieces that devices shared are each one's own then, of the same tensors; and all tensors lie row by row."""
    model = Perceptrons().double()
    model.head.weight = nn.Parameter(model.head.weight.detach().T.contiguous().T)
    view, data = View(model), [points(9, seed) for seed in range(4)]
    before, after = (LocalHost(group(view, data, DESCENT, Classification(0, 3))) for _ in range(2))
    before.receive([Piece(HEAD, 1, {n: 2 * t for n, t in before.group["a/0"].held[HEAD].tensors.items()})])
    before.train(Task(frozenset({E0, GATE})), 1, 1.0, None)
    checkpoint.save(tmp_path, 1, before.state())
    found = checkpoint.load(tmp_path)
    assert found is not None
    after.restore(found[1])
    for parts in ({E1}, {E0, BACKBONE}, {HEAD}):
        stacks = [
            [
                (one.part, one.name, one.value_J.stride())
                for one in Joint(list(host.group.values()), Task(frozenset(parts)), 1).stacks
            ]
            for host in (before, after)
        ]
        assert stacks[0] == stacks[1]
        assert all(part in {*parts, E0, GATE} for part, *_ in stacks[0])


LORA = {"model": {"config": small.CONFIG, "lora": {"rank": 2, "alpha": 4.0}}}


@pytest.mark.parametrize("tables", [{}, LORA], ids=["whole experts", "adapters"])
def test_a_run_that_was_killed_goes_on_to_the_same_bytes(
    tables: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedexperts.runs.run.CHECKPOINT_EVERY_S", 0.0)
    given = small.scenario(**tables, train={"cohort": "batched"})
    run(given, tmp_path / "whole")
    lines = list(read(tmp_path / "whole" / "ledger.jsonl"))
    with pytest.raises(KilledError):
        run(given, tmp_path / "run", listener=killed(2 * len(lines) // 3))
    run(given, tmp_path / "run", resume=True)
    files = [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole" / "model").iterdir()]
    for name in (Path("ledger.jsonl"), *files):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_process_that_is_lent_devices_is_sent_each_ones_own() -> None:
    view, sizes_B = View(Perceptrons().double()), []
    for devices in (4, 16):
        host = LocalHost(group(view, [points(9, seed) for seed in range(devices)], ADAM, Classification(0, 3)))
        host.train(EVERYTHING, 1, 1.0, None)
        for device in host.group.values():
            assert device.snapshot(EVERYTHING.parts)
        sizes_B.append(max(len(pickle.dumps({**device.state(), "held": {}})) for device in host.group.values()))
    assert sizes_B[1] < 1.2 * sizes_B[0]


def test_who_goes_on_trains_as_many_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a step takes is measured on the next batch, and another is the next after a checkpoint."""
    monkeypatch.setattr(cohort, "CACHED_B", cohort.AT_ONCE_B)
    view, data = View(plain("mixtral")), [sentences(9, seed) for seed in range(3)]
    before, after = (LocalHost(group(view, data, DESCENT, Classification(0, 3))) for _ in range(2))
    before.train(EVERYTHING, 2, 1.0, None)
    checkpoint.save(tmp_path, 1, before.state())
    found = checkpoint.load(tmp_path)
    assert found is not None
    after.restore(found[1])
    assert before.together is not None
    assert after.together is not None
    known = before.together.at_once(before.group["a/0"], EVERYTHING)
    assert after.together.at_once(after.group["a/0"], EVERYTHING) == known
    assert Together().at_once(after.group["a/0"], EVERYTHING) != known  # so that this was tried


@pytest.mark.parametrize("tables", [{}, LORA, {"protocol": "sync", "train": {"optimizer": "sgd", "lr_expert": 0.1}}], ids=str)
def test_a_run_is_that_of_one_by_one_but_for_rounding(tables: dict[str, Any], tmp_path: Path) -> None:
    runs = {}
    for way in ("one-by-one", "batched"):
        given = small.scenario(**{**tables, "train": {**tables.get("train", {}), "cohort": way}})
        runs[way] = run(given, tmp_path / way)
    lines = [[without_losses(line) for line in list(read(tmp_path / way / "ledger.jsonl"))[1:]] for way in runs]
    assert lines[0] == lines[1]
    losses = [list(read(tmp_path / way / "ledger.jsonl"))[-1]["loss"] for way in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def without_losses(line: dict[str, Any]) -> dict[str, Any]:
    """What of a line is not moved by rounding."""
    moved = ("loss", "accuracy", "accuracy_by_cluster", "metrics_by_cluster", "digest")
    return {key: value for key, value in line.items() if key not in moved}
