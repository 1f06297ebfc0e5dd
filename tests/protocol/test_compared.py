"""Protocols to compare with, on the toy: FedAsync, FedBuff, the server's own step and the baseline in C times as many rounds.

Every number was worked out from the papers' formulas by hand. Whole models are trained, so that a round with learning rate 1/2
moves the picked expert and the head by half the error each, and the error is 0 after one: cluster a wants 8, cluster b wants 4.
"""

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import toy
from fedexperts.contact.plan import Contact, ContactPlan, always_on, round_robin
from fedexperts.drive.cluster import Pace
from fedexperts.drive.simulate import Simulator
from fedexperts.ledger import Ledger
from fedexperts.moe.lora import LoRA
from fedexperts.moe.parts import Piece
from fedexperts.protocol.aggregate import combination
from fedexperts.protocol.asynchronous import FedAsync, FedBuff
from fedexperts.protocol.ems_fl import EmsFl, EnhancedEmsFl, Parts
from fedexperts.protocol.step import Step
from fedexperts.protocol.sync import Sync
from fedexperts.train.device import LocalTraining

PARTS = ("expert:0", "expert:1", "head")
OWNED = {"a": frozenset({"expert:0"}), "b": frozenset({"expert:1"})}
DATA = {"a": [toy.samples(0, 8.0)], "b": [toy.samples(1, 4.0)]}
ALWAYS = {name: [toy.samples(0, label)] for name, label in (("a", 8.0), ("b", 4.0), ("c", 0.0), ("d", 16.0))}
ADAM = Step("adam", 1.0, beta1=0.9, beta2=0.99, tau=0.5)


def values(model: dict[str, Piece], _cycle: int | None = 0) -> dict[str, Any]:
    return toy.judged({part: toy.value(model, part) for part in PARTS})


def play(
    kind: Any,
    plan: ContactPlan,
    path: Path,
    cycles: int = 2,
    data: Any = DATA,
    round_s: float = 1.0,
    closes_s: dict[int, float] | None = None,
    **start: Any,
) -> tuple[Any, list[dict[str, Any]]]:
    _, model, devices = toy.make(data)
    owned = {name: OWNED.get(name, frozenset()) for name in data}
    protocol = toy.protocol(kind, model, owned, cycles, **start)
    ledger = Ledger(path / "ledger.jsonl")
    Simulator(plan, toy.hosts(devices), Pace(round_s), cycles, ledger, values, closes_s=closes_s).run(protocol)
    ledger.close()
    return protocol, toy.lines_of(path / "ledger.jsonl")


def at_cycles(lines: list[dict[str, Any]]) -> list[tuple[float, ...]]:
    return [tuple(line[part] for part in PARTS) for line in lines if line["event"] in ("evaluate", "end")]


# ---- FedAsync: x ← (1 − α_t)·x + α_t·x_new, α_t = α·(1 + τ)^−a


def test_fedasync_mixes_what_arrives_and_late_models_less(tmp_path: Path) -> None:
    _, lines = play(partial(FedAsync, mixing=0.5), round_robin(["a", "b"], 3, 1.0), tmp_path)
    # cycle 1: a gets 0 and trains expert 0 and head to 4 each; b gets 0 and trains expert 1 and head to 2; nothing has arrived
    # 2 s: a's (4, 0, 4) on the newest model, α = 1/2: (2, 0, 2), which a trains on to (4, 0, 4)
    # 3 s: b's (0, 2, 2), one late, α' = 1/2·2^−½ = 0.353553: (2(1 − α'), 2α', 2), which b trains on to (…, 1 + α', 3 − α')
    # flush, 4 s: a's (4, 0, 4), one late again; 5 s: b's, one late
    assert at_cycles(lines)[0] == (0, 0, 0)
    assert at_cycles(lines)[1] == pytest.approx((1.2928932, 0.7071068, 2.0), abs=1e-6)
    assert at_cycles(lines)[2] == pytest.approx((1.9116117, 0.7740485, 2.6856602), abs=1e-6)
    behind = [line["behind"] for line in lines if line["event"] == "aggregate" and line["part"] == "head"]
    assert behind == [0, 1, 1, 1]


def test_without_an_exponent_late_models_count_as_much(tmp_path: Path) -> None:
    kind = partial(FedAsync, mixing=0.5, staleness_exponent=0.0)
    _, lines = play(kind, round_robin(["a", "b"], 3, 1.0), tmp_path)
    assert at_cycles(lines)[1] == (1, 1, 2)


