"""Checks of the docs that need no run: links lead somewhere, docs/tree.md names every module, pages follow the code."""

import re
import sys
from pathlib import Path

import api_page
import ledger_page
import scenario_page

ROOT = Path(__file__).resolve().parent.parent


def broken_links() -> list[str]:
    """Relative links in Markdown files that lead nowhere."""
    faults = []
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                faults.append(f"{page.relative_to(ROOT)}: {target} does not exist")
    return faults


def tree_faults() -> list[str]:
    """Modules that the tree leaves out, and those in it that are not there."""
    listed, folder = [], ""
    for line in (ROOT / "docs" / "tree.md").read_text().split("src/fedexperts/\n")[1].split("\nexamples/")[0].splitlines():
        name = line.split()[0]
        if len(line) - len(line.lstrip()) == 2:
            folder = name if name.endswith("/") else ""
        if not name.endswith("/"):
            listed.append(folder + name)
    package = ROOT / "src" / "fedexperts"
    there = {path.relative_to(package).as_posix() for path in package.rglob("*.*")}
    modules = {path for path in there if path.endswith(".py") and not path.endswith("__init__.py")}
    return [
        *(f"docs/tree.md: the tree does not name {path}" for path in sorted(modules - set(listed))),
        *(f"docs/tree.md: the tree names {path}, which does not exist" for path in sorted(set(listed) - there)),
        *(f"docs/tree.md: the tree names {path} twice" for path in sorted({p for p in listed if listed.count(p) > 1})),
    ]


def paper_map_faults() -> list[str]:
    """Functions and tests named in the paper map that do not exist."""
    text = (ROOT / "docs" / "paper-map.md").read_text()
    faults = []
    for path, name in re.findall(r"`((?:src|tests)/[\w/]+\.py)::(\w+)`", text):
        file = ROOT / path
        if not file.exists() or not re.search(
            rf"^\s*(?:async )?(?:def|class) {name}\b|^{name}\b", file.read_text(), re.MULTILINE
        ):
            faults.append(f"docs/paper-map.md: {path}::{name} does not exist")
    return faults


def made_faults() -> list[str]:
    """Pages that are made from the code, and are not what it says."""
    stale = [
        page
        for page in (api_page, ledger_page, scenario_page)
        if not page.PAGE.exists() or page.PAGE.read_text() != page.page()
    ]
    names = [page.__name__ for page in stale]
    return [f"docs/{name.removesuffix('_page')}.md: is not what the code says; run python docs/{name}.py" for name in names]


if __name__ == "__main__":
    found = broken_links() + tree_faults() + paper_map_faults() + made_faults()
    print("\n".join(found) or "docs: links, tree, paper map and the pages of API, ledger and scenario agree with the code")
    sys.exit(bool(found))
