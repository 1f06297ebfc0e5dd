"""What a ledger's lines must hold for those who read them; other events and further fields are free."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import InputError

Number = Annotated[float, Field(ge=-1e300, le=1e300)]
Count = Annotated[int, Field(ge=0, lt=2**63)]


class Line(BaseModel):
    """Every line."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)
    t_s: Number
    event: str


class Run(Line):
    """What is run; the first line."""

    protocol: str
    seed: Count
    clusters: dict[str, Annotated[list[Count], Field(min_length=1)]]
    target: Number | None
    plateau: Annotated[list[Number], Field(min_length=2, max_length=2)]


class Assignment(Line):
    """Algorithm 1 before round 0."""

    experts: list[str]
    clusters: list[str]
    relevance: list[list[Number]]
    assignment: dict[str, list[int | str]]
    gamma: dict[str, Number]
    advice: str


class Scores(BaseModel):
    """Baselines of a cluster."""

    model_config = Line.model_config
    majority: Number | None
    tfidf: Number | None


class Baselines(Line):
    """What needs no model."""

    clusters: dict[str, Scores]


class Joules(BaseModel):
    """Joules by use."""

    model_config = Line.model_config
    radio_J: Number
    compute_J: Number
    idle_J: Number


class Energy(Line):
    """Of a device in the cycle."""

    per_device: dict[str, Joules]


class Metrics(BaseModel):
    """A model judged by data, if it was; nothing stands for a default."""

    model_config = Line.model_config
    accuracy: Number = 0
    loss: Number = 0
    accuracy_by_cluster: dict[str, Number] = {}
    personal_accuracy: Number | None = None
    personal_by_client: dict[str, Number] = {}


class Judged(Line, Metrics):
    """The global model judged, and what it has cost so far."""

    steps: Count
    uplink_B: Count
    downlink_B: Count


class Evaluate(Judged):
    """At the end of a cycle."""

    cycle: Count


class End(Judged):
    """When all is over."""

    cycles: Count
    late: bool
    unsent_rounds: Count
    validation: Metrics = Metrics()


class Align(Line):
    """Who trains what in a round."""

    assigned: dict[str, list[Count]]
    sat_out: dict[str, str]


class Round(Line):
    """What was trained of each expert."""

    load: list[Number]


EVENTS: dict[str, type[Line]] = {
    "run": Run,
    "assignment": Assignment,
    "baselines": Baselines,
    "evaluate": Evaluate,
    "end": End,
    "energy": Energy,
    "align": Align,
    "round": Round,
}


def parsed(text: bytes, where: str) -> dict[str, Any]:
    """A line of a ledger.

    Raises:
        InputError: it is none, with ``where``, the field and what is wrong with it.
    """
    try:
        line = json.loads(text)
        event = line.get("event") if isinstance(line, dict) else None
        (EVENTS.get(event, Line) if isinstance(event, str) else Line).model_validate(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        at = ".".join(map(str, first["loc"])) or "the line"
        raise InputError(f"{where}: {at}: {first['msg'].lower()}; no run has written this line") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, thousands of digits or brackets
        raise InputError(f"{where}: is not JSON ({error}); the file is damaged") from error
    found: dict[str, Any] = line
    return found