def test_with_one_cluster_and_all_of_its_model_fedasync_is_local_training(tmp_path: Path) -> None:
    data = {"a": [toy.samples(0, 8.0), toy.samples(0, 2.0)]}
    _, lines = play(partial(FedAsync, mixing=1.0), round_robin(["a"], 3, 1.0), tmp_path, data=data)
    # each device has error 0 after one round, at 4 and at 1 each; their mean is 2.5 of both numbers, where errors are 3 and −3
    assert at_cycles(lines)[1:] == [(2.5, 0, 2.5), (2.5, 0, 2.5)]


# ---- FedBuff: x ← x + η/K·Σ (1 + τ)^−½·Δ


def test_fedbuff_waits_for_k_changes(tmp_path: Path) -> None:
    protocol, lines = play(partial(FedBuff, buffer=2), round_robin(["a", "b"], 3, 1.0), tmp_path)
    # 2 s: a's change (4, 0, 4) waits, and a gets 0 again; 3 s: b's (0, 2, 2): the mean of both is (2, 1, 3), and b's error is 0
    # flush: a's (4, 0, 4) from 0, one update late, waits with weight 2^−½; b's change is 0: half of the first is (√2, 0, √2)
    assert at_cycles(lines) == [(0, 0, 0), (2, 1, 3), pytest.approx((2 + 2**0.5, 1, 3 + 2**0.5), abs=1e-6)]
    waits = [(line["cluster"], line["behind"], line["waiting"]) for line in lines if line["event"] == "wait"]
    assert waits == [("a", 0, 1)] * 3 + [("a", 1, 1)] * 3  # three parts each time
    assert protocol.updates == dict.fromkeys(PARTS, 2)
    assert not any(protocol.waiting.values())


def test_the_server_learning_rate_scales_the_update(tmp_path: Path) -> None:
    kind = partial(FedBuff, buffer=2, step=Step("sgd", 0.5))
    _, lines = play(kind, round_robin(["a", "b"], 3, 1.0), tmp_path)
    assert at_cycles(lines)[1] == (1, 0.5, 1.5)


def test_a_buffer_that_is_not_full_leaves_the_model(tmp_path: Path) -> None:
    protocol, lines = play(partial(FedBuff, buffer=9), round_robin(["a", "b"], 3, 1.0), tmp_path)
    assert at_cycles(lines)[-1] == (0, 0, 0)
    assert {part: len(waiting) for part, waiting in protocol.waiting.items()} == dict.fromkeys(PARTS, 4)


TRANSFER = ContactPlan(
    ("a",), tuple(Contact("a", 10.0 * k, 10.0 * k + 4, 8 * toy.FILE_B / 0.1, 8 * toy.FILE_B / 0.1) for k in range(6)), 60
)


SLOWLY = LocalTraining(local_steps=1, batch_size=None, optimizer="sgd", lr_expert=0.05, lr_gate=0.05)


@pytest.mark.parametrize("after_s", [0.05, 0.15, 0.25, 0.35, 0.45, 0.55])
@pytest.mark.parametrize(
    "kind",
    [partial(FedBuff, buffer=1, staleness_exponent=0.0), partial(EmsFl, there=Parts(disjoint=False))],
    ids=["fedbuff", "no owners"],
)
def test_what_is_trained_after_a_download_that_was_cut_counts_once(kind: Any, after_s: float, tmp_path: Path) -> None:
    """Of one device, whose changes are added as they come: each round takes its share off the error, once."""
    _, model, devices = toy.make({"a": [toy.samples(0, 8.0)]}, local=SLOWLY)
    protocol = toy.protocol(kind, model, {"a": frozenset()}, 4)
    with closing(Ledger(tmp_path / "ledger.jsonl")) as ledger:
        Simulator(TRANSFER, toy.hosts(devices), Pace(1.0), 4, ledger, values, closes_s={1: 10 + after_s}).run(protocol)
    lines = toy.lines_of(tmp_path / "ledger.jsonl")
    assert lines[-1]["unsent_rounds"] == 0
    assert {line["event"] for line in lines} & {"lost", "refuse"} == {"lost"}
    error = 8.0
    for line in lines:
        if line["event"] == "train":
            error *= (1 - 0.05 * len({"expert:0", "head"} & set(line["parts"]))) ** line["rounds"]
    assert toy.value(protocol.model, "expert:0") + toy.value(protocol.model, "head") == pytest.approx(8 - error, abs=1e-5)


