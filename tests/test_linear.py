"""What is done for twice as many clusters, clients, devices or windows is twice as much: counted in lines of ours that run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import small
import toy
from fedexperts.contact import schedule
from fedexperts.contact.interchange import load_plan, plan_text
from fedexperts.contact.orbit import walker
from fedexperts.contact.plan import Contact, ContactPlan, Rates, always_on
from fedexperts.contact.presets import from_preset
from fedexperts.contact.schedule import Station, orbital_plan
from fedexperts.contact.site import Site
from fedexperts.drive.cluster import Pace
from fedexperts.drive.simulate import Simulator
from fedexperts.ledger import Ledger
from fedexperts.planned import described, planned
from fedexperts.protocol.link import Start
from fedexperts.protocol.sync import Sync
from fedexperts.report.plan_html import contact_figure
from fedexperts.runs import outlook
from fedexperts.scenario import Prospect

SIZES, LINEAR = (40, 80, 160), 2.1


def lines(call: Callable[[], Any]) -> int:
    """Lines of ours that run, turns of loops and comprehensions among them."""
    count = 0

    def trace(frame: Any, event: str, arg: Any) -> Any:
        nonlocal count
        count += 1
        return trace if "fedexperts" in frame.f_code.co_filename else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def growth(work: Callable[[int], int], sizes: tuple[int, int, int] = SIZES) -> float:
    """How much more the second doubling adds than the first: 2 where work is linear, 4 where it is quadratic."""
    work(4)  # what is done once
    first, second = (b - a for a, b in pairwise(work(n) for n in sizes))
    return second / first


def plan_file(folder: Path, clusters: int) -> None:
    starts = [(cycle * clusters + i) * 60.0 for cycle in range(2) for i in range(clusters)]
    contacts = [Contact(f"c{k % clusters}", t_s, t_s + 60, 1e6, 1e7) for k, t_s in enumerate(starts)]
    plan = ContactPlan(tuple(f"c{i}" for i in range(clusters)), tuple(contacts), starts[-1] + 60)
    (folder / "plan.json").write_text(json.dumps(plan.to_json()))
    (folder / "plan.rc").write_text(plan_text(plan, "ion"))


@pytest.mark.parametrize("many", ["clusters", "clusters that are too small", "clients"])
def test_planning(many: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlook, "MOST_LINKS", 4)  # of each method so many are looked at in any case

    def work(n: int) -> int:
        table: dict[str, Any] = {"name": "many", "model": {"config": small.CONFIG}}
        if many == "clients":
            table |= {
                "protocol": "aligned",
                "plan": {"kind": "always-on", "days": 2e-3},
                "train": {"cycles": 2, "seconds_per_round": 20.0},
            }
            table |= {"cluster": [{"name": "c", "devices": n}]}
        else:
            plan_file(tmp_path, n)
            table |= {"plan": {"kind": "file", "path": "plan.json"}, "cluster": [{"name": f"c{i}"} for i in range(n)]}
            table |= {"device": {"phone": {"memory_B": 1e3}}} if "small" in many else {}

        def plan() -> None:
            found = planned(Prospect.parse(table, tmp_path), 2)
            contact_figure(described(*found, 2))

        return lines(plan)

    assert growth(work) < LINEAR


def test_contact_commands_of_many_nodes(tmp_path: Path) -> None:
    def work(n: int) -> int:
        plan_file(tmp_path, n)
        return lines(lambda: load_plan(tmp_path / "plan.rc", [f"c{i}" for i in range(n)]))

    assert growth(work) < LINEAR


def test_windows_of_satellites_that_many_devices_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what the crowds are counted in: rates are another thing, and for each window alike."""
    monkeypatch.setattr(schedule, "_pieces", lambda radio, time_s, *_: [Rates(float(time_s[-1]), 1, 1)])
    start, sites = datetime(2026, 1, 1, tzinfo=UTC), [Site(f"s{i}", 50 - i, 10 * i) for i in range(4)]
    shell, radio = walker(2, 2, 0, 600, 80, epoch=start), from_preset("paper", total_bandwidth_Hz=25e6)
    stations = [Station(site, 6) for site in sites]
    assert growth(lambda n: lines(lambda: orbital_plan(stations, shell, radio, start, n * 43200.0)), (4, 8, 16)) < LINEAR


def test_a_crowd_is_that_of_all_windows_beside_it() -> None:
    """Against every window with every other, as it was counted first."""
    rng = np.random.default_rng(0)
    columns = (rng.integers(0, 3, 200), rng.integers(0, 900, 200), rng.choice([1, 7, 40, 300], 200), rng.integers(1, 9, 200))
    windows = [(int(s), float(at_s), float(at_s + long_s), int(n)) for s, at_s, long_s, n in zip(*columns, strict=True)]

    def alone(s: int, begin_s: float, end_s: float) -> list[tuple[float, int]]:
        beside = [w for w in windows if w[0] == s and w[1] < end_s and w[2] > begin_s]
        edges_s = sorted({end_s, *(t_s for w in beside for t_s in w[1:3] if begin_s < t_s < end_s)})
        middles_s = [(a_s + b_s) / 2 for a_s, b_s in pairwise([begin_s, *edges_s])]
        return [(t_s, sum(w[3] for w in beside if w[1] < m < w[2])) for t_s, m in zip(edges_s, middles_s, strict=True)]

    assert schedule._heard(windows) == [alone(s, begin_s, end_s) for s, begin_s, end_s, _ in windows]


def test_devices_of_a_cluster(tmp_path: Path) -> None:
    def work(n: int) -> int:
        _, model, devices = toy.make({"a": [toy.samples(j % 2, 4.0) for j in range(n)]})
        ledger = Ledger(tmp_path / f"{n}.jsonl")
        plan, protocol = always_on(["a"], 2), Sync(Start(model, ("a",), frozenset({"head"}), {}, 2))
        run = Simulator(plan, toy.hosts(devices), Pace(60.0), 2, ledger, lambda model, cycle: {})
        count = lines(lambda: run.run(protocol))
        ledger.close()
        return count

    assert growth(work, (8, 16, 32)) < LINEAR


class Counted(str):
    """A name that counts what it is compared with."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def test_a_plan_compares_no_cluster_with_all_others() -> None:
    def work(n: int) -> int:
        Counted.compared = 0
        contacts = [Contact(Counted(f"c{i}"), i, i + 1.0) for i in range(n)]
        ContactPlan(tuple(Counted(f"c{i}") for i in range(n)), tuple(contacts), float(n))
        return Counted.compared

    assert growth(work) < LINEAR
