"""What a server needs of a way to a node."""

from __future__ import annotations

from typing import Protocol


class Way(Protocol):
    """How calls reach a node.

    Attributes:
        quiet_s: after how long without a call a node may take a contact for lost.
    """

    quiet_s: float

    def begin(self, start_s: float, end_s: float) -> None:
        """A contact begins by the plan, and ends at ``end_s``."""

    def ask(self, message: bytes) -> bytes | None:
        """Carry a call while there is contact; the reply, or None if none has come."""

    def end(self) -> None:
        """The contact is over."""