def test_products_of_adapters_are_combined_as_products() -> None:
    """(1 − α)·BA + α·B'A' at full rank, to rounding; factors apart would give another matrix."""
    generator = torch.Generator().manual_seed(0)
    one, other = (
        {name: torch.randn(size, generator=generator) for name, size in (("w.lora_A", (2, 2)), ("w.lora_B", (2, 2)))}
        for _ in "ab"
    )
    lora = LoRA(2, 4.0, "refactor")
    found, facts = combination([(0.25, one), (0.75, other)], lora)
    wanted = 0.25 * one["w.lora_B"] @ one["w.lora_A"] + 0.75 * other["w.lora_B"] @ other["w.lora_A"]
    assert torch.allclose(found["w.lora_B"] @ found["w.lora_A"], wanted, atol=1e-5)
    assert facts["truncation"] < 1e-5
    apart, _ = combination([(0.25, one), (0.75, other)], LoRA(2, 4.0, "factors"))
    assert not torch.allclose(apart["w.lora_B"] @ apart["w.lora_A"], wanted, atol=1e-1)


# ---- the server's own step


def test_fedadam_is_the_papers_algorithm(tmp_path: Path) -> None:
    _, lines = play(partial(Sync, step=ADAM), round_robin(["a", "b"], 2, 1.0), tmp_path, 1)
    # a: Δ = 4 of expert 0 and head: m = 0.1·4 = 0.4, v = 0.99·0.5² + 0.01·4² = 0.4075, m/(√v + 0.5) = 0.3513835
    # b: error 4 − 0.3513835, Δ = 1.8243082 of expert 1 and head: head m = 0.36 + 0.18243, v = 0.403425 + 0.033281
    # expert 0 has come back as it was: Δ = 0, and m = 0.36 moves it on
    assert at_cycles(lines)[0] == pytest.approx((0.6685202, 0.1775401, 0.8186590), abs=1e-6)


def test_a_round_in_which_all_take_part_is_one_step(tmp_path: Path) -> None:
    protocol, lines = play(partial(Sync, step=ADAM), always_on(list(ALWAYS), 1, 1.0), tmp_path, 1, ALWAYS, overlap="mean")
    # the mean of 4, 2, 0 and 8 is 3.5: m = 0.35, v = 0.2475 + 0.1225, and no more steps for those who came later
    assert at_cycles(lines)[0] == pytest.approx((0.3158057, 0, 0.3158057), abs=1e-6)
    assert protocol.moments["head"]["groups"] == {}


def test_rounds_of_fedadam_follow_one_another(tmp_path: Path) -> None:
    _, lines = play(partial(Sync, step=ADAM), always_on(list(ALWAYS), 4, 1.0), tmp_path, 4, ALWAYS, overlap="mean")
    x, m, v = 0.0, 0.0, 0.25
    for found in at_cycles(lines)[:4]:
        change = (7 - 2 * x) / 2  # labels have the mean 7, and expert and head are alike
        m, v = 0.9 * m + 0.1 * change, 0.99 * v + 0.01 * change**2
        x += m / (v**0.5 + 0.5)
        assert found == pytest.approx((x, 0, x), abs=1e-5)


@pytest.mark.parametrize(
    ("step", "first", "second"),
    [
        (Step("sgd", 0.5), 2.0, -1.0),
        (Step("momentum", 0.5, beta1=0.5), 2.0, 0.5 * (0.5 * 4 - 2)),  # m = 4, then 0.5·4 − 2
        (Step("yogi", 1.0, 0.9, 0.99, 0.5), 0.4 / (0.41**0.5 + 0.5), (0.36 - 0.2) / (0.45**0.5 + 0.5)),
        # v = 0.25 + 0.01·16, then 0.41 + 0.01·4: it is below the square of both changes
    ],
)
def test_other_steps_by_hand(step: Step, first: float, second: float) -> None:
    moved, moments = step.of({"w": torch.tensor(4.0)}, {})
    assert float(moved["w"]) == pytest.approx(first)
    moved, _ = step.of({"w": torch.tensor(-2.0)}, moments)
    assert float(moved["w"]) == pytest.approx(second)


def test_ems_fl_steps_on_shared_parts_alone(tmp_path: Path) -> None:
    _, lines = play(partial(EmsFl, step=ADAM), round_robin(["a", "b"], 3, 1.0), tmp_path, 2)
    # a's head moves by 4: a step of 0.3513835; b then has error 4 − 0.3513835 and moves its head by half of it
    assert at_cycles(lines)[0] == pytest.approx((0, 0, 0.8186590), abs=1e-6)
    # expert 0 came to 4 in contact; then its error with the head that it was sent is 8 − 4 − 0.3513835: half of that is added
    assert at_cycles(lines)[1][0] == pytest.approx(4 + (4 - 0.3513835) / 2, abs=1e-6)


def test_a_step_of_one_is_the_mean_to_the_bit(tmp_path: Path) -> None:
    assert Step().plain
    assert not Step("sgd", 0.5).plain
    found = [play(kind, round_robin(["a", "b"], 3, 1.0), tmp_path)[1] for kind in (Sync, partial(Sync, step=Step("sgd", 1.0)))]
    assert found[0] == found[1]


