"""What stops a command with a message: wrong input, a machine that refuses, numbers not finite; and a warning of input.

Messages quote what a user, a file or another program gave. As texts they are short, and hold nothing that a terminal obeys.
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

MOST_MESSAGE, LONG_VALUE, MOST_VALUE = 2000, 300, 240
"""Characters of a message; a value above ``LONG_VALUE`` is cut to ``MOST_VALUE``."""
_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_WORD = re.compile(rf"\S{{{LONG_VALUE + 1},}}")
_QUOTED = re.compile(r"""(?<!\w)(?:'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+")(?!\w)""", re.DOTALL)


def visible(text: str) -> str:
    """A text in which control characters, half characters and reversals of writing are shown as escapes; lines stay lines."""
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def legible(message: str) -> str:
    """A message for people: `visible`, long values cut in the middle, at most some `MOST_MESSAGE` characters."""
    text = _WORD.sub(_cut_value, visible(message))
    text = _cut(text, 4 * MOST_MESSAGE)  # what comes now takes the square of the length at worst
    return _cut(_QUOTED.sub(_cut_value, text), MOST_MESSAGE)


def _cut_value(found: re.Match[str]) -> str:
    return found[0] if len(found[0]) <= LONG_VALUE else _cut(found[0], MOST_VALUE)


def _cut(text: str, most: int) -> str:
    """The beginning and the end of a text."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]}…({len(text) - most // 2 * 2:,} more characters)…{text[-(most // 2) :]}"


def unknown_key(where: str, key: str, known: Sequence[str]) -> str:
    """What to say of a key that is none of those known: the nearest of them, or those that have it as a word, and all."""
    near = difflib.get_close_matches(key, known, 1, 0.6) or [name for name in known if key in name.split("_")]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"{where}: unknown key; {hint}{'known are ' + ', '.join(known) if known else 'remove it or correct its spelling'}"


class _Legible(Exception):  # noqa: N818  # what those below share
    def __str__(self) -> str:
        return legible(super().__str__())


class InputError(_Legible, ValueError):
    """What the user gave cannot work; the message names the field, the value, the bound and the remedy."""


class InputWarning(_Legible, UserWarning):
    """What the user gave works, and may not be what was meant; the message names the place and the remedy."""


class Diverged(_Legible, ArithmeticError):  # noqa: N818  # it is what became of a run
    """Nothing finite is left of a part, or an evaluation is not finite; the run stops, and its last checkpoint stays."""


class RunError(_Legible, RuntimeError):
    """The machine refuses, as a full disk does; the message names the file and the cause.

    What a run had written before stays valid: with ``resume`` it goes on from its last checkpoint.
    """


_overhearing: list[list[str]] = []


def warn_input(message: str) -> None:
    """Warn of input (`InputWarning`), and tell whoever is within `overheard`."""
    for heard in _overhearing:
        heard.append(message)
    warnings.warn(message, InputWarning, stacklevel=3)


@contextmanager
def overheard() -> Iterator[list[str]]:
    """What is warned of within the block, each time that it is: Python itself shows the same warning once."""
    heard: list[str] = []
    _overhearing.append(heard)
    try:
        yield heard
    finally:
        _overhearing[:] = [one for one in _overhearing if one is not heard]


def hear_warnings(hear: Callable[[str], object]) -> None:
    """From now on `InputWarning` goes to ``hear``, as text; other warnings are shown as before."""
    before = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, InputWarning):
            hear(str(message))
        else:
            before(message, category, filename, lineno, file, line)

    warnings.showwarning = show
