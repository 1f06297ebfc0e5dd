"""Tables of the network: plan, satellites, radio, faults, devices, places."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, BeforeValidator, ConfigDict, Field, model_validator

from .fields import MOST, Count, Load, Name, NonNegative, Positive, Table, Whole


class Plan(Table):
    """``[plan]``: who can talk when. ``days`` and ``min_elevation_deg`` belong to ``kind = "orbit"``.

    ``start`` is what seconds count from: of an orbit, and of absolute times in a file. ``nodes`` are the node numbers of the
    server and the clusters in HDTN's and ION's files, read and written: ``nodes = { server = 1, lisbon = 10 }``.
    """

    kind: Literal["orbit", "round-robin", "always-on", "file"] = "round-robin"
    path: str | None = None
    nodes: dict[Name, Annotated[int, Field(ge=1, lt=2**63)]] | None = None
    slot_s: Annotated[float, Field(ge=1e-3, le=1e8)] = 60.0
    idle_slots: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    start: AwareDatetime | None = None
    days: Annotated[float, Field(ge=1e-4, le=100_000)] = 1.0
    min_elevation_deg: Annotated[float, Field(ge=0, lt=90)] = 10.0

    @model_validator(mode="after")
    def _path(self) -> Plan:
        if (self.kind == "file") != (self.path is not None):
            raise ValueError('kind = "file" needs a path, and a path needs kind = "file"')
        if self.kind == "orbit" and self.start is None:
            raise ValueError('kind = "orbit" needs a start, for example start = 2026-01-01T00:00:00Z')
        if self.start is not None and not 1957 <= self.start.year < 2200:
            raise ValueError(f"start = {self.start.isoformat()}: must be within 1957..2199")
        return self


class Walker(Table):
    """A Walker shell: ``total`` satellites in ``planes`` planes."""

    total: Count
    planes: Count
    phasing: Whole = 0
    altitude_km: float
    inclination_deg: float
    kind: Literal["delta", "star"] = "delta"


class Satellite(Table):
    """``[satellite]`` or ``[[satellite]]``: a circular orbit, a TLE or OMM file, or a Walker shell.

    Of a file with several satellites ``satellite_name`` is the one to fly, or ``all = true`` flies them all.
    """

    name: Name = "satellite"
    altitude_km: float | None = None
    inclination_deg: float | None = None
    raan_deg: float = 0.0
    mean_anomaly_deg: float = 0.0
    epoch: AwareDatetime | None = None
    tle: str | None = None
    omm: str | None = None
    satellite_name: str | None = None
    all: bool = False
    walker: Walker | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Satellite:
        if sum(x is not None for x in (self.altitude_km, self.tle, self.omm, self.walker)) != 1:
            raise ValueError("give exactly one of altitude_km (a circular orbit), tle, omm or walker")
        if (self.altitude_km is None) != (self.inclination_deg is None):
            raise ValueError("a circular orbit needs altitude_km and inclination_deg")
        if (self.all or self.satellite_name is not None) and self.tle is None and self.omm is None:
            raise ValueError("satellite_name and all choose from a file; they need tle or omm")
        if self.all and self.satellite_name is not None:
            raise ValueError("give satellite_name (one satellite of the file) or all = true (every one of them), not both")
        return self


class Radio(Table):
    """``[radio]``: a preset, and any field of `contact.radio.Radio` beside it, which checks them."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    preset: str = "paper"

    def changes(self) -> dict[str, Any]:
        """The fields that differ from the preset."""
        return dict(self.model_extra or {})


class Faults(Table):
    """``[faults]``: probabilities of what goes wrong on the links, drawn from the scenario's seed."""

    drop: Annotated[float, Field(ge=0, lt=1)] = 0.0
    corrupt: Annotated[float, Field(ge=0, lt=1)] = 0.0
    early_close: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Device(Table):
    """``[device.<class>]``: numbers that replace those of a built-in class of devices, or all of a new class.

    ``compute_J_per_FLOP`` is what computing adds to the idle power. ``memory_B`` is what training may use, ``flops_per_s`` the
    speed that training reaches; ``up_bps`` and ``down_bps`` count where the contact plan has no rates of its own.
    ``availability`` is the share of contacts for which a client is there (protocols that treat clients one by one). ``load`` is
    how much of the model a device that has a process of its own holds: all of it, its ``own`` experts, or these while others
    are read from the checkpoint, ``stream``, when a token meets them.
    """

    tx_power_W: NonNegative | None = None
    rx_power_W: NonNegative | None = None
    compute_J_per_FLOP: NonNegative | None = None
    idle_power_W: NonNegative | None = None
    memory_B: Positive | None = None
    flops_per_s: Positive | None = None
    up_bps: Positive | None = None
    down_bps: Positive | None = None
    availability: Annotated[float, Field(gt=0, le=1)] | None = None
    load: Load | None = None


def _classes(value: Any) -> Any:
    if isinstance(value, dict) and value:
        if wrong := [weight for weight in value.values() if type(weight) not in (int, float) or not 1e-9 <= weight <= MOST]:
            raise ValueError(f"a weight is {wrong[0]!r}: weights of classes must be numbers from 1e-9 to {MOST:,}")
        return value
    if not isinstance(value, str) or not value:
        raise ValueError("must be a class of devices, or classes with weights such as { phone = 0.7, jetson = 0.3 }")
    return value


class Place(Table):
    """``[[cluster]]``: devices in one place. An orbital plan needs the place; training needs the data.

    ``partition`` deals the data to the devices, see `data.partition.deal`; each way needs its own number beside it.
    ``test_partition`` deals the test data to clients that are judged one by one, like their training data or evenly.
    ``validation`` is a file of the cluster's own in place of ``[evaluation] validation``.
    ``samples`` and ``test_samples`` take so many images, drawn from the seed; clusters with the same ``data`` then take
    different ones. ``device`` is a class, or classes with weights from which each device is drawn; ``from_cycle`` and
    ``until_cycle`` say when clients join and leave. These are for protocols that treat clients one by one.
    """

    name: Name
    devices: Count = 1
    latitude_deg: float | None = None
    longitude_deg: float | None = None
    altitude_m: float = 0.0
    min_elevation_deg: Annotated[float, Field(ge=0, lt=90)] | None = None
    data: str | None = None
    test: str | None = None
    validation: str | None = None
    samples: Count | None = None
    test_samples: Count | None = None
    partition: Literal["iid", "by-label", "classes", "tau", "dirichlet"] = "iid"
    classes_per_device: Count | None = None
    tau: Annotated[float, Field(gt=0, le=1)] | None = None
    tau_mode: Literal["table", "prose"] = "table"
    dirichlet_alpha: Positive | None = None
    test_partition: Literal["same", "iid"] = "same"
    device: Annotated[str | dict[str, Any], BeforeValidator(_classes)] = "phone"
    from_cycle: Whole = 0
    until_cycle: Count | None = None
    task: Annotated[dict[str, Any], Field(default_factory=dict)]

    @model_validator(mode="after")
    def _partition(self) -> Self:
        for how, name in (("classes", "classes_per_device"), ("tau", "tau"), ("dirichlet", "dirichlet_alpha")):
            if (self.partition == how) != (getattr(self, name) is not None):
                raise ValueError(f'partition = "{how}" needs {name}, and {name} needs partition = "{how}"')
        return self
