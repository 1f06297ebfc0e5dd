"""Parts that stay with their clients, and what others know of them: as a client told them when a contact of its ended last."""

from __future__ import annotations

from collections.abc import Mapping

from ..moe.parts import Piece, Tensors
from ..train.task import Experts


class Homes:
    """What is told at the end of a contact takes no simulated time, and nothing is told by one that is lost.

    Args:
        model: θ_0, which everybody has.
        experts: which link answers for which expert, where clients ask each other.

    Attributes:
        told: by link and part; the version says how often it was told.
    """

    def __init__(self, model: Mapping[str, Piece] | None = None, experts: dict[str, str] | None = None):
        self.model, self.experts = model or {}, experts or {}
        self.told: dict[str, dict[str, Piece]] = {}

    def tell(self, link: str, parts: Mapping[str, Tensors]) -> None:
        """A client's parts as they are now."""
        told = self.told.setdefault(link, {})
        for part, tensors in parts.items():
            before = told[part].version if part in told else 0
            told[part] = Piece(part, before + 1, tensors)

    def of(self, link: str, part: str) -> Piece:
        """A client's part as it told it last; before that, as everybody has it."""
        return self.told.get(link, {}).get(part, self.model[part])

    def others(self, link: str) -> Experts:
        """The experts of all other clients."""
        return {part: self.of(home, part) for part, home in self.experts.items() if home != link}
