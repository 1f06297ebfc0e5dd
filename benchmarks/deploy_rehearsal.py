"""The part ``--rehearsal`` of deploy.py: thirty devices at six places, two days of an orbit, and nodes that come and go."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))  # the small Mixtral of tests, and what they look at

from deployed import left, losses, weights
from fedexperts import Scenario
from fedexperts.data.digits import DOMAINS
from fedexperts.deploy import local
from fedexperts.deploy.links import links_of
from fedexperts.deploy.place import Place, create
from fedexperts.drive.simulate import Simulator
from fedexperts.ledger import read
from fedexperts.peer.relay import Shape
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
KILLED = {("tromso", 3), ("hobart", 2), ("evora", 2)}
"""In which of their contacts the worker of a node is killed as the server opens its link; it is started again at once."""
SHUT = {("fairbanks", 2), ("nakuru", 2), ("tromso", 6)}
"""In which the link goes down again as soon as it has carried anything."""
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


class Churn(local.Switches):
    """Links, with what is done to nodes and links in some contacts: when the server opens one, as its ledger is told later."""

    def __init__(self, folder: Path, server: tuple[str, int], shapes: Mapping[str, Shape], seed: int = 0):
        super().__init__(folder, server, shapes, seed)
        self.contacts = dict.fromkeys(self.relays, 0)
        self.failing: set[asyncio.Task[None]] = set()
        self.began_s = time.monotonic()

    def turn(self, link: str, is_open: bool) -> None:
        super().turn(link, is_open)
        if not is_open:
            return
        self.contacts[link] += 1
        now, said = (link, self.contacts[link]), ""
        if now in KILLED:
            started[-1].children[f"worker-{list(self.relays).index(link)}"].send_signal(signal.SIGKILL)
            said += ", its worker is killed"
        if now in SHUT:
            self.failing.add(asyncio.create_task(self.fail(link)))
            said += ", its link goes down"
        print(f"  {time.monotonic() - self.began_s:6.0f} s  {link}: contact {self.contacts[link]}{said}", flush=True)

    async def fail(self, link: str) -> None:
        """A link, when something has passed it since it was opened."""
        before_B = sum(self.relays[link].passed_B)
        while sum(self.relays[link].passed_B) == before_B:
            await asyncio.sleep(0.01)
        super().turn(link, False)


def alive(folder: Path) -> list[int]:
    """Processes that were left; those of Flower that end of themselves are given a moment."""
    until_s = time.monotonic() + END_S
    while (found := left(folder)) and time.monotonic() < until_s:
        time.sleep(0.2)
    return found


def rehearse() -> None:
    given = scenario()
    plan = contact_plan(given)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        place = create(folder / "deployed", given.to_toml(), Path(), links_of(given), PATIENCE_S)
        began_s = time.monotonic()
        with patch.object(local, "Processes", Restarting), patch.object(local, "Switches", Churn):
            local.deploy_local(place)
        wall_s = time.monotonic() - began_s
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        lines = list(read(place.run / "ledger.jsonl"))
        lost = losses(lines, plan)
        with patch.object(running, "Simulator", partial(Simulator, closes_s=lost)):
            running.run(given, folder / "here")
        same = weights(place.run) == weights(folder / "here")
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
