"""When a peer that has failed is asked again: a circuit breaker, as a value over a clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Breaker:
    """A peer that failed is suspected: it is skipped for a while, twice as long each time, until a probe finds it well.

    A probe alone does not forget how often it failed, an answer does: who answers probes and no questions is soon skipped for
    long. What fails while it is suspected, as questions do that were on their way, counts once.
    """

    first_s: float = 1.0
    most_s: float = 60.0
    clock: Callable[[], float] = time.monotonic
    failures: int = field(default=0, init=False)
    reason: str = field(default="", init=False)
    until_s: float = field(default=0.0, init=False)
    suspected: bool = field(default=False, init=False)

    def failed(self, reason: str) -> bool:
        """It did not answer, or not well; whether that is news."""
        if self.suspected:
            return False
        self.suspected = True
        self._again(reason)
        return True

    def probed(self, fault: str | None) -> None:
        """A probe found it well, or the fault that it has."""
        if fault is None:
            self.suspected = False
        else:
            self._again(fault)

    def answered(self) -> None:
        """It answered a question well, and in time."""
        if not self.suspected:
            self.failures = 0

    @property
    def left_s(self) -> float:
        """Until it is probed."""
        return max(0.0, self.until_s - self.clock())

    def _again(self, reason: str) -> None:
        self.failures += 1
        self.reason = reason
        self.until_s = self.clock() + min(self.most_s, self.first_s * 2.0 ** min(self.failures - 1, 60))
