"""Clocks that are wrong, of single processes: a module that Python loads as it starts, in place of a changed machine.

It shifts what Python says the time is, which is what Flower signs and stamps with, and what we look at; not what
OpenSSL asks the system for, when it looks at the dates of certificates.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

SITECUSTOMIZE = '''"""Shifts the clock of processes in whose command line a word stands, and of what they start."""
import datetime
import json
import os
import sys
import time

given = os.environ.get("CLOCKS_S")
if given and "CLOCK_S" not in os.environ:
    line = "\\0".join(sys.orig_argv)
    for word, shift_s in json.loads(given).items():
        if word in line:
            os.environ["CLOCK_S"] = str(shift_s)
if "CLOCK_S" in os.environ:
    shift_s = float(os.environ["CLOCK_S"])
    time_s, time_ns, right = time.time, time.time_ns, datetime.datetime

    class Kind(type):
        def __instancecheck__(cls, value):
            return isinstance(value, right)

        def __subclasscheck__(cls, kind):
            return issubclass(kind, right)

    class Wrong(right, metaclass=Kind):
        __slots__ = ()  # as large as the right one, whose size C code looks at

        @classmethod
        def now(cls, tz=None):
            return right.now(tz) + datetime.timedelta(seconds=shift_s)

        @classmethod
        def utcnow(cls):
            return right.utcnow() + datetime.timedelta(seconds=shift_s)

    time.time = lambda: time_s() + shift_s
    time.time_ns = lambda: time_ns() + int(shift_s * 1e9)
    if "fedexperts.deploy.worker" not in sys.orig_argv:  # whose C code takes no other class than the right one
        datetime.datetime = Wrong
'''


def wrong_clocks(folder: Path, shifts_s: dict[str, float]) -> dict[str, str]:
    """An environment in which processes are so much ahead that have a word in their command line."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "CLOCKS_S": json.dumps(shifts_s)}
