"""A device on the toy: every number below can be checked by hand."""

from __future__ import annotations

import copy
import io
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedexperts.moe.parts import Piece
from fedexperts.moe.view import View
from fedexperts.seeds import Stream, torch_seed
from fedexperts.train.device import Device, LocalTraining
from fedexperts.train.task import Task
from toy import HALF, Plain, Toy, half_square, make, samples

E0, E1, HEAD, GATE = "expert:0", "expert:1", "head", "gate"
ADAM = LocalTraining(local_steps=2, batch_size=2, optimizer="adamw", lr_expert=0.1, lr_gate=0.05, weight_decay=0.01)


def task(*parts: str, route: frozenset[str] | None = None) -> Task:
    return Task(frozenset(parts), route=route)


def number(tensors) -> float:
    return float(next(iter(tensors.values())).flatten()[0])


def now(device: Device, part: str) -> float:
    """The device's value of a one-number part, trained or held."""
    return number(device.trained.get(part, device.held[part].tensors))


def test_the_loss_is_the_mean_of_what_each_step_began_with() -> None:
    device = one(samples(0, 2.0))
    assert device.loss is None
    device.train(task(E0, route=frozenset({E0})), 2)
    first, second = 0.5 * (0 - 2.0) ** 2, 0.5 * (1 - 2.0) ** 2  # a step of 0.5 halves the way
    assert now(device, E0) == 1.5
    assert device.loss == pytest.approx((first + second) / 2)
    device.train(task(E0, route=frozenset({E0})), 0)
    assert device.loss is None


def everything(device: Device) -> dict[str, dict[str, Tensor]]:
    return {part: dict(device.trained.get(part, piece.tensors)) for part, piece in device.held.items()}


def same(a: dict[str, dict[str, Tensor]], b: dict[str, dict[str, Tensor]]) -> bool:
    return all(torch.equal(a[part][name], b[part][name]) for part in a for name in a[part]) and a.keys() == b.keys()


def piece(part: str, version: int, value: float, like: Device) -> Piece:
    return Piece(part, version, {k: torch.full_like(v, value) for k, v in like.held[part].tensors.items()})


def pair(first: dict[str, Tensor], second: dict[str, Tensor], local: LocalTraining = HALF) -> tuple[Device, Device]:
    """Two devices over one resident view."""
    _, _, devices = make({"a": [first], "b": [second]}, local=local)
    return devices["a"][0], devices["b"][0]


def one(data: dict[str, Tensor], local: LocalTraining = HALF, name: str = "a/0", seed: int = 0) -> Device:
    view = View(Toy())
    model = {part: Piece(part, 0, view.export(part)) for part in view.parts}
    return Device(name, view, data, model, local, seed, objective=Plain(half_square))


def mixed() -> dict[str, Tensor]:
    """Six samples for both experts, all with different labels."""
    x = torch.eye(2)[torch.tensor([0, 1, 0, 1, 0, 1])]
    return {"x": x, "labels": torch.tensor([1.0, -2.0, 3.0, 4.0, -5.0, 6.0])}


# ---- one local round


def test_all_of_the_model_trains_whatever_somebody_has_put_in_eval_mode() -> None:
    device = one(samples(0, 4.0))
    device.view.model.train()
    next(device.view.model.children()).eval()
    device.train(task(E0), 1)
    assert all(module.training for module in device.view.model.modules())


def test_each_round_has_its_own_seed_however_many_are_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def seeds(device: Device, turns: list[int]) -> list[int]:
        found: list[int] = []
        monkeypatch.setattr(device.view, "seed_noise", found.append)
        for rounds in turns:
            device.train(task(E0), rounds)
        return found

    local, turns = replace(HALF, local_steps=3), [1, 2, 0, 1, 5, 90]
    device = one(samples(0, 4.0), local)
    expected = [torch_seed(Stream.ROUND, device.key, 3 * number) for number in range(99)]
    assert seeds(device, turns) == expected
    goes_on = one(samples(0, 4.0), local)
    goes_on.restore(device.state())
    assert seeds(goes_on, [2]) == [torch_seed(Stream.ROUND, device.key, 3 * number) for number in (99, 100)]
    assert len(goes_on._seeds) <= 64


def test_a_full_batch_round_moves_expert_and_head_by_half_the_mean_error():
    device = one(samples(0, 4.0))
    assert device.train(task(E0, HEAD), rounds=1) == 1
    assert (now(device, E0), now(device, HEAD), now(device, E1)) == (2.0, 2.0, 0.0)


