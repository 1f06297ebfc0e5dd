"""A topic, and what docstrings say of one."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import InputError, unknown_key


@dataclass(frozen=True)
class Topic:
    """A key, a table of keys, or a value with a name.

    Attributes:
        key: in full, as ``train.lr_expert``.
        meaning: a line or a paragraph.
        title: how a table is written, as ``[train]``.
        type: with bounds, in words.
        default: as TOML has it, or in words.
        notes: more paragraphs.
        parts: the keys of a table, the fields of an event.
        choices: values that have names, as the presets of a radio.
    """

    key: str
    meaning: str
    title: str = ""
    type: str = ""
    default: str = ""
    notes: tuple[str, ...] = ()
    parts: tuple[Topic, ...] = ()
    choices: tuple[Topic, ...] = ()

    @property
    def name(self) -> str:
        """The last word of the key."""
        return self.key.rpartition(".")[2]

    def inner(self, words: Sequence[str]) -> Topic:
        """The topic at the end of a path within this one.

        Raises:
            InputError: with the nearest, there is none.
        """
        if not words:
            return self
        known = {topic.name: topic for topic in (*self.parts, *self.choices)}
        if not known:
            raise InputError(f"{self.key}.{words[0]}: is not listed; {self.key} is a {self.type}: {self.meaning}")
        if words[0] not in known:
            raise InputError(unknown_key(f"{self.key}.{words[0]}", words[0], list(known)))
        return known[words[0]].inner(words[1:])

    def plain(self) -> dict[str, Any]:
        """As an object for JSON, without what is empty and without marks of code."""
        found: dict[str, Any] = {name: unmarked(getattr(self, name)) for name in ("key", "title", "meaning", "type", "default")}
        found["notes"] = [unmarked(note) for note in self.notes]
        found |= {name: [topic.plain() for topic in getattr(self, name)] for name in ("parts", "choices")}
        return {name: value for name, value in found.items() if value}

    def short(self) -> Topic:
        """The same without what is in it."""
        return replace(self, notes=(), parts=(), choices=())


def unmarked(text: str) -> str:
    """A text without marks of code."""
    return text.replace("`", "")


def paragraphs(thing: Any) -> list[str]:
    """Of a docstring, each on one line, with marks of code as Markdown has them."""
    return [" ".join(part.split()).replace("``", "`") for part in (inspect.getdoc(thing) or "").split("\n\n")]


def attributes(cls: type) -> dict[str, str]:
    """What the section Attributes of a class's docstring says of each."""
    section = (inspect.getdoc(cls) or "").partition("\nAttributes:\n")[2].partition("\n\n")[0]
    found = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", section, re.MULTILINE)
    return {name: sentence(" ".join(text.split())).replace("``", "`") for name, text in found}


def bullets(doc: str | None) -> dict[str, str]:
    """Entries of the form ``- *name*: text`` in a module's docstring, by name."""
    found = re.findall(r"^- \*([^*]+)\*:? (.*(?:\n  .*)*)", doc or "", re.MULTILINE)
    return {name: sentence(" ".join(text.split())) for name, text in found}


def sentence(text: str) -> str:
    """A text that begins with a capital, unless with a symbol."""
    return text[:1].upper() + text[1:] if text[:1].isascii() else text