# ---- the baseline in C times as many rounds


def test_c_rounds_are_rounds_in_the_same_time(tmp_path: Path) -> None:
    plan = round_robin(["a", "b"], 3, 3.0)
    fast = play(partial(Sync, speed=2), plan, tmp_path, 2, round_s=3.0)[1]
    twice = play(Sync, plan, tmp_path, 2, round_s=1.5)[1]
    assert fast == twice
    assert [line["rounds"] for line in fast if line["event"] == "train"] == [2] * 4


# ---- EMS-FL, part by part


def test_with_nothing_of_ems_fl_it_is_the_baseline(tmp_path: Path) -> None:
    data = {"a": [toy.samples(0, 8.0), toy.samples(1, 3.0)], "b": [toy.samples(1, 4.0), toy.samples(0, 5.0)]}
    both = ContactPlan(("a", "b"), (Contact("a", 0, 2), Contact("b", 1, 3), Contact("b", 4, 6), Contact("a", 5, 7)), 8.0)
    for plan in (round_robin(["a", "b"], 5, 2.0), round_robin(["a", "b"], 5, 2.0, idle_slots=2), both):
        for more in ({}, {"overlap": "mean"}, {"weights": "samples"}):
            cycles = len(plan.cycle_ends_s) - 1 or 1
            bare = play(partial(EmsFl, there=Parts(away=False, disjoint=False)), plan, tmp_path, cycles, data, **more)[1]
            sync = play(Sync, plan, tmp_path, cycles, data, **more)[1]
            assert at_cycles(bare) == at_cycles(sync)
            assert [line["steps"] for line in bare if line["event"] == "end"] == [
                line["steps"] for line in sync if line["event"] == "end"
            ]
            assert bare[-1]["uplink_B"] == sync[-1]["uplink_B"]


@pytest.mark.parametrize("kind", [EmsFl, EnhancedEmsFl])
def test_without_asynchrony_clusters_rest_out_of_contact(kind: Any, tmp_path: Path) -> None:
    plan = round_robin(["a", "b"], 4, 2.0)
    whole = play(kind, plan, tmp_path, 3)[1]
    rests = play(partial(kind, there=Parts(away=False)), plan, tmp_path, 3)[1]
    phases = [{line["phase"] for line in lines if line["event"] == "train"} for lines in (whole, rests)]
    assert phases == [{"connected", "disconnected"}, {"connected"}]
    assert rests[-1]["unsent_rounds"] == 0
    connected = [[(x["t_s"], x["parts"], x["rounds"]) for x in ls if x.get("phase") == "connected"] for ls in (whole, rests)]
    assert connected[0] == connected[1]  # in contact the same


def test_joint_rounds_bound_what_a_contact_has(tmp_path: Path) -> None:
    plan = round_robin(["a", "b"], 4, 3.0)
    for kind in (EmsFl, EnhancedEmsFl):
        lines = play(partial(kind, there=Parts(joint_rounds=1)), plan, tmp_path, 3)[1]
        rounds = {line["rounds"] for line in lines if line["event"] == "train" and line["phase"] == "connected"}
        away = {line["rounds"] for line in lines if line["event"] == "train" and line["phase"] == "disconnected"}
        assert rounds == {1}
        assert max(away) >= 3


@pytest.mark.parametrize("kind", [EmsFl, EnhancedEmsFl])
def test_without_owners_everybody_trains_all_experts(kind: Any, tmp_path: Path) -> None:
    plan = round_robin(["a", "b"], 5, 1.0)
    protocol, lines = play(partial(kind, there=Parts(disjoint=False)), plan, tmp_path, 4)
    away = [line for line in lines if line["event"] == "train" and line["phase"] == "disconnected"]
    assert away
    assert {tuple(line["parts"]) for line in away} == {("expert:0", "expert:1")}
    assert not [line for line in lines if line["event"] == "refuse"]
    assert protocol.owned == {"a": frozenset(), "b": frozenset()}
    tail = [line for line in lines if line["event"] == "train" and line["phase"] == "connected"][-2:]
    assert all((line["parts"] == ["head"]) is (kind is EnhancedEmsFl) for line in tail)


def test_without_the_mask_the_gate_may_pick_any_expert() -> None:
    _, model, _ = toy.make(DATA)
    mine = OWNED["a"]
    orders = [
        toy.protocol(partial(EnhancedEmsFl, there=there), model, OWNED, 3).order(mine) for there in (Parts(), Parts(mask=False))
    ]
    assert [(order.parts, order.route) for order in orders] == [(mine, mine), (mine, None)]
