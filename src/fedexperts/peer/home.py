"""What a client computes itself: the latents of its images, the gate's choice, and its own expert's answers.

Shapes: T images, C channels, S side in pixels, D numbers of a latent, E experts, K picks, L labels.
"""

from __future__ import annotations

import copy
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..moe.one_expert import load_one_expert, shared_digest
from ..moe.resnet import all_latents
from ..runs.ended import is_run, model_folder, scenario_of
from ..scenario import Scenario
from ..train.gating import random_picks

MOST_IMAGES = 1024
"""Of one request."""


class Home:
    """Extractor, gate and one expert of a run, and nothing of the others.

    Args:
        run: a run directory that has ended, of ``protocol = "networked"``, or its model's folder.
        own: the client; None has no expert, and only tells what the run is.

    Raises:
        InputError: it is another kind of run or model, has no such client, or is damaged.
    """

    def __init__(self, run: str | Path, own: int | None):
        if not is_run(Path(run)) and not Path(run, "config.json").is_file():
            raise InputError(
                f"{run}: is no run directory, nor a model's folder; give the --out of a fedexperts run that has ended"
            )
        folder = model_folder(str(run))
        self._gate = _gate_of(Path(run)) if is_run(Path(run)) else None
        self.own = own
        self.model: Any = load_one_expert(folder, own)
        self.run = shared_digest(self.model)
        config = self.model.config
        self.experts, self.labels, self.latent_size = int(config.num_experts), int(config.num_labels), int(config.latent_size)
        self.k = min(int(config.num_experts_per_tok), self.most_k)
        self.shape_CSS = (int(config.in_channels), int(config.image_size), int(config.image_size))
        numbers = 0 if own is None else sum(p.numel() for p in self.model.moe.experts[own].parameters())
        self.expert_flops = 2 * numbers  # of one image
        self._drawn = 0  # requests whose experts a random gate has drawn

    @property
    def draws(self) -> bool:
        """Whether experts are drawn at random, whatever the images."""
        return self._gate is not None

    @property
    def most_k(self) -> int:
        """Experts that can be asked of an image."""
        prior = None if self._gate is None else self._gate[1]
        return self.experts if prior is None else sum(weight > 0 for weight in prior)

    def images(self, batch: Any) -> Tensor:
        """A batch as pixel_values_TCSS in uint8; grey images may leave out their channel, and colour may come last.

        Raises:
            InputError: it is none.
        """
        try:
            pixels = torch.as_tensor(np.asarray(batch) if not isinstance(batch, Tensor) else batch)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"images of type {type(batch).__name__}: cannot be used ({error}); give an array of uint8"
            ) from error
        if pixels.ndim == 3 and self.shape_CSS[0] == 1:
            pixels = pixels[:, None]
        if pixels.ndim == 4 and tuple(pixels.shape[1:]) != self.shape_CSS and pixels.shape[3] == self.shape_CSS[0]:
            pixels = pixels.permute(0, 3, 1, 2)
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or tuple(pixels.shape[1:]) != self.shape_CSS:
            shape = ", ".join(map(str, self.shape_CSS))
            raise InputError(f"images of {pixels.dtype} {list(pixels.shape)}: the model takes uint8 [images, {shape}]")
        if not 0 < len(pixels) <= MOST_IMAGES:
            raise InputError(f"{len(pixels)} images: a request has 1 to {MOST_IMAGES}; send them in several")
        return pixels.contiguous()

    @torch.no_grad()
    def look(self, pixels_TCSS: Tensor, k: int, discount_E: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Latents_TD, weights_TK and picked indices_TK of images.

        A discount is added to the gate's logits for the choice alone; weights are the gate's own.
        """
        latents_TD = all_latents(self.model, pixels_TCSS)
        if self._gate is not None:
            seed, prior = self._gate
            self._drawn += 1
            draw = zlib.crc32(f"{seed}/{self.own}/{self._drawn}".encode())
            return latents_TD, *random_picks(draw, len(latents_TD), self.experts, k, prior)
        logits_TE = self.model.moe.gate(latents_TD)
        router = copy.copy(self.model.moe.router)
        router.top_k = k
        if discount_E is None:
            weights_TK, indices_TK = router(logits_TE, False)
            return latents_TD, weights_TK, indices_TK
        _, indices_TK = router(logits_TE + discount_E, False)
        weights_TK = logits_TE.float().softmax(dim=-1).gather(-1, indices_TK)
        return latents_TD, weights_TK / weights_TK.sum(dim=-1, keepdim=True).clamp_min(1e-30), indices_TK

    @torch.inference_mode()
    def answer(self, latents_PD: Tensor) -> Tensor:
        """log q_PL of the own expert."""
        log_q_PL: Tensor = self.model.moe.experts[self.own](latents_PD)
        return log_q_PL

    def check_k(self, k: int, what: str) -> None:
        """Whether so many experts can be asked.

        Raises:
            InputError: there are not so many.
        """
        if not 1 <= k <= self.most_k:
            raise InputError(f"{what} = {k}: must lie in 1…{self.most_k}, the experts that can be asked")


def _gate_of(directory: Path) -> tuple[int, tuple[float, ...] | None] | None:
    """Seed and prior of a run's random gate; None where its gate was trained.

    Raises:
        InputError: it is a run without a network of experts.
    """
    scenario: Scenario = scenario_of(directory)
    if scenario.protocol != "networked" or scenario.networked.control is not None:
        what = scenario.protocol if scenario.protocol != "networked" else f"networked.control = {scenario.networked.control}"
        raise InputError(f'{directory}: is a run of {what}, which has no experts that ask each other; give one of "networked"')
    return (scenario.seed, scenario.networked.prior) if scenario.networked.gate == "random" else None
