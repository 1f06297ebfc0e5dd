"""The events of a ledger, from the source of their tables, which names their types."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping

from .. import events, values
from .topic import Topic, paragraphs

WORDS = {"str": "string", "int": "whole number", "float": "number", "bool": "true or false"}
SPELT = WORDS | {"Number": "number", "Count": "whole number from 0", "Names": "list of strings", "Matrix": "list of rows"}


def ledger() -> Topic:
    """All events, and the objects in them."""
    objects = tuple(_form(f"ledger.{form.__name__}", form) for form in objects_in_lines())
    return Topic(
        "ledger",
        "What ledger.jsonl says, a JSON object a line: its events, and objects that stand in them.",
        title="ledger.jsonl",
        parts=tuple(_event(name, forms) for name, forms in events.EVENTS.items()),
        choices=objects,
    )


def objects_in_lines() -> list[type[values.Values]]:
    """Objects in lines, which are no lines."""
    found = [form for form in vars(values).values() if isinstance(form, type) and issubclass(form, values.Values)]
    return [form for form in found if form is not values.Values]


def _event(name: str, forms: tuple[type[events.Line], ...]) -> Topic:
    key = f"ledger.{name}"
    if len(forms) == 1:
        return _form(key, forms[0])
    shown = tuple(_form(f"{key}.{i}", form) for i, form in enumerate(forms, start=1))
    meaning = " ".join((f"One of {len(forms)} forms.", *(form.meaning for form in shown)))
    return Topic(key, meaning, title=name, choices=shown)


def _form(key: str, form: type[values.Values]) -> Topic:
    """With the fields of its classes first."""
    rows = [row for part in reversed(form.__mro__) if issubclass(part, values.Values) for row in told(part)]
    fields = (
        Topic(f"{key}.{name}", meaning, type=kind(node, SPELT) + ("" if always else ", in some lines only"))
        for name, meaning, node, always in rows
    )
    first, *notes = paragraphs(form)
    return Topic(key, first, notes=tuple(notes), parts=tuple(fields))


def told(part: type[values.Values]) -> list[tuple[str, str, ast.expr, bool]]:
    """Name, meaning and type of each field that a class adds, as they stand in the source, and whether it is in every line.

    Raises:
        ValueError: a field has no meaning.
    """
    found = []
    for name, note in inspect.get_annotations(part).items():
        if (field := part.model_fields.get(name)) is None:
            continue
        match ast.parse(note, mode="eval").body:
            case ast.Subscript(slice=ast.Tuple(elts=[of, *_, ast.Constant(value=str() as meaning)])):
                found.append((field.alias or name, meaning, of, field.is_required()))
            case _:
                raise ValueError(f"{part.__name__}.{name}: {note}: must be Annotated[type, …, meaning]")
    return found


def kind(node: ast.expr, words: Mapping[str, str], link: Callable[[str], str] = str, quote: str = '"') -> str:
    """A type in words; ``link`` writes the name of another object, ``quote`` stands around values.

    Raises:
        ValueError: a type without words.
    """

    def of(node: ast.expr) -> str:
        match node:
            case ast.Name(id=name):
                linked = isinstance(getattr(values, name, None), type)
                return link(name) if linked else words.get(name, name)
            case ast.Constant(value=value):
                return "null" if value is None else quote + str(value) + quote
            case ast.BinOp(left=left, right=right):
                return f"{of(left)} or {of(right)}"
            case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[inner, *_])):
                return of(inner)
            case ast.Subscript(value=ast.Name(id="list"), slice=inner):
                return f"list of {of(inner)}"
            case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[_, inner])):
                return f"object of {of(inner)}"
            case ast.Subscript(value=ast.Name(id="Literal"), slice=ast.Tuple(elts=some)):
                return " or ".join(map(of, some))
        raise ValueError(f"{ast.unparse(node)}: say in reference/ledger.py how it is to be shown")

    return of(node)