def test_a_second_round_starts_where_the_first_ended():
    device = one(samples(0, 4.0))
    device.train(task(E0), rounds=2)  # 4 away, 2 away
    assert now(device, E0) == 3.0


def test_the_error_is_averaged_over_the_batch():
    device = one({"x": torch.eye(2)[torch.tensor([0, 0, 0, 1])], "labels": torch.tensor([1.0, 2.0, 3.0, 8.0])})
    device.train(task(E0, E1, HEAD), rounds=1)
    assert (now(device, E0), now(device, E1), now(device, HEAD)) == (0.75, 1.0, 1.75)


def test_expert_and_shared_parts_have_their_own_learning_rates():
    device = one(samples(0, 4.0), replace(HALF, lr_expert=0.25, lr_gate=1.0))
    device.train(task(E0, HEAD), rounds=1)
    assert (now(device, E0), now(device, HEAD)) == (1.0, 4.0)


def test_weight_decay_pulls_towards_zero():
    device = one(samples(0, 4.0), replace(HALF, weight_decay=0.5))
    device.receive([piece(E0, 1, 4.0, device)])  # no error, so only the decay 0.5 · 0.5 · 4 acts
    device.train(task(E0), rounds=1)
    assert now(device, E0) == 3.0


@pytest.mark.parametrize(("rounds", "local_steps"), [(1, 1), (3, 1), (2, 4)])
def test_the_steps_made_are_rounds_times_local_steps(rounds, local_steps):
    device = one(samples(0, 4.0), replace(HALF, local_steps=local_steps))
    assert device.train(task(E0), rounds) == rounds * local_steps
    assert device.steps == rounds * local_steps


def test_the_mask_decides_which_expert_is_trained():
    device = one(samples(0, 4.0))  # the gate would pick expert 0
    device.train(task(E0, E1, route=frozenset({E1})), rounds=1)
    assert (now(device, E0), now(device, E1)) == (0.0, 2.0)


def test_the_mask_ends_with_its_task():
    device = one(samples(0, 4.0))
    device.train(task(E1, route=frozenset({E1})), rounds=1)
    device.train(task(E0, E1), rounds=1)
    assert (now(device, E0), now(device, E1)) == (2.0, 2.0)


@settings(deadline=None, max_examples=25)
@given(st.frozensets(st.sampled_from([E0, E1, HEAD, GATE]), min_size=1), st.sampled_from([HALF, ADAM]))
def test_only_the_parts_of_the_task_change(parts, local):
    device = one(mixed(), local)
    before = copy.deepcopy(everything(device))
    device.train(Task(parts), rounds=2)
    after = everything(device)
    for part in before:
        changed = any(not torch.equal(after[part][name], before[part][name]) for name in after[part])
        assert not changed or part in parts
    assert set(device.trained) == set(device.pending) == parts


def test_training_leaves_the_pieces_that_it_started_from_untouched():
    device = one(mixed(), ADAM)
    given_pieces = dict(device.held)
    before = copy.deepcopy({part: dict(p.tensors) for part, p in given_pieces.items()})
    device.train(task(E0, E1, HEAD), rounds=3)
    assert same({part: dict(p.tensors) for part, p in given_pieces.items()}, before)


def test_training_leaves_the_global_generator_alone():
    device = one(mixed(), ADAM)
    torch.manual_seed(7)
    expected = torch.rand(2)
    torch.manual_seed(7)
    device.train(task(E0), rounds=2)
    assert torch.equal(torch.rand(2), expected)


# ---- one resident model for several devices


def test_two_devices_over_one_view_do_not_disturb_each_other():
    a, b = pair(samples(0, 4.0), samples(0, -8.0))
    a.train(task(E0), rounds=1)
    b.train(task(E0), rounds=1)
    a.train(task(E0), rounds=1)
    b.train(task(E0), rounds=1)
    assert (now(a, E0), now(b, E0)) == (3.0, -6.0)
    assert a.held[E0] is b.held[E0]
    assert number(a.held[E0].tensors) == 0.0


