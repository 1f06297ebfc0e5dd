"""Bounds: how long they take over plans of random contacts, and over a day of a Walker shell, 1,200 satellites and 100 sites.

Seconds are those of one core. Each row has all bounds of all clusters (any protocol's, EMS-FL's order, the baseline's rounds).
The shell's also says how long the plan itself took. Memory is the most that the bounds allocate beside the plan.
Asserted: memory grows no faster than twice the contacts do; EMS-FL's order has no more updates than any protocol.
Usage: python benchmarks/bound.py [--toy]
"""

from __future__ import annotations

import argparse
import math
import time
import tracemalloc
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np

from fedexperts.contact.bound import Load, network, schedule, synchronous
from fedexperts.contact.orbit import walker
from fedexperts.contact.plan import Contact, ContactPlan, Rates
from fedexperts.contact.presets import from_preset
from fedexperts.contact.schedule import Station, orbital_plan
from fedexperts.contact.site import Site

START = datetime(2026, 1, 1, tzinfo=UTC)
LOAD, WHOLE = Load(14e6, 28e6, 60.0), Load(43e6, 86e6, 60.0)
PIECES = 10
"""Of constant rates in a contact, about as many as an orbit's have."""


def contacts(many: int, clusters: int = 5, seed: int = 0) -> ContactPlan:
    """Contacts of random lengths and rates that follow one another."""
    rng = np.random.default_rng(seed)
    names = tuple(f"c{i}" for i in range(clusters))
    found, t_s = [], dict.fromkeys(names, 0.0)
    for k in range(many):
        name = names[k % clusters]
        length_s = float(rng.uniform(60, 600))
        edges_s = t_s[name] + length_s * np.arange(1, PIECES + 1) / PIECES
        rates = [Rates(float(edge_s), float(rng.uniform(1e5, 1e7)), float(rng.uniform(1e6, 1e8))) for edge_s in edges_s]
        found.append(Contact.of(name, t_s[name], rates))
        t_s[name] += length_s + float(rng.uniform(0, 6000))
    return ContactPlan(names, tuple(found), max(t_s.values()) + 1)


def bounded(plan: ContactPlan) -> int:
    """All bounds of all clusters; how many updates and rounds they hold."""
    total = 0
    for mine in plan.by_cluster.values():
        any_way, ordered = (len(of(mine, LOAD, plan.horizon_s).steps) for of in (network, schedule))
        assert ordered <= any_way
        total += any_way + ordered + len(synchronous(mine, WHOLE))
    return total


def row(name: str, plan: ContactPlan, plan_s: float | None = None) -> float:
    """Print seconds and memory of a plan's bounds; returns the megabytes."""
    began_s = time.process_time()
    steps = bounded(plan)
    took_s = time.process_time() - began_s
    tracemalloc.start()
    bounded(plan)
    peak_MB = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    made = "" if plan_s is None else f"{plan_s:8.1f} s for the plan"
    print(f"{name:<28}{len(plan.contacts):>8,} contacts {steps:>8,} updates {took_s:8.2f} s {peak_MB:8.2f} MB{made}")
    return peak_MB


def shell(satellites: int, planes: int, sites: int) -> ContactPlan:
    """A day of a Walker shell over sites that lie evenly between 55° south and north."""
    golden_deg, low = 180 * (3 - math.sqrt(5)), math.sin(math.radians(55))
    latitudes_deg = [math.degrees(math.asin(low * (2 * (i + 0.5) / sites - 1))) for i in range(sites)]
    places = [Site(f"s{i}", lat, (i * golden_deg) % 360 - 180, 0.0, 25.0) for i, lat in enumerate(latitudes_deg)]
    flying = walker(satellites, planes, 1, 600.0, 53.0, epoch=START)
    return orbital_plan([Station(place, 4) for place in places], flying, from_preset("paper"), START, 86400.0)


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table, one row a plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="small plans, in a second or two")
    toy = parser.parse_args(argv).toy
    many = (50, 100) if toy else (1000, 10_000)
    few_MB, more_MB = (row("random contacts", contacts(n)) for n in many)
    assert more_MB <= 2 * few_MB * many[1] / many[0]
    began_s = time.process_time()
    plan = shell(*((12, 3, 4) if toy else (1200, 40, 100)))
    row("Walker shell, a day", plan, time.process_time() - began_s)


if __name__ == "__main__":
    main()
