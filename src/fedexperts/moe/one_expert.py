"""A Networked MoE with one expert of its own: extractor, gate and that expert are read, the others neither read nor held."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import InputError
from .checkpoint import Checkpoint
from .parts import sha256
from .resnet import NetworkedMoEConfig, NetworkedMoEForImageClassification

SHARED_HEX = 32
"""Digits of `shared_digest`: 128 bits, and short enough for a name in DNS."""
_EXPERTS, _ONLY_IN_TRAINING = "moe.experts.", "projection."


class Elsewhere(nn.Module):
    """In the place of an expert that another client has."""

    def forward(self, latents_TD: Tensor) -> Tensor:
        """Nobody can ask it here.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("this expert is held by another client; ask it over the network")


def load_one_expert(source: Path | Checkpoint, own: int | None) -> NetworkedMoEForImageClassification:
    """The model of a checkpoint folder with expert ``own`` alone, or with none; in evaluation mode, in float32.

    FedSC's projection, which only training needs, is left out as well.

    Raises:
        InputError: it is no Networked MoE, has no such expert, or is broken or incomplete.
    """
    checkpoint = source if isinstance(source, Checkpoint) else Checkpoint(source)
    config = checkpoint.config
    if not isinstance(config, NetworkedMoEConfig):
        raise InputError(
            f"{checkpoint.path}: holds a model of model_type {config.model_type!r}; clients answer each other with the experts "
            'of a "networked_moe": give a run of protocol = "networked"'
        )
    if own is not None and not 0 <= own < config.num_experts:
        raise InputError(
            f"client {own}: the model has experts 0…{config.num_experts - 1}, one for each client; name one of them"
        )
    with torch.device("meta"):
        model = NetworkedMoEForImageClassification(config)
        for m in range(config.num_experts):
            if m != own:
                model.moe.experts[m] = Elsewhere()
        if config.projection_size:
            del model.projection
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    state = {name: checkpoint.read(name, dtype=torch.float32, shape=shape) for name, shape in wanted.items()}
    model.load_state_dict(state, assign=True)
    model.requires_grad_(False)
    model.eval()
    return model


def shared_digest(model: NetworkedMoEForImageClassification) -> str:
    """Of all that the clients share, extractor, gate and what the config says of the experts: who differs in it is another's.

    The first `SHARED_HEX` hex digits of SHA-256 over names, types, shapes and bytes.
    """
    config = model.config
    beside = f"{config.num_experts} {config.expert_hidden} {config.num_labels}\n"
    shared = {name: t for name, t in model.state_dict().items() if not name.startswith((_EXPERTS, _ONLY_IN_TRAINING))}
    return sha256(shared, beside)[:SHARED_HEX]
