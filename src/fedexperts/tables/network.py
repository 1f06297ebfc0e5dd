"""Tables of the network: plan, satellites, radio, faults, devices, places."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, BeforeValidator, ConfigDict, Field, model_validator

from .fields import MOST, Count, Load, Name, NonNegative, Positive, Table, Whole


class Plan(Table):
    """``[plan]``: who can talk when."""

    kind: Literal["orbit", "round-robin", "always-on", "file"] = "round-robin"
    """Passes of satellites; clusters in turn, a slot each; all clusters in every slot; or contacts from a file."""
    path: str | None = None
    """Contacts in our JSON or CSV, HDTN's JSON or ION's commands; of kind = "file"."""
    nodes: dict[Name, Annotated[int, Field(ge=1, lt=2**63)]] | None = None
    """Node numbers of server and clusters in files of HDTN and ION, read and written: { server = 1, lisbon = 10 }."""
    slot_s: Annotated[float, Field(ge=1e-3, le=1e8)] = 60.0
    """Length of a slot, in s; of round-robin and always-on plans."""
    idle_slots: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Slots at the end of every round robin in which nobody is in view."""
    start: AwareDatetime | None = None
    """What seconds count from, with a time zone: of an orbit, which needs it, and of absolute times in a file."""
    days: Annotated[float, Field(ge=1e-4, le=100_000)] = 1.0
    """How long an orbit is flown, in days of 86,400 s."""
    min_elevation_deg: Annotated[float, Field(ge=0, lt=90)] = 10.0
    """Satellites lower over a place's horizon, in degrees, are not in view; of orbits."""

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
    """``satellite.walker``: a shell of ``total`` satellites in ``planes`` planes."""

    total: Count
    """Satellites of the shell; a multiple of planes."""
    planes: Count
    """Orbital planes, evenly spread over 360° (delta) or 180° (star)."""
    phasing: Whole = 0
    """Lead over the neighbour in the plane to the west, in units of 360° / total; from 0 to planes - 1."""
    altitude_km: float
    """Height of the circular orbits above the Earth's equatorial radius, in km."""
    inclination_deg: float
    """Angle of the planes to the equator, in degrees."""
    kind: Literal["delta", "star"] = "delta"
    """Whether nodes are spread over 360° (delta) or, for polar shells, 180° (star)."""


class Satellite(Table):
    """``[satellite]`` or ``[[satellite]]``: a circular orbit, a TLE or OMM file, or a Walker shell."""

    name: Name = "satellite"
    """What the satellite is called in plans and pages; it does not choose from a file."""
    altitude_km: float | None = None
    """Height of a circular orbit above the Earth's equatorial radius, in km."""
    inclination_deg: float | None = None
    """Angle of a circular orbit to the equator, in degrees."""
    raan_deg: float = 0.0
    """Right ascension of the ascending node of a circular orbit, in degrees."""
    mean_anomaly_deg: float = 0.0
    """Where on a circular orbit the satellite is at its epoch, in degrees from the ascending node."""
    epoch: AwareDatetime | None = None
    """When a circular orbit's or shell's angles hold; plan.start if left out."""
    tle: str | None = None
    """A file of two-line elements."""
    omm: str | None = None
    """A file of Orbit Mean-Elements Messages: JSON, XML, KVN or CSV."""
    satellite_name: str | None = None
    """Which satellite of a file flies, by its name or catalogue number."""
    all: bool = False
    """Whether all satellites of a file fly."""
    walker: Walker | None = None
    """A shell of satellites on circular orbits."""

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
    """``[radio]``: a preset, and beside it any of its numbers that differ; `contact.radio.Radio` checks them."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    preset: str = "paper"
    """The radio whose numbers hold where the table gives none of its own."""

    def changes(self) -> dict[str, Any]:
        """The fields that differ from the preset."""
        return dict(self.model_extra or {})


class Faults(Table):
    """``[faults]``: probabilities of what goes wrong on the links, drawn from the scenario's seed."""

    drop: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability that a piece (one expert, one gate) does not arrive, and is sent again."""
    corrupt: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability that a piece arrives with a wrong checksum, and is sent again."""
    early_close: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability that a contact's signal is lost at some instant before its planned end."""


