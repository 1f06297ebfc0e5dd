"""Contact plans: the paper's round robin, files, and when a cycle ends."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedexperts.contact.plan import MOST_CONTACTS, Contact, ContactPlan, PlanError, Rates, always_on, round_robin
from fedexperts.contact.plan_file import read_plan
from fedexperts.errors import InputError

ABC = ("a", "b", "c")


def plan(*contacts: tuple[str, float, float], clusters: tuple[str, ...] = ABC, horizon_s: float = 1000.0) -> ContactPlan:
    return ContactPlan(clusters, tuple(Contact(*contact) for contact in contacts), horizon_s)


def windows(given_plan: ContactPlan) -> list[tuple[str, float, float]]:
    return [(c.cluster, c.start_s, c.end_s) for c in given_plan.contacts]


# ---- round robin and always-on


def test_slot_t_serves_cluster_t_mod_c():
    served = round_robin(ABC, cycles=4, slot_s=10.0).contacts
    assert [c.cluster for c in served] == [ABC[t % 3] for t in range(12)]
    assert [(c.start_s, c.end_s) for c in served] == [(10.0 * t, 10.0 * t + 10) for t in range(12)]


def test_idle_slots_end_each_cycle():
    idle = round_robin(("a", "b"), cycles=2, slot_s=10.0, idle_slots=3)
    assert windows(idle) == [("a", 0, 10), ("b", 10, 20), ("a", 50, 60), ("b", 60, 70)]
    assert idle.horizon_s == 100
    assert idle.cycle_ends_s == (20, 70)


def test_a_slot_lasts_a_minute_unless_told():
    assert windows(round_robin(("a",), cycles=1)) == [("a", 0.0, 60.0)]


def test_always_on_serves_everybody_in_every_slot():
    on = always_on(("a", "b"), cycles=2, slot_s=5.0)
    assert windows(on) == [("a", 0, 5), ("b", 0, 5), ("a", 5, 10), ("b", 5, 10)]
    assert on.cycle_ends_s == (5, 10)
    assert on.horizon_s == 10


def test_rates_are_unlimited_unless_told():
    contact = round_robin(("a",), cycles=1).contacts[0]
    assert contact.uplink_bps == contact.downlink_bps == math.inf


@settings(deadline=None, max_examples=60)
@given(
    clusters=st.integers(1, 8),
    cycles=st.integers(1, 8),
    idle_slots=st.integers(0, 5),
    slot_s=st.floats(0.001, 10_000),
)
def test_a_round_robins_cycle_ends_when_each_cluster_was_served_exactly_once(clusters, cycles, idle_slots, slot_s):
    names = [f"c{i}" for i in range(clusters)]
    robin = round_robin(names, cycles, slot_s, idle_slots)
    ends_s = robin.cycle_ends_s
    assert len(ends_s) == cycles
    begin_s = 0.0
    for end_s in ends_s:
        within = [c.cluster for c in robin.contacts if begin_s <= c.start_s and c.end_s <= end_s]
        assert sorted(within) == sorted(names)
        begin_s = end_s


@settings(deadline=None, max_examples=40)
@given(clusters=st.integers(1, 8), cycles=st.integers(1, 8), slot_s=st.floats(0.001, 10_000))
def test_an_always_on_cycle_is_one_slot(clusters, cycles, slot_s):
    ends_s = always_on([f"c{i}" for i in range(clusters)], cycles, slot_s).cycle_ends_s
    assert ends_s == pytest.approx([slot_s * (k + 1) for k in range(cycles)])


# ---- cycles


def test_a_cycle_ends_when_the_last_cluster_has_been_served():
    uneven = plan(("a", 0, 10), ("a", 20, 30), ("b", 40, 50), ("c", 60, 70), ("c", 80, 90), ("b", 100, 110), ("a", 120, 130))
    assert uneven.cycle_ends_s == (70, 130)


def test_overlapping_contacts_count_when_they_end():
    overlapping = plan(("a", 0, 30), ("b", 10, 20), ("c", 15, 40), ("b", 45, 55), ("a", 50, 80), ("c", 60, 70))
    assert overlapping.cycle_ends_s == (40, 80)


def test_a_contact_that_began_in_the_last_cycle_does_not_count_for_the_next():
    straddling = plan(
        ("a", 0, 10), ("b", 5, 15), ("a", 12, 20), ("b", 30, 40), ("a", 50, 60), clusters=("a", "b")
    )  # the cycle that begins at 15 is not served by a's contact from 12 on
    assert straddling.cycle_ends_s == (15, 60)


def test_a_cycle_that_is_not_complete_has_no_end():
    assert plan(("a", 0, 10), ("b", 20, 30), ("a", 40, 50), clusters=("a", "b")).cycle_ends_s == (30,)
    assert plan(("a", 0, 10), ("a", 40, 50), clusters=("a",)).cycle_ends_s == (10, 50)


def test_clusters_that_are_never_in_view_do_not_hold_up_the_cycle():
    partial = plan(("a", 0, 10), ("c", 20, 30))
    assert partial.reachable == ("a", "c")
    assert partial.cycle_ends_s == (30,)


def test_a_plan_without_contacts_has_no_cycles():
    empty = plan()
    assert (empty.reachable, empty.cycle_ends_s, empty.next_start_s("a", 0)) == ((), (), math.inf)


def test_the_next_start_is_at_or_after_the_time():
    two = plan(("a", 0, 10), ("b", 20, 30), ("a", 50, 60))
    assert [two.next_start_s("a", t) for t in (0, 0.1, 50, 50.1)] == [0, 50, 50, math.inf]
    assert two.next_start_s("b", 0) == 20
    assert two.next_start_s("c", 0) == math.inf


# ---- what cannot be


def test_contacts_are_put_in_order_and_ties_keep_theirs():
    assert windows(plan(("b", 5, 6), ("c", 0, 1), ("a", 0, 1))) == [("c", 0, 1), ("a", 0, 1), ("b", 5, 6)]


def test_contacts_of_one_cluster_may_touch():
    assert len(plan(("a", 0, 10), ("a", 10, 20)).contacts) == 2


def test_contacts_of_one_cluster_may_not_overlap():
    with pytest.raises(PlanError, match=r"cluster 'a' overlap: 0-10 s and 9-20 s"):
        plan(("a", 9, 20), ("b", 0, 5), ("a", 0, 10))


@pytest.mark.parametrize(
    ("contact", "says"),
    [
        (Contact("x", 0, 10), "unknown cluster; known are a, b, c"),
        (Contact("a", 10, 10), "end_s = 10 must be later than start_s = 10"),
        (Contact("a", 10, 5), "end_s = 5 must be later than start_s = 10"),
        (Contact("a", math.nan, 5), "start_s = nan"),
        (Contact("a", 0, math.inf), "end_s = inf"),
        (Contact("a", -5, 5), "-5-5 s lies outside the plan's 0-100 s"),
        (Contact("a", 95, 105), "95-105 s lies outside the plan's 0-100 s"),
        (Contact("a", 0, 1e-9), "lasts 1e-09 s, must be 1e-06 s at least"),
        (Contact("a", 0, 10, downlink_bps=-1), "downlink_bps = -1 must be within 0..1e+18"),
        (Contact("a", 0, 10, uplink_bps=math.nan), "uplink_bps = nan must be within"),
        (Contact("a", 0, 10, uplink_bps=1e19), "uplink_bps = 1e+19 must be within"),
        (Contact("a", 0, 10, rates=(Rates(5, 1, 1), Rates(10, 1, -1))), "downlink_bps = -1 must be within"),
        (Contact("a", 0, 10, rates=(Rates(5, 1, 1), Rates(5, 1, 1))), "rates must follow one another"),
    ],
)
def test_an_impossible_contact_is_refused_by_number_cluster_and_value(contact, says):
    with pytest.raises(PlanError) as error:
        ContactPlan(ABC, (contact,), 100.0)
    assert f"contact 0 of cluster {contact.cluster!r}" in str(error.value)
    assert says in str(error.value)


@pytest.mark.parametrize("make", [round_robin, always_on])
def test_a_plan_of_too_many_contacts_is_refused_before_they_are_made(make):
    with pytest.raises(
        PlanError, match=r"2,000,000,000,000 contacts, and 200,000 are the most; take longer slots \(plan.slot_s\)"
    ):
        make(("a", "b"), cycles=10**12)
    with pytest.raises(PlanError, match="200,001 contacts"):
        ContactPlan(ABC, (Contact("a", 0, 1),) * (MOST_CONTACTS + 1), 1.0)


# ---- what fits

up_down = Contact.of("a", 10, (Rates(20, 800, 0), Rates(30, 0, 0), Rates(40, 400, math.inf), Rates(50, 0, 80)))


@pytest.mark.parametrize(
    ("direction", "from_s", "to_s", "carried_B"),
    [
        ("up", 0, 60, 1500),
        ("up", 15, 35, 750),
        ("up", 20, 30, 0),
        ("up", 40, 50, 0),
        ("down", 10, 30, 0),
        ("down", 10, 31, math.inf),
        ("down", 30, 30, 0),
        ("down", 40, 50, 100),
        ("down", 41, 60, 90),
    ],
)
def test_bytes_over_stretches_that_carry_nothing_or_have_no_limit(direction, from_s, to_s, carried_B):
    assert up_down.carried_B(direction, from_s, to_s) == carried_B


@pytest.mark.parametrize(
    ("direction", "from_s", "size_B", "finish_s"),
    [
        ("up", 10, 1000, 20),  # and not 30, when the next stretch begins
        ("up", 10, 1001, 30.02),
        ("up", 22, 50, 31),
        ("up", 10, 1501, math.inf),
        ("up", 45, 1, math.inf),
        ("up", 45, 0, 45),
        ("down", 10, 1e15, 30),  # waits for the stretch without limit
        ("down", 40, 1e15, 40),
        ("down", 41, 90, 50),
        ("down", 41, 91, math.inf),
    ],
)
def test_transfers_wait_through_stretches_that_carry_nothing(direction, from_s, size_B, finish_s):
    assert up_down.finish_s(direction, from_s, size_B) == pytest.approx(finish_s)


@pytest.mark.parametrize(
    ("direction", "until_s", "size_B", "begin_s"),
    [
        ("up", 50, 500, 30),  # the latest, and not 20
        ("up", 50, 501, 19.99),
        ("up", 50, 1501, -math.inf),
        ("up", 29, 100, 19),
        ("down", 50, 100, 40),
        ("down", 50, 101, 40),  # the rest goes before, in no time
        ("down", 29, 1, -math.inf),
        ("down", 20, 0, 20),
    ],
)
def test_the_latest_beginning_of_a_transfer(direction, until_s, size_B, begin_s):
    assert up_down.begin_s(direction, until_s, size_B) == pytest.approx(begin_s)


@settings(deadline=None, max_examples=60)
@given(
    rates=st.lists(st.tuples(st.floats(0.01, 100), st.sampled_from([0.0, 1.0, 8e3, 1e6, math.inf])), min_size=1, max_size=6),
    share=st.floats(0, 1),
    size_B=st.floats(0.1, 1e9),
)
def test_a_transfer_that_is_done_has_carried_its_bytes(rates, share, size_B):
    pieces, now_s = [], 0.0
    for length_s, bps in rates:
        now_s += length_s
        pieces.append(Rates(now_s, bps, bps))
    contact = Contact.of("a", 0.0, pieces)
    from_s = share * now_s
    done_s = contact.finish_s("up", from_s, size_B)
    room_B = contact.carried_B("up", from_s, now_s)
    assert room_B >= 0
    if done_s == math.inf:
        assert room_B < size_B
    else:
        assert from_s <= done_s <= now_s
        assert contact.carried_B("up", from_s, done_s) >= size_B * (1 - 1e-6) - 1e-3 or any(math.isinf(bps) for _, bps in rates)
        assert contact.begin_s("up", done_s, size_B) >= from_s - 1e-6 * now_s or size_B < 1


def test_one_direction_may_carry_nothing():
    oneway = Contact("a", 0, 10, uplink_bps=8e6, downlink_bps=0)
    assert ContactPlan(ABC, (oneway,), 10.0).contacts == (oneway,)
    assert (oneway.carried_B("up", 0, 10), oneway.carried_B("down", 0, 10)) == (1e7, 0)
    assert oneway.finish_s("down", 0, 1) == math.inf
    assert oneway.begin_s("down", 10, 1) == -math.inf


def test_a_plan_error_is_an_input_error():
    assert issubclass(PlanError, InputError)


# ---- files


def write(path: Path, document: Any) -> Path:
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def rows(*more: Any) -> dict[str, Any]:
    return {"contacts": [{"cluster": "a", "start_s": 0, "end_s": 10}, *more]}


def test_a_file_is_read_as_written(tmp_path):
    document = rows({"cluster": "b", "start_s": 5, "end_s": 25, "uplink_bps": 1e6, "downlink_bps": 2e6, "satellite": "s2"})
    read = read_plan(write(tmp_path / "p.json", document), ABC)
    assert read.clusters == ABC
    assert read.contacts == (Contact("a", 0.0, 10.0, 0.0, 0.0), Contact("b", 5.0, 25.0, 1e6, 2e6, "s2"))
    assert read.horizon_s == 25
    assert read.cycle_ends_s == (25,)


def test_a_file_may_give_a_longer_horizon(tmp_path):
    assert read_plan(write(tmp_path / "p.json", {**rows(), "horizon_s": 86400}), ABC).horizon_s == 86400


def test_a_plan_survives_its_json(tmp_path):
    before = ContactPlan(ABC, (Contact("a", 0, 10, 5e6), Contact("b", 3, 7, satellite="s2")), 50.0)
    assert read_plan(write(tmp_path / "p.json", before.to_json()), ABC) == before


def test_unlimited_rates_are_said_in_json():
    (row,) = round_robin(("a",), cycles=1).to_json()["contacts"]
    assert row["uplink_bps"] == row["downlink_bps"] == "unlimited"


def test_rates_that_change_survive_their_json(tmp_path):
    rates = (Rates(4, 1e6, math.inf), Rates(10, 0.0, 2e6))
    before = ContactPlan(ABC, (Contact.of("a", 0, rates), Contact("b", 3, 7, 0.0, 1e6)), 50.0)
    document = json.dumps(before.to_json(), allow_nan=False)
    assert read_plan(write(tmp_path / "p.json", document), ABC) == before
    assert before.contacts[0].uplink_bps == 4e5
    assert before.contacts[0].downlink_bps == math.inf


@pytest.mark.parametrize(
    "row",
    [
        {"cluster": "b", "start_s": 5},
        {"cluster": "b", "end_s": 5},
        {"start_s": 1, "end_s": 5},
        ["b", 0, 5],
        None,
        {"cluster": "b", "start_s": "soon", "end_s": 5},
        {"cluster": "b", "start_s": None, "end_s": 5},
        {"cluster": "b", "start_s": [0], "end_s": 5},
        {"cluster": "b", "start_s": 0, "end_s": 5, "uplink_bps": "fast"},
        {"cluster": "b", "start_s": 0, "end_s": 10**299},
        {"cluster": "x", "start_s": 0, "end_s": 5},
        {"cluster": 7, "start_s": 0, "end_s": 5},
        {"cluster": ["a"], "start_s": 0, "end_s": 5},
        {"cluster": "b", "start_s": 5, "end_s": 5},
        {"cluster": "b", "start_s": 0, "end_s": 5, "uplink_bps": -1},
        {"cluster": "b", "start_s": 0, "end_s": 5, "uplink_bps": "1e6"},
        {"cluster": "b", "start_s": 0, "end_s": 5, "uplink_bps": None},
        {"cluster": "b", "start_s": 0, "end_s": 5, "uplink_bps": True},
        {"cluster": "b", "start_s": 0, "end_s": 5, "uplink_Mbps": 5},
        {"cluster": "b", "start_s": 0, "end_s": 5, "satellite": "a\x1b[2J"},
        {"cluster": "b", "start_s": 0, "end_s": 5, "cut": 1},
        {"cluster": "b", "start_s": 0, "end_s": 5, "rates": 5},
        {"cluster": "b", "start_s": 0, "end_s": 5, "rates": [{"uplink_bps": 5}]},
        {"cluster": "b", "start_s": 0, "end_s": 5, "rates": [{"until_s": 4, "uplink_bps": 5}]},
        {"cluster": "b", "start_s": 0, "end_s": 5, "uplink_bps": 9, "rates": [{"until_s": 5, "uplink_bps": 5}]},
    ],
)
def test_a_bad_row_is_refused_with_its_number(tmp_path, row):
    path = write(tmp_path / "p.json", rows(row))
    with pytest.raises(PlanError, match="contact 1"):
        read_plan(path, ABC)


def test_a_row_outside_the_horizon_is_refused(tmp_path):
    with pytest.raises(PlanError, match=r"contact 0 .* outside the plan's 0-5 s"):
        read_plan(write(tmp_path / "p.json", {**rows(), "horizon_s": 5}), ABC)


def test_horizon_of_many_digits_is_refused_by_name(tmp_path):
    text = json.dumps({**rows(), "horizon_s": 7}).replace("7", "7" * 400)
    with pytest.raises(PlanError, match=r"p\.json.*horizon_s = inf: must be a finite number"):
        read_plan(write(tmp_path / "p.json", text), ABC)
    with pytest.raises(PlanError, match=r"p\.json: horizon_s = 1e\+11: must be within 0..1e\+10 seconds"):
        read_plan(write(tmp_path / "p.json", {**rows(), "horizon_s": 1e11}), ABC)


@pytest.mark.parametrize("horizon", ["tomorrow", None, [1], {}])
def test_a_horizon_that_is_no_number_is_refused_by_name(tmp_path, horizon):
    with pytest.raises(PlanError, match="horizon_s"):
        read_plan(write(tmp_path / "p.json", {**rows(), "horizon_s": horizon}), ABC)


def test_a_horizon_that_is_not_finite_is_refused_by_name(tmp_path):
    path = write(tmp_path / "p.json", '{"contacts": [{"cluster": "a", "start_s": 0, "end_s": 1}], "horizon_s": NaN}')
    with pytest.raises(PlanError, match="horizon_s"):
        read_plan(path, ABC)


@pytest.mark.parametrize("document", [{}, [], {"contacts": []}, {"contacts": {}}, 3, {"contact": []}])
def test_a_document_without_contacts_is_refused_with_its_path(tmp_path, document):
    with pytest.raises(PlanError, match=r'p\.json.*"contacts"'):
        read_plan(write(tmp_path / "p.json", document), ABC)


def test_a_file_that_is_not_json_is_refused_with_the_line(tmp_path):
    with pytest.raises(PlanError, match=r"p\.json.*is not JSON \(line 2"):
        read_plan(write(tmp_path / "p.json", '{"contacts":\n nonsense}'), ABC)


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "p.json").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(PlanError, match=r"p\.json"):
        read_plan(tmp_path / "p.json", ABC)


def test_a_missing_file_is_refused_with_its_path(tmp_path):
    with pytest.raises(PlanError, match=r"plan\.path = .*nowhere\.json.*No such file"):
        read_plan(tmp_path / "nowhere.json", ABC)