def test_a_device_sees_its_own_version_of_parts_that_it_does_not_train():
    a, b = pair(samples(0, 4.0), samples(0, 4.0))
    a.receive([piece(HEAD, 1, 2.0, a)])
    a.train(task(E0), rounds=1)
    b.train(task(E0), rounds=1)
    assert (now(a, E0), now(b, E0)) == (1.0, 2.0)  # errors of 2 and of 4


@pytest.mark.parametrize("local", [HALF, ADAM], ids=["sgd", "adamw"])
def test_training_in_turns_is_bit_equal_to_training_alone(local):
    alone = one(mixed(), local)
    a, b = pair(mixed(), samples(1, -3.0, n=5), local)
    for _ in range(3):
        alone.train(task(E0, E1, HEAD), rounds=2)
        a.train(task(E0, E1, HEAD), rounds=2)
        b.train(task(E0, E1), rounds=1)
    assert same(everything(a), everything(alone))
    assert now(b, E1) != now(a, E1)


def test_adamw_over_two_orders_equals_adamw_over_one():
    """The optimiser's moments survive the end of a task."""
    together, apart = one(mixed(), ADAM), one(mixed(), ADAM)
    together.train(task(E0, HEAD), rounds=4)
    for _ in range(4):
        apart.train(task(E0, HEAD), rounds=1)
    assert same(everything(together), everything(apart))


def test_adamws_first_step_is_its_learning_rate_and_released_parts_start_afresh():
    local = LocalTraining(optimizer="adamw", lr_expert=0.1, lr_gate=0.1)
    device = one(samples(0, 1000.0), local)
    device.train(task(E0), rounds=1)
    assert now(device, E0) == pytest.approx(0.1, abs=1e-6)
    device.receive([piece(E0, 1, 2000.0, device)])  # the error changes its sign: with its moments kept, m ≈ 0
    device.release([E0])
    device.train(task(E0), rounds=1)
    assert now(device, E0) == pytest.approx(1999.9, abs=1e-3)


def test_receiving_a_part_keeps_its_optimiser_state():
    local = LocalTraining(optimizer="adamw", lr_expert=0.1, lr_gate=0.1)
    device = one(samples(0, 1000.0), local)
    device.train(task(E0), rounds=1)
    device.receive([piece(E0, 1, 2000.0, device)])
    device.train(task(E0), rounds=1)
    assert abs(now(device, E0) - 2000.0) < 0.01  # gradients −1000 and 1000: the mean nearly cancels


# ---- what is pending


def test_a_snapshot_holds_what_was_trained_and_for_how_long():
    device = one(samples(0, 4.0, n=3))
    device.train(task(E0), rounds=2)
    (update,) = device.snapshot({E0, E1})
    assert (update.device, update.piece.part, update.piece.version) == ("a/0", E0, 0)
    assert (update.rounds, update.samples, number(update.piece.tensors)) == (2, 3, 3.0)


def test_snapshots_come_in_travelling_order():
    device = one(mixed())
    device.train(task(HEAD, E1, GATE, E0), rounds=1)
    assert [u.piece.part for u in device.snapshot({GATE, HEAD, E0, E1})] == [E0, E1, GATE, HEAD]


def test_a_snapshot_is_frozen():
    device = one(samples(0, 4.0))
    device.train(task(E0), rounds=1)
    (update,) = device.snapshot({E0})
    device.train(task(E0), rounds=3)
    device.receive([piece(E0, 1, 9.0, device)])
    assert (number(update.piece.tensors), update.rounds) == (2.0, 1)


def test_taking_a_snapshot_delivers_nothing():
    device = one(samples(0, 4.0))
    device.train(task(E0), rounds=1)
    assert [u.rounds for u in device.snapshot({E0}) + device.snapshot({E0})] == [1, 1]


def test_nothing_is_pending_before_training_and_after_delivery():
    device = one(samples(0, 4.0))
    assert device.snapshot({E0, HEAD}) == []
    device.train(task(E0, HEAD), rounds=1)
    for update in device.snapshot({E0}):
        device.delivered(update)
    assert [u.piece.part for u in device.snapshot({E0, HEAD})] == [HEAD]


def test_rounds_after_the_snapshot_stay_pending():
    device = one(samples(0, 4.0))
    device.train(task(E0), rounds=1)
    (first,) = device.snapshot({E0})
    device.train(task(E0), rounds=2)
    device.delivered(first)
    (second,) = device.snapshot({E0})
    assert (second.rounds, number(second.piece.tensors)) == (2, 3.5)


