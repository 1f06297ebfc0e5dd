"""Things that are in the way of a file to be written."""

import os
from pathlib import Path

KINDS = ("file", "link", "dangling", "FIFO", "folder")


def put(kind: str, path: Path) -> Path:
    """One of `KINDS` at the path; returns a file beside it, which a link leads to and which must stay as it is."""
    target = path.parent / "target"
    target.write_text("mine")
    match kind:
        case "file":
            path.write_text("mine")
        case "link":
            path.symlink_to(target)
        case "dangling":
            path.symlink_to("nowhere")
        case "FIFO":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
            (path / "file").write_text("mine")
    return target
