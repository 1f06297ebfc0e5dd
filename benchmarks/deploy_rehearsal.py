"""The part ``--rehearsal`` of deploy.py: thirty devices at six places, two days of an orbit, and nodes that come and go."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import sys
import tempfile
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))  # the small Mixtral of tests

from fedexperts import Scenario
from fedexperts.contact.plan import ContactPlan
from fedexperts.data.digits import DOMAINS
from fedexperts.deploy import local
from fedexperts.deploy.links import links_of
from fedexperts.deploy.place import Place, create
from fedexperts.deploy.switch import switch
from fedexperts.drive.simulate import Simulator
from fedexperts.ledger import read
from fedexperts.runs import run as running
from fedexperts.setup.prepare import contact_plan
from small import CONFIG

SITES = {
    "tromso": (69.65, 18.96),
    "evora": (38.57, -7.91),
    "nakuru": (-0.28, 36.07),
    "cusco": (-13.53, -71.97),
    "hobart": (-42.88, 147.33),
    "fairbanks": (64.84, -147.72),
}
DEVICES = 5
PATIENCE_S = 40.0
IN_CONTACT_S = 2.0
KILLED = {("tromso", 3), ("hobart", 2), ("evora", 2)}
"""In which of their contacts the worker of a node is killed; it is started again at once."""
SHUT = {("fairbanks", 2), ("nakuru", 2), ("tromso", 6)}
"""In which the link goes down before its end."""
MOST_S, END_S = 20 * 60.0, 20.0


def scenario() -> Scenario:
    """A satellite at 600 km over six places with five devices each, and a tiny Mixtral."""
    places = [
        {
            "name": name,
            "latitude_deg": latitude,
            "longitude_deg": longitude,
            "devices": DEVICES,
            "data": f"digits:{DOMAINS[i % len(DOMAINS)]}",
        }
        for i, (name, (latitude, longitude)) in enumerate(SITES.items())
    ]
    return Scenario.parse(
        {
            "name": "rehearsal",
            "seed": 1,
            "protocol": "ems-fl",
            "satellite": {"altitude_km": 600.0, "inclination_deg": 97.8},
            "plan": {
                "kind": "orbit",
                "start": datetime(2026, 1, 1, tzinfo=UTC),
                "days": 2.0,
                "min_elevation_deg": 30.0,
            },
            "radio": {"preset": "paper-range", "fixed_downlink_bps": 5e7},
            "model": {"config": {**CONFIG, "num_local_experts": 6}},
            "train": {
                "cycles": 2,
                "local_steps": 2,
                "batch_size": 8,
                "lr_expert": 3e-3,
                "lr_gate": 3e-3,
                "seconds_per_round": 120.0,
                "max_rounds": 10,
            },
            "evaluation": {"target": None},
            "cluster": places,
        }
    )


class Restarting(local.Processes):
    """Processes that say afterwards how often one was started again."""

    def __init__(self, place: Place):
        super().__init__(place)
        started.append(self)

    @property
    def restarts(self) -> int:
        return sum(self.again.values())


started: list[Restarting] = []


class Churn:
    """What is done to nodes, when the ledger says that one of their contacts has begun."""

    def __init__(self, place: Place):
        self.place, self.contacts, self.began_s = place, dict.fromkeys(place.links, 0), time.monotonic()

    def __call__(self, line: dict[str, Any]) -> None:
        if line["event"] not in ("contact", "flush", "lost"):
            return
        link = line["cluster"]
        self.contacts[link] += line["event"] != "lost"
        now = link, self.contacts[link]
        said = line["event"]
        if line["event"] == "contact" and now in KILLED:
            worker = started[-1].children[f"worker-{self.place.links.index(link)}"]
            worker.send_signal(signal.SIGKILL)
            said += ", its worker is killed"
        if line["event"] == "contact" and now in SHUT:
            later = threading.Timer(IN_CONTACT_S, switch, (self.place.folder, link, False))  # when the server has opened it
            later.daemon = True
            later.start()
            said += ", its link is shut"
        clock_s, plan_h = time.monotonic() - self.began_s, line["t_s"] / 3600
        print(f"  {clock_s:6.0f} s  {plan_h:5.1f} h  {link} {self.contacts[link]}: {said}", flush=True)


def losses(ledger: Path, plan: ContactPlan) -> dict[int, float]:
    """Of contacts that were lost, when, by their number in the plan."""
    starts = {(one.cluster, round(one.start_s, 6)): i for i, one in enumerate(plan.contacts)}
    found, under_way = {}, {}
    for line in read(ledger):
        if line["event"] in ("contact", "flush"):
            under_way[line["cluster"]] = starts[line["cluster"], line["t_s"]]
        if line["event"] == "lost":
            found[under_way[line["cluster"]]] = line["t_s"]
    return found


def simulated(given: Scenario, out: Path, lost: dict[int, float]) -> None:
    """The run in this process, whose contacts end when those of the deployment did."""
    usual = running.simulator

    def simulator(prepared: Any, *rest: Any) -> Simulator:
        made = usual(prepared, *rest)
        made.closes_s |= {prepared.plan.contacts[i]: t_s for i, t_s in lost.items()}
        return made

    with patch.object(running, "simulator", simulator):
        running.run(given, out)


def model_of(run: Path) -> str:
    return hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()


def alive(folder: Path) -> list[int]:
    """Processes in whose environment the folder stands; those of Flower that end of themselves are given a moment."""
    mark, until_s = f"FLWR_HOME={folder / 'flower'}".encode(), time.monotonic() + END_S
    while (found := _marked(mark)) and time.monotonic() < until_s:
        time.sleep(0.2)
    return found


def _marked(mark: bytes) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def rehearse() -> None:
    given = scenario()
    plan = contact_plan(given)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        place = create(folder / "deployed", given.to_toml(), Path(), links_of(given), PATIENCE_S)
        began_s = time.monotonic()
        with patch.object(local, "Processes", Restarting):
            local.deploy_local(place, Churn(place))
        wall_s = time.monotonic() - began_s
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        lost = losses(place.run / "ledger.jsonl", plan)
        simulated(given, folder / "here", lost)
        same = model_of(place.run) == model_of(folder / "here")
        lines = list(read(place.run / "ledger.jsonl"))
        made = sum(line["event"] in ("contact", "flush") for line in lines)
        days, cpu_s = lines[-1]["t_s"] / 86400, used.ru_utime + used.ru_stime
        print(
            f"{len(SITES) * DEVICES} devices on {len(SITES)} SuperNodes, {days:.1f} days of an orbit in {wall_s / 60:.1f} min, "
            f"CPU {cpu_s:.0f} s, load {os.getloadavg()[0]:.1f}"
        )
        print(f"contacts {made}, {wall_s / made:.1f} s each; lost {len(lost)}; workers killed and back {started[-1].restarts}")
        print(f"model of the simulation with the same losses: {'the same bytes' if same else 'ANOTHER'}")
        assert same, "another model than the simulation's"
        assert not alive(place.folder), f"processes left: {alive(place.folder)}"
        assert started[-1].restarts, "no worker was killed: nothing was rehearsed"
        assert lost, "no contact was lost: nothing was rehearsed"
        assert wall_s < MOST_S, f"took {wall_s:.0f} s, more than {MOST_S:.0f}"


if __name__ == "__main__":
    rehearse()
