"""Makes docs/ledger.md from the table of events: python docs/ledger_page.py"""

import inspect
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from fedexperts import events, values  # noqa: E402  # of this checkout
from fedexperts.reference.ledger import WORDS, kind, objects_in_lines, told  # noqa: E402

PAGE = ROOT / "docs" / "ledger.md"
HEAD = """# The ledger

Made from `src/fedexperts/events.py` by `docs/ledger_page.py`; do not change it by hand.

`ledger.jsonl` has one JSON object a line, in simulated time, and is byte-identical for a scenario and a seed. This is format
{form}; the first line of format 1 does not name it, all else is alike, and what is newer than its reader is refused.

Every line has `t_s`, {t_s}, and `event`. Lines of a contact, or of what a cluster does between two, have `cluster`, {cluster}.

Units stand in names: `_s` seconds, `_B` bytes, `_J` joules; accuracies and shares are fractions. A *Number* is finite, a
*Count* a whole number from 0, *Names* are strings, a *Matrix* is a list of rows. Fields in *italics* stand in some lines only.
Where an event has several forms, a line has one of them.

A protocol of your own writes events of any other name with `link.log`; one that has a name from here must have its fields.
"""
APART = {values.Values: "", events.Line: "", events.OfCluster: "`cluster`", values.Metrics: "all of [Metrics](#metrics)"}
"""Classes whose fields are told in one place, and how a line is said to have them."""


def page() -> str:
    """The page as it must be."""
    said = {name: told(form)[0][1].rstrip(".") for name, form in (("t_s", events.Line), ("cluster", events.OfCluster))}
    said = {name: text[0].lower() + text[1:] for name, text in said.items()}
    parts = [HEAD.format(form=events.FORMAT, **said)]
    for event, forms in events.EVENTS.items():
        parts.append(f"## {event}\n")
        parts += [section(form) for form in forms]
    parts += [f"## {form.__name__}\n\n{section(form)}" for form in objects_in_lines()]
    return "\n".join(parts)


def section(form: type[values.Values]) -> str:
    """What a form is, and a row for each field, in the order of its classes."""
    own = [part for part in reversed(form.__mro__) if issubclass(part, values.Values) and (part is form or part not in APART)]
    rows = [
        (f"`{name}`" if always else f"*`{name}`*", kind(of, WORDS, lambda other: f"[{other}](#{other.lower()})", "`"), meaning)
        for part in own
        for name, meaning, of, always in told(part)
    ]
    others = [text for part, text in APART.items() if text and issubclass(form, part) and part is not form]
    beside = f" Has {' and '.join(others)}{', and:' if rows else '.'}" if others else ""
    table = "".join(f"| {name} | {type_} | {meaning} |\n" for name, type_, meaning in rows)
    return f"{inspect.getdoc(form)}{beside}\n\n| field | type | meaning |\n|---|---|---|\n{table}".replace("``", "`")


if __name__ == "__main__":
    PAGE.write_text(page())
