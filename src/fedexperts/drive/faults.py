"""Faults of the network, drawn from the scenario's seed: the same run meets the same faults."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from ..contact.plan import ContactPlan
from ..seeds import Stream, stream

MOST_SENDS = 50
"""So often a contact sends a piece; if that was in vain, the rest of the contact is lost."""
NEVER = 10**12
"""Sends of a piece that does not arrive in any plan."""


@dataclass(frozen=True)
class Faults:
    """Probabilities, each in [0, 1).

    Attributes:
        drop: a piece (one expert, one gate) does not arrive, and is sent again.
        corrupt: a piece arrives with a wrong checksum, and is sent again; on the link that costs the same as a drop.
        early_close: a contact's signal is lost at some instant before its planned end.
    """

    drop: float = 0.0
    corrupt: float = 0.0
    early_close: float = 0.0
    seed: int = 0

    def closes_s(self, plan: ContactPlan) -> dict[int, float]:
        """Contacts (by number) whose signal is lost early, and when."""
        if self.early_close == 0:
            return {}
        rng = stream(Stream.EARLY_CLOSE, self.seed)
        closes = {}
        for i, contact in enumerate(plan.contacts):
            happens, share = rng.random(2)
            if happens < self.early_close:
                closes[i] = contact.start_s + share * (contact.end_s - contact.start_s)
        return closes

    def sends(self, *key: object) -> int:
        """How often a piece has to be sent until it arrives whole, in one contact or in several; 1 without faults."""
        lost = 1 - (1 - self.drop) * (1 - self.corrupt)
        if lost == 0:
            return 1
        rng = stream(Stream.SENDS, self.seed, zlib.crc32(repr(key).encode()))
        return NEVER if lost == 1 else min(NEVER, int(rng.geometric(1 - lost)))


NO_FAULTS = Faults()
