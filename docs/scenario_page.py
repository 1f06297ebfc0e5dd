"""Makes docs/scenario.md from the tables: python docs/scenario_page.py"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from fedexperts.reference import keys  # noqa: E402  # of this checkout
from fedexperts.reference.topic import Topic  # noqa: E402
from fedexperts.reference.types import LEFT_OUT, NEEDED  # noqa: E402

PAGE = ROOT / "docs" / "scenario.md"
HEAD = """# The scenario

Made from `src/fedexperts/tables/` by `docs/scenario_page.py`; do not change it by hand. The same in a terminal:
`fedexperts explain train.lr_expert`.

A scenario is a TOML file with everything that a run depends on. Keys that are not here are errors; paths are relative to the
file. What is not *needed* may be left out. Units stand in names: `_s` seconds, `_B` bytes, `_Hz` hertz, `_W` watts.
Numbers in brackets such as (31) are equations of the EMS-FL paper ([where they live](paper-map.md)); where papers are silent,
[decisions.md](decisions.md) says what is done. Examples: [examples/](../examples).
"""


def page() -> str:
    """The page as it must be."""
    topics = [keys.full(name) for name in keys.names()]
    alone = [topic for topic in topics if not topic.parts]
    parts = [HEAD, "## At the top\n", rows(alone)]
    for topic in topics:
        if topic.parts:
            parts += section(topic, f"## {text(topic.title)}")
    return "\n".join(parts)


def section(topic: Topic, head: str) -> list[str]:
    """A table's keys, and what is named within it."""
    asked = " Needed." if topic.default == NEEDED else ""
    found = [f"{head}\n", f"{text(topic.meaning)}{asked}\n", *(f"{text(note)}\n" for note in topic.notes), rows(topic.parts)]
    for part in topic.parts:
        if part.parts:
            found += section(part, f"### {part.key}")
        if part.choices:
            found += [*(f"- `{choice.name}`: {text(choice.meaning)}" for choice in part.choices), ""]
    return found + (classes(topic.choices) if topic.choices else [])


def classes(choices: Sequence[Topic]) -> list[str]:
    """Built-in classes of devices: a column each, and where their numbers come from."""
    lines = [f"| | {' | '.join(f'`{choice.name}`' for choice in choices)} |", "|---" * (len(choices) + 1) + "|"]
    for numbers in zip(*(choice.parts for choice in choices), strict=True):
        if any(number.default != LEFT_OUT for number in numbers):
            lines.append(f"| `{numbers[0].name}` | {' | '.join(number.default for number in numbers)} |")
    first, *others = (text(note) for note in choices[0].notes)
    sources = [*(f"- `{choice.name}`: {text(choice.meaning)}" for choice in choices), *(f"- {note}" for note in others)]
    return ["### Built-in classes\n", *lines, "", f"{first}\n", *sources, ""]


def rows(topics: Sequence[Topic]) -> str:
    """A row for each key."""
    lines = ["| key | type and bounds | default | meaning |", "|---|---|---|---|"]
    for topic in topics:
        default = f"*{topic.default}*" if topic.default in (NEEDED, LEFT_OUT) else text(topic.default)
        lines.append(f"| `{topic.name}` | {text(topic.type)} | {default} | {text(topic.meaning)} |")
    return "\n".join(lines) + "\n"


def text(plain: str) -> str:
    """A text in a cell or paragraph, its marks of Markdown taken for what they are."""
    parts = re.split("(`[^`]*`)", plain.replace("|", r"\|"))
    return "".join(part if part[:1] == "`" else re.sub("([<*])", r"\\\1", part) for part in parts)


if __name__ == "__main__":
    PAGE.write_text(page())
