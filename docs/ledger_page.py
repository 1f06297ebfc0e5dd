"""Makes docs/ledger.md from the table of events: python docs/ledger_page.py"""

import ast
import inspect
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from fedexperts import events  # noqa: E402  # of this checkout

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
APART = {events.Values: "", events.Line: "", events.OfCluster: "`cluster`", events.Metrics: "all of [Metrics](#metrics)"}
"""Classes whose fields are told in one place, and how a line is said to have them."""
WORDS = {"str": "string", "int": "whole number", "float": "number", "bool": "true or false"}


def page() -> str:
    """The page as it must be."""
    said = {name: told(form)[0][1].rstrip(".") for name, form in (("t_s", events.Line), ("cluster", events.OfCluster))}
    said = {name: text[0].lower() + text[1:] for name, text in said.items()}
    parts = [HEAD.format(form=events.FORMAT, **said)]
    for event, forms in events.EVENTS.items():
        parts.append(f"## {event}\n")
        parts += [section(form) for form in forms]
    inner = [form for form in vars(events).values() if isinstance(form, type) and issubclass(form, events.Values)]
    for form in inner:
        if not issubclass(form, events.Line) and form is not events.Values:
            parts.append(f"## {form.__name__}\n\n{section(form)}")
    return "\n".join(parts)


def section(form: type[events.Values]) -> str:
    """What a form is, and a row for each field, in the order of its classes."""
    own = [part for part in reversed(form.__mro__) if issubclass(part, events.Values) and (part is form or part not in APART)]
    rows = [row for part in own for row in told(part)]
    others = [text for part, text in APART.items() if text and issubclass(form, part) and part is not form]
    beside = f" Has {' and '.join(others)}{', and:' if rows else '.'}" if others else ""
    table = "".join(f"| {name} | {kind} | {meaning} |\n" for name, meaning, kind in rows)
    return f"{inspect.getdoc(form)}{beside}\n\n| field | type | meaning |\n|---|---|---|\n{table}".replace("``", "`")


def told(part: type[events.Values]) -> list[tuple[str, str, str]]:
    """Name, meaning and type of each field that a class adds, as they stand in the source.

    Raises:
        ValueError: a field has no meaning.
    """
    found = []
    for name, note in inspect.get_annotations(part).items():
        if (field := part.model_fields.get(name)) is None:
            continue
        match ast.parse(note, mode="eval").body:
            case ast.Subscript(slice=ast.Tuple(elts=[of, *_, ast.Constant(value=str() as meaning)])):
                shown = f"`{field.alias or name}`"
                found.append((shown if field.is_required() else f"*{shown}*", meaning, kind(of)))
            case _:
                raise ValueError(f"{part.__name__}.{name}: {note}: must be Annotated[type, …, meaning]")
    return found


def kind(node: ast.expr) -> str:
    """A type in words."""
    match node:
        case ast.Name(id=name):
            linked = isinstance(getattr(events, name, None), type)
            return f"[{name}](#{name.lower()})" if linked else WORDS.get(name, name)
        case ast.Constant(value=value):
            return "null" if value is None else f"`{value}`"
        case ast.BinOp(left=left, right=right):
            return f"{kind(left)} or {kind(right)}"
        case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[of, *_])):
            return kind(of)
        case ast.Subscript(value=ast.Name(id="list"), slice=of):
            return f"list of {kind(of)}"
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[_, of])):
            return f"object of {kind(of)}"
        case ast.Subscript(value=ast.Name(id="Literal"), slice=ast.Tuple(elts=values)):
            return " or ".join(map(kind, values))
    raise ValueError(f"{ast.unparse(node)}: say how docs/ledger_page.py is to show it")


if __name__ == "__main__":
    PAGE.write_text(page())
