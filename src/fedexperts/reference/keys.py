"""The keys of a scenario: its tables, the fields of a radio beside its preset, the built-in classes of devices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any, get_args

from pydantic import BaseModel

from ..scenario import Scenario
from .topic import Topic, attributes, bullets, paragraphs, sentence
from .types import LEFT_OUT, default, kind, listed, number


def names() -> list[str]:
    """Of the keys and tables at the top of a scenario, in their order in the file."""
    first = ["name", "seed", "protocol"]
    return first + [name for name in Scenario.model_fields if name not in (*first, "base")]


def brief(name: str) -> Topic:
    """A key or table at the top of a scenario, with its own keys."""
    return _key(Scenario, name, name)


def full(name: str) -> Topic:
    """The same, and what else may be named there."""
    topic = brief(name)
    if name == "radio":
        (preset,) = topic.parts
        choices = _presets()
        quoted = listed(f'"{choice.name}"' for choice in choices)
        return replace(topic, parts=(replace(preset, type=quoted, choices=choices), *_radio_fields()))
    return replace(topic, choices=_classes(topic.parts)) if name == "device" else topic


def _key(table: type[BaseModel], name: str, at: str) -> Topic:
    field = table.model_fields[name]
    topic = Topic(at, _description(table, name), "", kind(field.annotation, field.metadata), default(field))
    if (inner := _table(field.annotation)) is None:
        return topic
    title, meaning, notes = _said(inner, at)
    parts = tuple(_key(inner, part, f"{at}.{part}") for part in inner.model_fields)
    left_out = topic.default if field.is_required() else LEFT_OUT
    return replace(topic, meaning=meaning, title=title, default=left_out, notes=notes, parts=parts)


def _description(table: type[BaseModel], name: str) -> str:
    """Of a field; a class that narrows a field of another need not say it again."""
    declared = (cls.model_fields[name] for cls in table.__mro__ if issubclass(cls, BaseModel) and name in cls.model_fields)
    return " ".join(next((field.description for field in declared if field.description), "").split())


def _table(annotation: Any) -> type[BaseModel] | None:
    """The table that a field's type is, or is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for one in get_args(annotation) if (found := _table(one))), None)


def _said(table: type[BaseModel], at: str) -> tuple[str, str, tuple[str, ...]]:
    """Title, meaning and notes from a docstring that begins with ``[title]``: and a colon."""
    first, *notes = paragraphs(table)
    title, colon, meaning = first.partition("`: ")
    return (title.replace("`", ""), sentence(meaning), tuple(notes)) if colon else (at, first, tuple(notes))


def _radio_fields() -> Iterator[Topic]:
    from ..contact.presets import PRESETS
    from ..contact.radio import BOUNDS, Radio

    told = attributes(Radio)
    for field in fields(Radio):
        given: dict[str, list[str]] = {}
        for preset, radio in PRESETS.items():
            value = getattr(radio, field.name)
            given.setdefault(LEFT_OUT if value is None else number(value), []).append(preset)
        shown = "; ".join(f"{value} ({', '.join(presets)})" for value, presets in given.items())
        only = next(iter(given)) if len(given) == 1 else shown
        yield Topic(f"radio.{field.name}", told[field.name], "", f"number, {BOUNDS[field.name]}", only)


def _presets() -> tuple[Topic, ...]:
    from ..contact import presets

    sources = bullets(presets.__doc__)
    return tuple(Topic(f"radio.preset.{name}", sources[name]) for name in presets.PRESETS)


def _classes(keys: Sequence[Topic]) -> tuple[Topic, ...]:
    """Each with its numbers and their sources; what the sources of several classes rest on stands with all of them."""
    from ..drive import classes

    named = bullets(classes.__doc__)
    sources = {name.lower().replace(" ", "-"): text for name, text in named.items()}
    common = [f"{name}: {text}" for name, text in named.items() if name.lower().replace(" ", "-") not in classes.CLASSES]
    _, first, *_, last = paragraphs(classes)
    found = []
    for name, made in classes.CLASSES.items():
        numbers = {key: number(value) for key, value in vars(made).items() if key != "name" and value is not None}
        parts = [replace(key, key=f"device.{name}.{key.name}", default=numbers.get(key.name, key.default)) for key in keys]
        found.append(Topic(f"device.{name}", sources[name], notes=(first, *common, last), parts=tuple(parts)))
    return tuple(found)
