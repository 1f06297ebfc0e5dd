"""A process that another one has started."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def follow_parent() -> None:
    """In a worker: Ctrl-C is the parent's business, and a worker does not outlive a parent that was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None  # a worker has one

    def follow() -> None:
        parent.join()
        os._exit(1)  # or it would go on writing where a resumed run writes

    threading.Thread(target=follow, daemon=True).start()