def test_delivery_does_not_undo_local_training():
    device = one(samples(0, 4.0))
    device.train(task(E0), rounds=1)
    device.delivered(device.snapshot({E0})[0])
    device.train(task(E0), rounds=1)
    assert now(device, E0) == 3.0


def test_receiving_overwrites_local_training_of_that_part_only():
    device = one(samples(0, 4.0))
    device.train(task(E0, HEAD), rounds=1)
    device.receive([piece(E0, 5, 10.0, device)])
    assert (now(device, E0), now(device, HEAD)) == (10.0, 2.0)
    assert [u.piece.part for u in device.snapshot({E0, HEAD})] == [HEAD]
    device.train(task(E0), rounds=1)  # 10 + 2 is 8 above 4
    (update,) = device.snapshot({E0})
    assert (update.piece.version, update.rounds, number(update.piece.tensors)) == (5, 1, 6.0)


def test_a_device_holds_a_version_until_it_trains_the_part_or_receives_another():
    device = one(samples(0, 4.0))
    zero, first = device.held[E0], piece(E0, 1, 1.0, device)
    assert device.holds(zero)
    assert not device.holds(first)
    device.receive([first])
    assert device.holds(first)
    assert not device.holds(zero)
    device.train(task(E0), rounds=1)
    assert not device.holds(first)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.sampled_from(["train", "snapshot", "deliver"]), max_size=12),
)
def test_delivered_and_pending_rounds_add_up_to_those_trained(events):
    device, trained, delivered, last = one(samples(0, 1.0)), 0, 0, None
    for event in events:
        if event == "train":
            device.train(task(E0), rounds=2)
            trained += 2
        elif event == "snapshot":
            last = next(iter(device.snapshot({E0})), None)
        elif last is not None:
            device.delivered(last)
            delivered, last = delivered + last.rounds, None
    assert delivered + sum(u.rounds for u in device.snapshot({E0})) == trained


# ---- the order of the data


def visits(name: str = "a/0", seed: int = 0, steps: int = 12, n: int = 6) -> list[float]:
    """With one sample per step and learning rate 1 the expert takes on the label of each sample in turn."""
    data = samples(0, 0.0, n=n)
    data["labels"] = torch.arange(float(n))
    device = one(data, replace(HALF, batch_size=1, lr_expert=1.0), name, seed)
    seen = []
    for _ in range(steps):
        device.train(task(E0), rounds=1)
        seen.append(round(now(device, E0), 4))
    return seen


def test_each_epoch_visits_every_sample_once_in_a_new_order():
    seen = visits(steps=18)
    epochs = [seen[:6], seen[6:12], seen[12:]]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4, 5] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_the_order_repeats_for_one_name_and_seed():
    assert visits() == visits()


def test_the_order_depends_on_name_and_seed():
    assert visits() != visits(name="a/1")
    assert visits() != visits(seed=1)


def test_the_order_does_not_depend_on_how_steps_are_cut_into_rounds_and_tasks():
    data = samples(0, 0.0, n=6)
    data["labels"] = torch.arange(6.0)
    for steps in (3, 5, 8):
        device = one(data, replace(HALF, batch_size=1, lr_expert=1.0, lr_gate=1e-12))
        device.train(task(HEAD), rounds=steps - 2)
        device.train(task(E0), rounds=2)
        assert now(device, E0) == pytest.approx(visits(steps=steps)[-1], abs=1e-4)


def test_a_batch_larger_than_the_data_is_the_full_batch():
    full, large = one(mixed()), one(mixed(), replace(HALF, batch_size=100))
    for device in (full, large):
        device.train(task(E0, E1), rounds=2)
    assert same(everything(full), everything(large))


# ---- trial pass


def test_observing_counts_the_devices_own_routing():
    device = one({"x": torch.eye(2)[torch.tensor([0, 0, 1])], "labels": torch.zeros(3)})
    counts_LM, tokens = device.observe(100)
    assert (counts_LM.tolist(), tokens) == ([[2, 1]], 3)


def test_observing_takes_no_more_samples_than_asked_for_and_changes_nothing():
    device = one(mixed())
    before = copy.deepcopy(everything(device))
    counts_LM, tokens = device.observe(4)
    assert tokens == counts_LM.sum() == 4
    assert same(everything(device), before)
    assert (device.pending, device.steps) == ({}, 0)


