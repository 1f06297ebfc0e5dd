"""From a scenario's ``[plan]``, ``[satellite]``, ``[radio]`` and places to a contact plan; knows nothing of training."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from .. import tables
from ..contact.interchange import load_plan
from ..contact.orbit import MOST_SATELLITES, Satellite, check_up, circular, epoch_warnings, read_omm, read_tle, walker
from ..contact.plan import ContactPlan, always_on, round_robin
from ..contact.presets import from_preset
from ..contact.radio import Radio
from ..contact.schedule import Station, orbital_plan
from ..contact.site import Site
from ..errors import InputError
from ..scenario import Network

DAY_S = 86400.0


@dataclass(frozen=True)
class Orbit:
    """Everything that an orbital contact plan is computed from."""

    stations: tuple[Station, ...]
    satellites: tuple[Satellite, ...]
    radio: Radio
    start: datetime
    duration_s: float

    def plan(self) -> ContactPlan:
        """Who can talk when, and how fast; notes tell of the elements, also which are far from the plan's time."""
        plan = orbital_plan(self.stations, self.satellites, self.radio, self.start, self.duration_s)
        notes = dict.fromkeys(note for satellite in self.satellites for note in satellite.notes)
        return replace(plan, notes=(*notes, *epoch_warnings(self.satellites, self.start)))


def orbit(network: Network) -> Orbit:
    """Read and check satellites, radio and places.

    Raises:
        InputError: an orbit, a place or a radio that cannot be; a file that is missing or malformed.
    """
    start = network.plan.start
    assert start is not None  # the scenario's own check
    if (total := sum(table.walker.total for table in network.satellite if table.walker)) > MOST_SATELLITES:
        raise InputError(
            f"satellite.walker: the shells have {total:,} satellites together; at most {MOST_SATELLITES:,}: take smaller shells"
        )
    satellites = tuple(s for table in network.satellite for s in _satellites(network, table, start))
    names = [satellite.name for satellite in satellites]
    if twice := sorted(name for name, times in Counter(names).items() if times > 1):
        raise InputError(
            f"satellite.name = {', '.join(twice[:5])}: given twice; every satellite needs its own name (those of a file can be "
            "chosen by their numbers, with satellite_name)"
        )
    check_up(satellites, start)
    stations = tuple(_station(network, place) for place in network.cluster)
    radio = from_preset(network.radio.preset, **network.radio.changes())
    return Orbit(stations, satellites, radio, start, network.plan.days * DAY_S)


def _satellites(network: Network, table: tables.Satellite, start: datetime) -> Sequence[Satellite]:
    if table.tle is not None:
        return _chosen(table, read_tle(network.file(table.tle), table.satellite_name))
    if table.omm is not None:
        return _chosen(table, read_omm(network.file(table.omm), table.satellite_name))
    epoch = table.epoch or start
    if table.walker is not None:
        w = table.walker
        return walker(w.total, w.planes, w.phasing, w.altitude_km, w.inclination_deg, w.kind, epoch=epoch, name=table.name)
    assert table.altitude_km is not None  # the scenario's own checks
    assert table.inclination_deg is not None
    angles = (table.raan_deg, table.mean_anomaly_deg)
    return [circular(table.altitude_km, table.inclination_deg, *angles, epoch=epoch, name=table.name)]


def _chosen(table: tables.Satellite, found: Sequence[Satellite]) -> Sequence[Satellite]:
    """The satellites of a file that the scenario means: more than one are to be asked for, and ``name`` does not choose."""
    file, named = table.tle or table.omm, table.name != tables.Satellite.model_fields["name"].default
    if table.all or table.satellite_name is not None or (len(found) == 1 and not named):
        return found
    names = [satellite.name for satellite in found]
    if named and len(found) == 1 and table.name.casefold() == names[0].casefold():
        return found
    near = difflib.get_close_matches(table.name.upper(), names, n=5, cutoff=0.4) if named else []
    first = [f"{one.name} ({one.number})" if names.count(one.name) > 1 else one.name for one in found[:5]]
    listed = ", ".join(near or first)
    given = f"satellite.name = {table.name!r} does not choose from a file. " if named else ""
    raise InputError(
        f"[satellite]: {given}{file} holds {len(found)} satellite{'' if len(found) == 1 else 's'}; set satellite_name to one "
        f"of them ({'near' if near else 'such as'}: {listed}), or all = true to fly every one"
    )


def _station(network: Network, place: tables.Place) -> Station:
    assert place.latitude_deg is not None  # the scenario's own checks
    assert place.longitude_deg is not None
    mask_deg = network.plan.min_elevation_deg if place.min_elevation_deg is None else place.min_elevation_deg
    return Station(Site(place.name, place.latitude_deg, place.longitude_deg, place.altitude_m, mask_deg), place.devices)


def network_plan(network: Network, cycles: int | None = None) -> ContactPlan:
    """The contact plan of any kind; a round robin and always-on last for ``cycles``, or for ``plan.days``."""
    names = [cluster.name for cluster in network.cluster]
    table = network.plan
    if table.kind == "orbit":
        return orbit(network).plan()
    if table.kind == "file":
        assert table.path is not None  # the scenario's own check
        return load_plan(network.file(table.path), names, table.nodes, table.start)
    slots = len(names) + table.idle_slots if table.kind == "round-robin" else 1
    if cycles is None:
        cycles = max(1, int(table.days * 86400 / (slots * table.slot_s)))
    if table.kind == "round-robin":
        return round_robin(names, cycles, table.slot_s, table.idle_slots)
    return always_on(names, cycles, table.slot_s)