class Device(Table):
    """``[device.<class>]``: numbers that replace those of a built-in class of devices, or all of a new class.

    A new class needs its four powers; what else it does not name is without limit.
    """

    tx_power_W: NonNegative | None = None
    """Power of the whole device while it sends, in W."""
    rx_power_W: NonNegative | None = None
    """Power of the whole device while it receives, in W."""
    compute_J_per_FLOP: NonNegative | None = None
    """What computing adds to the idle power, in J for each operation."""
    idle_power_W: NonNegative | None = None
    """Power of the whole device at all other times, in W."""
    memory_B: Positive | None = None
    """Memory for training, in bytes; bounds experts of a client (aligned) or cluster (assignment.policy)."""
    flops_per_s: Positive | None = None
    """The speed that training reaches, in operations a second."""
    up_bps: Positive | None = None
    """Rate of the uplink where the contact plan has none of its own, in bit/s."""
    down_bps: Positive | None = None
    """Rate of the downlink where the contact plan has none of its own, in bit/s."""
    availability: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the contacts for which a client is there; aligned and networked."""
    load: Load | None = None
    """What devices in processes of their own hold: all, own experts, or these and others read as tokens meet them."""
    cache_experts: Whole | None = None
    """With ``load = "stream"``: how many of the others' experts stay in memory, in each layer those that were met last."""
    lora_rank: Count | None = None
    """Rank of the adapters, at most model.lora.rank, which it is if left out; sync, sync-c-rounds, ems-fl, ems-fl-enhanced."""


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
    """

    name: Name
    """What the cluster is called, in plans, ledgers and reports."""
    devices: Count = 1
    """How many devices are at the place; clients of aligned and networked."""
    latitude_deg: float | None = None
    """Geodetic latitude, north positive, in degrees; orbits need it."""
    longitude_deg: float | None = None
    """Longitude, east positive, in degrees; orbits need it."""
    altitude_m: float = 0.0
    """Height above the ellipsoid, in m."""
    min_elevation_deg: Annotated[float, Field(ge=0, lt=90)] | None = None
    """The place's own horizon, in degrees, where it is not plan.min_elevation_deg."""
    data: str | None = None
    """Training data: digits:<domain>, files (patterns and $VARIABLES may stand in it), or hub:org/name:split."""
    test: str | None = None
    """Test data, named alike; digits bring their own."""
    validation: str | None = None
    """A file of the cluster's own in place of evaluation.validation."""
    samples: Count | None = None
    """Training samples taken, drawn from the seed; clusters with the same data take different ones. All if left out."""
    test_samples: Count | None = None
    """Test samples taken, drawn from the seed; all if left out."""
    partition: Literal["iid", "by-label", "classes", "tau", "dirichlet"] = "iid"
    """How data are dealt to the devices: evenly, sorted by label, by classes, Non-IID(τ), or Dirichlet."""
    classes_per_device: Count | None = None
    """Classes that each device has; of partition = "classes"."""
    tau: Annotated[float, Field(gt=0, le=1)] | None = None
    """One class is dominant on each device, dominant : rest = 1 : τ; of partition = "tau"."""
    tau_mode: Literal["table", "prose"] = "table"
    """Whether τ is as in the paper's tables (1 : τ) or its text (the dominant class has 1 − τ)."""
    dirichlet_alpha: Positive | None = None
    """α of the devices' shares, small is uneven; of partition = "dirichlet"."""
    test_partition: Literal["same", "iid"] = "same"
    """Clients judged one by one are tested on classes as they train on (same) or evenly (iid)."""
    device: Annotated[str | dict[str, Any], BeforeValidator(_classes)] = "phone"
    """Class of the devices, or classes with weights to draw each from (aligned, networked): { phone = 7, jetson = 3 }."""
    from_cycle: Whole = 0
    """Orbital cycle, from 0, in which the clients join; aligned and networked."""
    until_cycle: Count | None = None
    """Orbital cycle before which they leave; never if left out. Aligned and networked."""
    task: Annotated[dict[str, Any], Field(default_factory=dict)]
    """What differs from [task] for this cluster's data; the kind does not."""

    @model_validator(mode="after")
    def _partition(self) -> Self:
        for how, name in (("classes", "classes_per_device"), ("tau", "tau"), ("dirichlet", "dirichlet_alpha")):
            if (self.partition == how) != (getattr(self, name) is not None):
                raise ValueError(f'partition = "{how}" needs {name}, and {name} needs partition = "{how}"')
        return self
