"""What a network of experts says of some images, and of itself: who took part, and who was away.

Shapes: T images, K picks, L labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..moe.resnet import log_mixture

FACTS = frozenset({"own", "took_part", "absent", "fallbacks", "local_ratio", "seconds", "sent_B", "received_B", "better"})
"""What `Answer.facts` has."""


@dataclass(frozen=True)
class Better:
    """What waiting would bring: so many experts more could be asked then.

    Attributes:
        in_s: seconds from now.
        clients: whose experts could be asked then, of those that were away.
        of: those that were away.
    """

    in_s: float
    clients: tuple[int, ...]
    of: tuple[int, ...]

    def __str__(self) -> str:
        several = "experts" if len(self.clients) > 1 else "expert"
        who = "all experts" if self.clients == self.of else f"{several} {', '.join(map(str, self.clients))}"
        return f"{who} at +{duration(self.in_s)}"


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    return f"{seconds:.1f} s" if seconds < 90 else f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@dataclass(frozen=True, eq=False)
class Answer:
    """An answer to T images.

    Attributes:
        log_p_TL: log-probabilities.
        indices_TK: the experts that were picked.
        weights_TK: what each of them weighed; 0: it was away.
        took_part: expert → images that it answered.
        absent: expert that was picked and did not answer → why.
        own: the expert of the client that was asked.
        fallbacks: images of which no pick answered, and which the client's own expert has answered alone.
        chosen_s: until its experts were chosen, which is what this machine computes.
        seconds: from the question to the answer.
        sent_B, received_B: of messages between peers; what was sent counts at each attempt, also if nobody was reached.
        better: what waiting would bring, where a contact plan tells.
    """

    log_p_TL: Tensor
    indices_TK: Tensor
    weights_TK: Tensor
    took_part: dict[int, int]
    absent: dict[int, str]
    own: int
    fallbacks: int
    chosen_s: float
    seconds: float
    sent_B: int = 0
    received_B: int = 0
    better: Better | None = None

    @property
    def labels(self) -> list[int]:
        """The likeliest class of each image."""
        found: list[int] = self.log_p_TL.argmax(dim=1).tolist()
        return found

    @property
    def local_ratio(self) -> float:
        """The share of picks that stayed at home."""
        return float((self.indices_TK == self.own).float().mean()) if self.indices_TK.numel() else 1.0

    def facts(self) -> dict[str, Any]:
        """All but the tensors, as plain values."""
        better = self.better
        return {
            "own": self.own,
            "took_part": {str(m): n for m, n in sorted(self.took_part.items())},
            "absent": {str(m): why for m, why in sorted(self.absent.items())},
            "fallbacks": self.fallbacks,
            "local_ratio": round(self.local_ratio, 6),
            "seconds": round(self.seconds, 6),
            "sent_B": self.sent_B,
            "received_B": self.received_B,
            "better": None
            if better is None
            else {"in_s": round(better.in_s, 3), "clients": list(better.clients), "of": list(better.of), "text": str(better)},
        }


def combined(
    answers: Mapping[int, tuple[Tensor, Tensor]], indices_TK: Tensor, weights_TK: Tensor, labels: int
) -> tuple[Tensor, Tensor]:
    """Log-probabilities_TL of the picks that answered, (1), and what each weighed.

    Weights are renormalised over those that answered, image by image. Where all did, this is `log_mixture` to the bit, and the
    one expert's own answer at K = 1. Images without any answer get weights of 0 and minus infinity.

    Args:
        answers: expert → which images it was asked of, ascending, and log q of each.
        indices_TK: picks.
        weights_TK: of the picks; each image's sum to one.
        labels: L.
    """
    picked_TKL = torch.full((*indices_TK.shape, labels), float("-inf"))
    there_TK = torch.zeros(indices_TK.shape, dtype=torch.bool)
    for m, (rows_P, log_q_PL) in answers.items():
        at_TK = torch.zeros_like(there_TK)
        at_TK[rows_P] = indices_TK[rows_P] == m
        picked_TKL[at_TK] = log_q_PL
        there_TK |= at_TK
    if indices_TK.shape[1] == 1:
        return picked_TKL[:, 0], there_TK.to(weights_TK.dtype)
    whole_T, some_T = there_TK.all(dim=1), there_TK.any(dim=1)
    left_TK = torch.where(there_TK, weights_TK, 0.0)
    left_TK = left_TK / left_TK.sum(dim=1, keepdim=True).clamp_min(torch.finfo(left_TK.dtype).tiny)
    left_TK = torch.where(whole_T[:, None], weights_TK, left_TK)
    log_p_TL = torch.full((len(indices_TK), labels), float("-inf"))
    log_p_TL[some_T] = log_mixture(picked_TKL[some_T], left_TK[some_T])
    return log_p_TL, left_TK
