"""Passes: ours, skyfield's loop and brahe (if installed) side by side, and a Walker shell over a thousand sites.

Same task for all: one satellite (600 km, 53°), sites uniform by area, mask 25°, 24 h; repetitions of the tools take turns.
skyfield's `find_events` is called site by site (its interface), brahe's `location_accesses` once with all sites.
The floor is sgp4 alone on our grid: nobody finds passes without the orbit. The shell (1,200 satellites × the sites × 24 h)
runs in a fresh process, whose peak memory counts everything.

Asserted: a tool finds as many passes every time; skyfield as many culminations as there are between our rises and sets; brahe
with steps of 10 s as many passes, to one in a thousand and two (one that grazes the mask may be missing), and with its own of
60 s all but some that are shorter, which are named; the floor propagates as many instants as our search; the shell's passes of
its first satellite are those found without the others.
Usage: python benchmarks/passes.py [--sites N] [--repeats N] [--toy]
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import import_module
from importlib.util import find_spec
from unittest.mock import patch

import numpy as np

from fedexperts.contact.orbit import circular, ecef, instants, walker
from fedexperts.contact.passes import GRID_S, passes
from fedexperts.contact.site import Site

search = import_module("fedexperts.contact.passes")
START = datetime(2026, 1, 1, tzinfo=UTC)
DAY_S = 86400.0
MASK_DEG = 25.0
ORBIT = {"altitude_km": 600.0, "inclination_deg": 53.0}


def uniform_sites(count: int) -> list[Site]:
    rng = np.random.default_rng(0)
    lat, lon = np.degrees(np.arcsin(rng.uniform(-1, 1, count))), rng.uniform(-180, 180, count)
    return [Site(f"s{i}", lat[i], lon[i], 0.0, MASK_DEG) for i in range(count)]


def ours(sites: list[Site]) -> Callable[[], int]:
    satellite = circular(**ORBIT, epoch=START)
    return lambda: len(passes([satellite], sites, START, DAY_S))


def floor() -> Callable[[], int]:
    satellite, times_s = circular(**ORBIT, epoch=START), np.linspace(0, DAY_S, round(DAY_S / GRID_S) + 1)

    def propagate() -> int:
        position, _ = ecef(satellite, instants(START, times_s))
        assert position.shape == (DAY_S // GRID_S + 1, 3), f"propagated {position.shape}"
        return 0

    return propagate


def skyfield_loop(sites: list[Site]) -> Callable[[], int]:
    from skyfield.api import EarthSatellite, load, wgs84

    scale = load.timescale(builtin=True)
    body = EarthSatellite.from_satrec(circular(**ORBIT, epoch=START).satrec, scale)
    places = [wgs84.latlon(site.latitude_deg, site.longitude_deg) for site in sites]
    first, last = scale.utc(2026, 1, 1), scale.utc(2026, 1, 2)
    return lambda: sum(int(np.sum(body.find_events(place, first, last, MASK_DEG)[1] == 1)) for place in places)


BRAHE_S = 60.0
"""The step at which brahe looks if it is told none; a pass between two looks is missed."""


def brahe_accesses(sites: list[Site], step_s: float) -> Callable[[], list[tuple[str, float, float]]]:
    """brahe with sgp4 on the same mean elements, as a TLE: site, rise and set of each pass."""
    import brahe
    from sgp4.exporter import export_tle

    brahe.set_global_eop_provider(brahe.StaticEOPProvider.from_zero())
    brahe.set_num_threads(1)
    satrec = circular(**ORBIT, epoch=START).satrec
    satrec.classification, satrec.intldesg, satrec.ephtype, satrec.elnum, satrec.revnum = "U", "26001A", 0, 1, 1
    propagator = brahe.SGPPropagator.from_tle(*export_tle(satrec), 60.0)
    places = [brahe.PointLocation(site.longitude_deg, site.latitude_deg, 0.0).with_name(site.name) for site in sites]
    first = brahe.Epoch.from_datetime(2026, 1, 1, 0, 0, 0.0, 0.0, brahe.TimeSystem.UTC)
    constraint = brahe.ElevationConstraint(min_elevation_deg=MASK_DEG)

    steps = brahe.AccessSearchConfig(initial_time_step=step_s, adaptive_step=False)

    def search() -> list[tuple[str, float, float]]:
        found = brahe.location_accesses(places, [propagator], first, first + DAY_S, constraint, config=steps)
        return [(one.location_name, one.window_open - first, one.window_close - first) for one in found]

    return search


def counted(search: Callable[[], list[tuple[str, float, float]]]) -> Callable[[], int]:
    return lambda: len(search())


def missed(sites: list[Site], theirs: list[tuple[str, float, float]]) -> None:
    """Which of our passes another tool has not, one line each; they are shorter than its steps."""
    found = passes([circular(**ORBIT, epoch=START)], sites, START, DAY_S)
    for i, site in enumerate(found.site):
        rise_s, set_s = found.rise_s[i], found.set_s[i]
        if any(name == sites[site].name and low < set_s and high > rise_s for name, low, high in theirs):
            continue
        assert set_s - rise_s < BRAHE_S, f"{sites[site].name}: {rise_s:.0f} to {set_s:.0f} s is missed, and is no short pass"
        culmination = f"culminates at {found.max_elevation_deg[i]:.3f} deg"
        print(
            f"missed with steps of {BRAHE_S:g} s: {sites[site].name}, {set_s - rise_s:.1f} s from {rise_s:.1f} s, {culmination}"
        )


def agree(sites: list[Site], counts: dict[str, int]) -> None:
    """Tools find the same passes, but for those that the day cuts before or after they culminate, and those that graze."""
    found = passes([circular(**ORBIT, epoch=START)], sites, START, DAY_S)
    with patch.object(search, "ecef", wraps=ecef) as propagate:
        passes([circular(**ORBIT, epoch=START)], sites, START, DAY_S)
    instants_T = [len(call.args[1].times_s) for call in propagate.call_args_list]
    assert instants_T == [DAY_S // GRID_S + 1], f"our search propagates {instants_T} instants, the floor another number"
    whole = (found.rise_s < found.culmination_s) & (found.culmination_s < found.set_s)
    expected = {"fedexperts": len(found), "skyfield": int(whole.sum()), "brahe, steps of 10 s": len(found)}
    for name, count in counts.items():
        if name in expected:
            most = 0 if name == "fedexperts" else 2 + len(found) // 1000
            assert abs(count - expected[name]) <= most, f"{name}: {count} passes, {expected[name]} expected"


def shell(sites: int, satellites_per_plane: int) -> None:
    """One JSON object with what the shell cost; run in a fresh process."""
    satellites = walker(30 * satellites_per_plane, 30, 1, **ORBIT, epoch=START)
    places = uniform_sites(sites)
    begin, busy = time.perf_counter(), time.process_time()
    found = passes(satellites, places, START, DAY_S)
    seconds, cpu_s = time.perf_counter() - begin, time.process_time() - busy
    alone = passes(satellites[:1], places, START, DAY_S)
    first = found.satellite == 0
    assert np.array_equal(alone.rise_s, found.rise_s[first]), "a satellite has other passes in the shell than alone"
    assert set(found.satellite.tolist()) == set(range(len(satellites))), "a satellite of the shell has no pass"
    begin = time.perf_counter()
    at = instants(START, np.linspace(0, DAY_S, round(DAY_S / GRID_S) + 1))
    for satellite in satellites:
        ecef(satellite, at)
    unit = 1024 if sys.platform != "darwin" else 1
    peak_B = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    cost = {"seconds": seconds, "cpu_s": cpu_s, "floor_s": time.perf_counter() - begin}
    print(json.dumps({**cost, "passes": len(found), "peak_B": peak_B}))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--shell", action="store_true", help="only the Walker shell, in this process, as JSON")
    parser.add_argument("--toy", action="store_true", help="smallest size, one repetition; the figures mean nothing")
    args = parser.parse_args(argv)
    if args.toy:
        args.sites, args.repeats = 20, 1
    per_plane = 1 if args.toy else 40
    if args.shell:
        shell(args.sites, per_plane)
        return
    sites = uniform_sites(args.sites)
    tools = {"fedexperts": ours(sites), "sgp4 on our grid (floor)": floor()}
    for name in ("skyfield", "brahe"):
        if not find_spec(name):
            print(f"{name}: not installed, so not compared")
        elif name == "skyfield":
            tools[name] = skyfield_loop(sites)
        else:
            usual, fine = brahe_accesses(sites, BRAHE_S), brahe_accesses(sites, 10.0)
            tools |= {"brahe": counted(usual), "brahe, steps of 10 s": counted(fine)}
            missed(sites, usual())
    counts = {name: tool() for name, tool in tools.items()}  # warm-up
    agree(sites, counts)
    seconds: dict[str, list[float]] = {name: [] for name in tools}
    for _ in range(args.repeats):
        for name, tool in tools.items():
            begin = time.perf_counter()
            count = tool()
            seconds[name].append(time.perf_counter() - begin)
            assert count == counts[name], f"{name}: {count} passes, {counts[name]} before"
    base = statistics.median(seconds["fedexperts"])
    print(f"{args.sites} sites x 24 h x 1 satellite, mask {MASK_DEG:g} deg, {args.repeats} repeats after one for warm-up")
    print(f"{'tool':26} {'passes':>7} {'median':>10} {'least':>10} {'most':>10} {'of ours':>8}")
    for name, times in seconds.items():
        median = statistics.median(times)
        row = " ".join(f"{1e3 * t:7.1f} ms" for t in (median, min(times), max(times)))
        print(f"{name:26} {counts[name] or '-':>7} {row} {median / base:8.2f}")
    print("(skyfield counts culminations, so passes that are cut before theirs are missing)")
    cost = json.loads(
        subprocess.run(
            [sys.executable, __file__, "--shell", "--sites", str(args.sites), *(["--toy"] if args.toy else [])],
            check=True,
            stdout=subprocess.PIPE,
        ).stdout
    )
    print(
        f"Walker {30 * per_plane}/30/1 x {args.sites} sites x 24 h: {cost['passes']} passes in {cost['seconds']:.1f} s "
        f"({cost['cpu_s']:.1f} s of a core), peak {cost['peak_B'] / 1e9:.2f} GB (whole process); "
        f"sgp4 alone {cost['floor_s']:.1f} s"
    )


if __name__ == "__main__":
    main()
