"""What a gate of a Networked MoE could give at best, and what needs no training of it: rungs to judge a run's own gate by.

All rungs stand on the run's own extractor and experts. ``central`` and ``probe`` see all clients' training data in one place,
which no client may: they are bounds, not methods.

Shapes: T images, D numbers of a latent, E experts, L labels.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from ..data.metrics import macro_f1
from ..data.source import Samples
from ..moe.resnet import all_latents, opinions
from ..moe.view import View
from ..setup.devices import dealt
from ..setup.prepare import Prepared
from ..train.gating import answers_loss, pooled, spread_of

STEPS, RATE = 400, 5e-3
"""Of Adam on the central gate, all data in each step, the rate falling by a cosine: the best of `benchmarks/gates.py`."""

Rung = dict[str, float]


@dataclass(frozen=True)
class Answers:
    """Images' latents, what every expert makes of them, and what is right."""

    latents_TD: Tensor
    log_q_TEL: Tensor
    labels_T: Tensor

    @property
    def of_the_label_TE(self) -> Tensor:
        """log q of the right label by every expert."""
        labels_T1L = self.labels_T[:, None, None].expand(-1, self.log_q_TEL.shape[1], 1)
        return self.log_q_TEL.gather(2, labels_T1L)[:, :, 0]

    @property
    def right_TE(self) -> Tensor:
        """Which expert has the right label first."""
        return self.log_q_TEL.argmax(dim=2) == self.labels_T[:, None]


def answers(view: View, samples: Samples) -> Answers:
    """By the model that is in the view."""
    model: Any = view.model
    model.eval()
    latents_TD = all_latents(model, samples["pixel_values"])
    return Answers(latents_TD.float(), opinions(model, latents_TD).float(), samples["labels"].cpu())


def central_gate(of: Answers) -> tuple[Tensor, Tensor]:
    """weight_ED and bias_E of a linear gate trained with FedGate's loss, all experts picked, on all data in one place."""
    mean_D, spread_D = pooled([1.0], *((one,) for one in spread_of(of.latents_TD)))
    x_TD, log_q_TE = (of.latents_TD - mean_D) / spread_D, of.of_the_label_TE
    experts, labels = of.log_q_TEL.shape[1:]
    x_TF = torch.cat([x_TD, torch.ones(len(x_TD), 1)], dim=1)
    gate_EF = torch.zeros(experts, x_TF.shape[1], requires_grad=True)
    first_EF, second_EF = torch.zeros_like(gate_EF), torch.zeros_like(gate_EF)
    for step in range(STEPS):  # Adam, by hand: an optimiser's steps are those of clients, which others count
        (slope_EF,) = torch.autograd.grad(answers_loss(x_TF @ gate_EF.T, log_q_TE, experts, labels), gate_EF)
        first_EF = 0.9 * first_EF + 0.1 * slope_EF
        second_EF = 0.999 * second_EF + 0.001 * slope_EF**2
        rate = RATE * (1 + math.cos(math.pi * step / STEPS)) / 2 / (1 - 0.9 ** (step + 1))
        with torch.no_grad():
            gate_EF -= rate * first_EF / ((second_EF / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
    raw_ED = gate_EF.detach()[:, :-1] / spread_D
    return raw_ED, gate_EF.detach()[:, -1] - raw_ED @ mean_D


def ladders(prepared: Prepared, *judged: Mapping[str, Samples]) -> list[dict[str, Rung]]:
    """Of each set of tests by client the rungs: accuracy over all clients' data, with macro F1, and the share at home.

    ``random``: any expert for any image. ``central``: `central_gate`. ``all``: all experts together, alike. ``oracle``: an
    expert that is right, if one is. ``probe``: a logistic regression on the latents, without any expert. ``majority``: each
    client's most frequent training label.
    """
    seed, splits = prepared.scenario.seed, prepared.data.splits
    shares = [share for cluster in prepared.scenario.cluster for share in dealt(cluster, splits[cluster.name].train, seed)]
    names = ("pixel_values", "labels")
    train = answers(prepared.view, {name: torch.cat([share[name] for share in shares]) for name in names})
    usual = [int(torch.bincount(share["labels"]).argmax()) for share in shares]
    gate, classifier = central_gate(train), probe(train)
    found = []
    for tests in judged:
        by_client = [answers(prepared.view, samples) for samples in tests.values()]
        found.append(_rungs(by_client, gate, classifier, usual))
    return found


def _rungs(by_client: Sequence[Answers], gate: tuple[Tensor, Tensor], classifier: Any, usual: Sequence[int]) -> dict[str, Rung]:
    weight_ED, bias_E = gate
    picks = [(of.latents_TD @ weight_ED.T + bias_E).argmax(dim=1) for of in by_client]
    central = [of.log_q_TEL[torch.arange(len(pick)), pick].argmax(dim=1) for of, pick in zip(by_client, picks, strict=True)]
    labels_T, right_TE = (torch.cat([getattr(of, name) for of in by_client]) for name in ("labels_T", "right_TE"))
    home = float(np.mean([float((pick == i).float().mean()) for i, pick in enumerate(picks)]))
    guess_T = torch.from_numpy(classifier.predict(torch.cat([of.latents_TD for of in by_client]).numpy()))
    return {
        "random": {"accuracy": _share(right_TE)},
        "central": _rung(torch.cat(central), labels_T) | {"local_ratio": round(home, 6)},
        "all": _rung(torch.cat([of.log_q_TEL.logsumexp(dim=1).argmax(dim=1) for of in by_client]), labels_T),
        "oracle": {"accuracy": _share(right_TE.any(dim=1))},
        "probe": _rung(guess_T, labels_T),
        "majority": _rung(
            torch.cat([torch.full_like(of.labels_T, label) for label, of in zip(usual, by_client, strict=True)]), labels_T
        ),
    }


def probe(train: Answers) -> Any:
    """A logistic regression on latents of the training data: what an extractor has learnt."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, tol=1e-3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it is a yardstick, stopped at the same length for all
        return model.fit(train.latents_TD.numpy(), train.labels_T.numpy())


def _rung(found_T: Tensor, labels_T: Tensor) -> Rung:
    return {
        "accuracy": _share(found_T == labels_T),
        "macro_f1": round(macro_f1(labels_T.numpy(), found_T.numpy()), 6),
    }


def _share(right: Tensor) -> float:
    return round(float(right.double().mean()), 6)