def test_observing_looks_at_the_model_as_it_came_down():
    """θ_t of Algorithm 1 is the server's; what a device has made of its gate since is its own."""
    device = one(mixed())
    device.trained[GATE] = {name: -value for name, value in device.held[GATE].tensors.items()}  # would swap all picks
    only_first = one({"x": torch.tensor([[1.0, 0.0]]), "labels": torch.zeros(1)})
    only_first.trained[GATE] = device.trained[GATE]
    assert only_first.observe(1)[0].tolist() == [[1, 0]]


def test_observing_needs_no_mask():
    a, b = pair(mixed(), mixed())
    b.train(task(E1, route=frozenset({E1})), rounds=1)
    a.receive([Piece(GATE, 1, {k: -v for k, v in a.held[GATE].tensors.items()})])  # now picks the other expert
    assert a.observe(100)[0].tolist() == b.observe(100)[0].tolist() == [[3, 3]]
    only_first = {"x": torch.tensor([[1.0, 0.0]]), "labels": torch.zeros(1)}
    c, d = pair(only_first, only_first)
    c.receive([Piece(GATE, 1, {k: -v for k, v in c.held[GATE].tensors.items()})])
    assert (c.observe(1)[0].tolist(), d.observe(1)[0].tolist()) == ([[0, 1]], [[1, 0]])


# ---- checkpoints


def through_a_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("local", [HALF, ADAM], ids=["sgd", "adamw"])
def test_a_restored_device_continues_bit_equal(local):
    straight, stopped, fresh = one(mixed(), local), one(mixed(), local), one(mixed(), local)
    straight.train(task(E0, HEAD), rounds=5)
    stopped.train(task(E0, HEAD), rounds=2)
    fresh.restore(through_a_file(stopped.state()))
    fresh.train(task(E0, HEAD), rounds=3)
    assert same(everything(fresh), everything(straight))
    assert fresh.steps == straight.steps
    assert fresh.pending == straight.pending == {E0: 5, HEAD: 5}


def test_a_restored_device_delivers_what_was_pending():
    stopped, fresh = one(samples(0, 4.0)), one(samples(0, 4.0))
    stopped.receive([piece(E0, 3, 8.0, stopped)])
    stopped.train(task(E0), rounds=1)
    fresh.restore(through_a_file(stopped.state()))
    (update,) = fresh.snapshot({E0})
    assert (update.piece.version, update.rounds, number(update.piece.tensors)) == (3, 1, 6.0)


def test_an_unknown_part_in_a_task_is_an_error():
    with pytest.raises(KeyError, match="expert:7"):
        one(mixed()).train(task("expert:7"), rounds=1)


# ---- appraisal


def test_an_appraisal_is_of_an_expert_alone_before_training():
    device = one({"x": torch.eye(2)[torch.tensor([0, 0, 0, 1])], "labels": torch.full((4,), 4.0)})
    device.receive([piece(E0, 1, 2.0, device)])
    device.train(replace(task(E0, E1, HEAD), appraisal=4), rounds=1)
    # alone, expert 0 is 2 away on all samples and expert 1 is 4 away; a guess of 0 is 4 away
    assert device.appraisals == {E0: (0.25, 0.75), E1: (1.0, 0.25)}


def test_a_share_is_what_a_free_gate_would_pick():
    device = one({"x": torch.eye(2)[torch.tensor([0, 0, 0, 1])], "labels": torch.full((4,), 4.0)})
    device.train(replace(task(E0, HEAD, route=frozenset({E0})), appraisal=4), rounds=1)
    assert device.appraisals == {E0: (1.0, 0.75)}


def test_what_was_trained_is_not_appraised_again_until_a_new_version_comes():
    device = one({"x": torch.eye(2)[torch.tensor([0, 0, 0, 0])], "labels": torch.full((4,), 4.0)})
    order = replace(task(E0), appraisal=4)
    device.train(order, rounds=1)
    assert device.appraisals == {E0: (1.0, 1.0)}
    (update,) = device.snapshot({E0})
    device.delivered(update)
    assert (update.loss, device.appraisals) == (1.0, {})
    device.train(order, rounds=1)  # out of contact, on what it has trained itself
    (late,) = device.snapshot({E0})
    assert late.loss is None
    device.delivered(late)
    device.receive([piece(E0, 1, 2.0, device)])
    device.train(order, rounds=1)
    assert device.appraisals[E0][0] == 0.25
