"""Makes docs/api.md from signatures and docstrings: python docs/api_page.py"""

import inspect
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

import fedexperts  # noqa: E402  # of this checkout

PAGE = ROOT / "docs" / "api.md"
HEAD = """# The Python API

Made from docstrings by `docs/api_page.py`; do not change it by hand. What stands here stays as it is within a minor version;
other modules may change. Every command that does something has a call, `fedexperts run` is `fedexperts.run`. Scenarios are
files, or plain data for `Scenario.parse`; their keys are in [scenario.md](scenario.md).
"""
PARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "Commands as calls": {"fedexperts": tuple(name for name in fedexperts.__all__ if name != "__version__")},
    "Models": {"fedexperts.moe.build": ("merge", "upcycle", "Built")},
    "A protocol of one's own": {
        "fedexperts.protocol.link": ("Start", "Link", "ServerProtocol", "SignalLost"),
        "fedexperts.train.task": ("Task", "Update"),
        "fedexperts.moe.parts": ("Piece", "is_expert"),
        "fedexperts.protocol.aggregate": ("Averaging", "grouped", "changed", "picked"),
    },
    "Devices elsewhere": {"fedexperts.train.host": ("Host", "Trained", "Trial"), "fedexperts.method.elsewhere": ("host",)},
}


def page() -> str:
    """The page as it must be."""
    parts = [HEAD]
    for title, modules in PARTS.items():
        parts.append(f"## {title}\n")
        parts += [told(module, name) for module, names in modules.items() for name in names]
    return "\n".join(parts)


def told(module: str, name: str) -> str:
    """One class or function, with its public methods."""
    thing = getattr(import_module(module), name)
    kind = "exception" if isinstance(thing, type) and issubclass(thing, Exception) else ""
    lines = [f"### {module}.{name}\n", shown(kind, name, thing), prose(inspect.getdoc(thing) or "")]
    if isinstance(thing, type) and not kind:
        lines += [method(thing, key) for key in members(thing)]
    return "\n".join(lines) + "\n"


def shown(kind: str, name: str, thing: Any) -> str:
    """How it is called."""
    if kind:
        return ""
    if not (call := signature(thing)):
        return ""
    return f"```text\n{name}{call}\n```\n"


def signature(thing: Any) -> str:
    """Parameters and types; one a line where they are long."""
    if hasattr(thing, "model_fields"):  # a table of the scenario: docs/scenario.md
        return ""
    try:
        found = inspect.signature(thing)
    except ValueError:
        return ""
    if set(found.parameters) == {"args", "kwargs"}:
        return ""
    words = [word for word in map(parameter, found.parameters.values()) if word != "self"]
    gives = "" if isinstance(thing, type) or found.return_annotation is found.empty else f" -> {found.return_annotation}"
    line = f"({', '.join(words)}){gives}"
    return line if len(line) < 100 else "(\n" + "".join(f"    {word},\n" for word in words) + f"){gives}"


def parameter(one: inspect.Parameter) -> str:
    """With its type and default."""
    star = {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "")
    type_ = "" if one.annotation is one.empty else f": {one.annotation}"
    default = "" if one.default is one.empty else f" = {re.sub(r'<factory>|<class [^>]*>', '…', repr(one.default))}"
    return f"{star}{one.name}{type_}{default}"


def members(thing: type) -> list[str]:
    """Methods and properties of its own, those of pydantic and dataclasses apart."""
    own = [key for key, value in vars(thing).items() if not key.startswith("_")]
    called = [key for key in own if callable(getattr(thing, key)) or isinstance(vars(thing)[key], property)]
    inherited = ["load", "parse", "changed", "to_toml"] if thing.__name__ == "Scenario" else []
    return [key for key in [*inherited, *called] if inspect.getdoc(getattr(thing, key, None)) and not key.startswith("model_")]


def method(thing: type, key: str) -> str:
    """One method of a class, or property."""
    found = inspect.getattr_static(thing, key)
    inner = getattr(thing, key)
    call = "" if isinstance(found, property) else signature(inner)
    return (
        f"`{thing.__name__}.{key}{call}`".replace("\n    ", "").replace(",\n)", ")")
        + f"  \n{prose(inspect.getdoc(inner) or '')}"
    )


def prose(text: str) -> str:
    """A docstring as Markdown: sections become lists."""
    lines: list[str] = []
    section = False
    for line in text.replace("``", "`").splitlines():
        if re.fullmatch(r"(Args|Attributes|Raises|Returns):", line):
            lines.append(f"{line[:-1]}:\n")
            section = True
        elif section and (item := re.match(r"    (\w[\w, ]*): (.*)", line)):
            lines.append(f"- `{item[1]}`: {item[2]}")
        elif section and line.startswith("      "):
            lines.append(f"  {line.strip()}")
        else:
            section = section and (not line or line.startswith("    "))
            lines.append(line)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
