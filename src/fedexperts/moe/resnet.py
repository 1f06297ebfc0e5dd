"""Networked MoE's model for small images: a ResNet-18 without a head, a linear gate on its latent, and experts that classify.

A checkpoint is a folder like any other: config.json of model_type ``networked_moe`` and safetensors with ``extractor.…`` and,
if there is one, ``projection.…`` (the part backbone), ``moe.gate.…`` and ``moe.experts.{m}.…``. Importing this module
tells transformers' auto classes.

Shapes: T images, C channels, S side in pixels, D numbers of a latent, E experts, K picks, L labels, H hidden.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutput

from ..errors import InputError
from .layer import MoELayer, outputs
from .own_types import EXPERT_LAYERS
from .routing import Top1

CHANNELS_PER_GROUP = 8
"""Of every GroupNorm: the narrowest model's first norms are then over all channels, and any width that is a multiple fits."""


class NetworkedMoEConfig(PreTrainedConfig):  # type: ignore[misc]  # transformers is untyped
    """Images of ``in_channels`` × ``image_size``²; ``width`` is ResNet-18's first number of channels, 64 in full.

    ``stem_stride`` = 2 halves the sides before the blocks, as ResNet-18 for large images does: a quarter of the FLOPs.
    ``projection_size`` is the size of FedSC's projection of a latent, which only stage 1 needs; 0: it contrasts latents.
    ``gate_bias``: latents are means of what a ReLU lets through, so none of them is centred, and a gate without a bias cannot
    make up for that. A checkpoint that does not name the field is from before there was one.
    """

    model_type = "networked_moe"

    image_size: int = 32
    in_channels: int = 3
    width: int = 64
    stem_stride: int = 1
    projection_size: int = 0
    expert_hidden: int = 256
    num_experts: int = 10
    num_experts_per_tok: int = 1
    gate_bias: bool = True

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """See `PreTrainedConfig`."""
        return super().from_dict({"gate_bias": False, **config_dict}, **kwargs)

    @property
    def latent_size(self) -> int:
        """D."""
        return 8 * self.width

    @property
    def representation_size(self) -> int:
        """Numbers of what FedSC contrasts."""
        return self.projection_size or self.latent_size


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // CHANNELS_PER_GROUP, channels)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut, which is a 1×1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1, self.norm1 = _conv(inputs, outputs, 3, stride), _norm(outputs)
        self.conv2, self.norm2 = _conv(outputs, outputs, 3), _norm(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Sequential() if same else nn.Sequential(_conv(inputs, outputs, 1, stride), _norm(outputs))

    def forward(self, x_TCSS: Tensor) -> Tensor:
        """The block."""
        y_TCSS = F.relu(self.norm1(self.conv1(x_TCSS)), inplace=True)
        return F.relu(self.norm2(self.conv2(y_TCSS)) + self.shortcut(x_TCSS), inplace=True)


class ResNet18(nn.Sequential):
    """ResNet-18 for small images: a 3×3 stem, no pooling before the blocks, GroupNorm; maps x_TCSS to latents_TD, D = 8·width.

    Clients average it, and batches of theirs are not alike: so no BatchNorm, whose statistics would be of one client.
    Source: Sec. III-A (feature extractor F) and IV-A.
    """

    def __init__(self, in_channels: int, width: int, stem_stride: int = 1):
        blocks: list[nn.Module] = []
        inputs = width
        for stage in range(4):
            for stride in (1 if stage == 0 else 2, 1):
                blocks.append(BasicBlock(inputs, width << stage, stride))
                inputs = width << stage
        super().__init__(_conv(in_channels, width, 3, stem_stride), _norm(width), nn.ReLU(inplace=True), *blocks)

    def forward(self, x_TCSS: Tensor) -> Tensor:
        """Latents after global average pooling."""
        y_TDSS: Tensor = super().forward(x_TCSS.contiguous(memory_format=torch.channels_last))  # type: ignore[no-untyped-call]
        return y_TDSS.mean(dim=(2, 3))


class Expert(nn.Sequential):
    """H_i: a four-layer perceptron from latents_TD to log-probabilities_TL."""

    def __init__(self, dim: int, hidden: int, labels: int):
        sizes = [dim, *[hidden] * (EXPERT_LAYERS - 1), labels]
        layers: list[nn.Module] = []
        for i in range(EXPERT_LAYERS):
            layers += [nn.Linear(sizes[i], sizes[i + 1]), nn.ReLU()]
        super().__init__(*layers[:-1], nn.LogSoftmax(dim=-1))


def projection(dim: int, size: int) -> nn.Sequential:
    """FedSC's head, which goes with the extractor and is not used after stage 1: D → 2D → ``size``, as its release has it."""
    return nn.Sequential(nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, size))


def log_mixture(log_q_TKL: Tensor, weights_TK: Tensor) -> Tensor:
    """(1) on probabilities: log Σ_k w_k q_k, from the experts' log q and weights that sum to one.

    Where a peer has not answered, the caller renormalises the weights of the others.
    """
    log_w_TK = weights_TK.clamp_min(torch.finfo(weights_TK.dtype).tiny).log()  # no log 0, whose gradient is not a number
    return torch.logsumexp(log_q_TKL + log_w_TK.unsqueeze(-1), dim=1)


def picked_alone(log_q_TL: Tensor, weights_T1: Tensor, p_T1: Tensor, top1: Top1) -> Tensor:
    """The one picked expert's log-probabilities, so that its gate learns.

    A weight that scales probabilities straight through, log (w·q) at w = 1, tells the gate nothing: cross-entropy takes the
    factor out again, and without it the gradient is the same for good experts and bad ones. What w leaves is therefore a guess
    over the labels: ``"switch"`` gives log (p·q + (1−p)/L), and ``"straight-through"`` gives log q to the bit with the gradient
    of that by p, which is bounded also where the expert is sure and wrong. ``p_T1`` is the pick's probability.
    """
    if top1 == "paper":
        return log_q_TL
    guess = 1 / log_q_TL.shape[-1]
    if top1 == "switch":
        w_T1 = weights_T1.clamp(torch.finfo(weights_T1.dtype).tiny, 1 - torch.finfo(weights_T1.dtype).eps)
        return torch.logaddexp(log_q_TL + w_T1.log(), (1 - w_T1).log() + math.log(guess))
    q_TL, p_T1 = log_q_TL.detach().exp(), p_T1.detach()
    left_T1 = (1 - p_T1).clamp_min(torch.finfo(p_T1.dtype).eps / 4)  # the most that it is where p rounds to 1
    mixed_TL = p_T1 * q_TL + left_T1 * guess
    return log_q_TL + (q_TL - guess) / mixed_TL * (weights_T1 - weights_T1.detach())


class NetworkedMoEForImageClassification(PreTrainedModel):  # type: ignore[misc]
    """F, G and all H_i in one model (1); ``logits`` of the output are log-probabilities, whose loss is −log p of the label.

    `picked_alone` has their gradient right, and not that of a log-softmax of them: cross-entropy, which takes one, would
    reward an expert for being unsure.

    Raises:
        InputError: a field of the config is out of bounds.
    """

    config_class = NetworkedMoEConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    log_probabilities = True

    def __init__(self, config: NetworkedMoEConfig):
        super().__init__(config)
        _check(config)
        self.extractor = ResNet18(config.in_channels, config.width, config.stem_stride)
        if config.projection_size:
            self.projection = projection(config.latent_size, config.projection_size)
        experts = [Expert(config.latent_size, config.expert_hidden, config.num_labels) for _ in range(config.num_experts)]
        self.moe = MoELayer(config.latent_size, experts, config.num_experts_per_tok, bias=config.gate_bias)
        self.post_init()
        for module in self.extractor.modules():
            if isinstance(module, nn.Conv2d):  # a fifth faster in training than weights laid out otherwise
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)

    def forward(self, pixel_values: Tensor | None = None, latents: Tensor | None = None) -> ImageClassifierOutput:
        """Log-probabilities_TL of images, or of latents_TD that were computed before.

        Args:
            pixel_values: x_TCSS, either uint8, which is scaled to −1…1, or floats, which are taken as they are.
            latents: what `latents` gave for the images, while the extractor has not changed.

        Raises:
            InputError: both or neither are given, or they do not have the config's shape.
        """
        if (pixel_values is None) == (latents is None):
            raise InputError("pixel_values and latents: give one of them, and not both")
        h_TD = self._checked(latents) if pixel_values is None else self.latents(pixel_values)
        seen_TD = h_TD if self.moe.router.gate_trained else h_TD.detach()  # else an extractor would learn through a frozen gate
        logits_TE = self.moe.gate(seen_TD)
        weights_TK, indices_TK = self.moe.router(logits_TE, self.training)
        log_q_TKL = outputs(h_TD, indices_TK, list(self.moe.experts))
        if indices_TK.shape[1] > 1:
            return ImageClassifierOutput(logits=log_mixture(log_q_TKL, weights_TK))
        p_T1 = logits_TE.float().softmax(dim=-1).gather(-1, indices_TK)
        return ImageClassifierOutput(logits=picked_alone(log_q_TKL[:, 0], weights_TK, p_T1, self.moe.router.top1))

    def latents(self, pixel_values: Tensor) -> Tensor:
        """h_F = F(x): latents_TD of images x_TCSS.

        Raises:
            InputError: the images do not have the config's shape.
        """
        shape = (self.config.in_channels, self.config.image_size, self.config.image_size)
        if tuple(pixel_values.shape[1:]) != shape:
            raise InputError(
                f"pixel_values of shape {tuple(pixel_values.shape)}: the model takes [images, {', '.join(map(str, shape))}]; "
                "correct in_channels and image_size of its config, or the images"
            )
        return self.extractor(scaled(pixel_values).to(self.dtype))  # type: ignore[no-any-return]  # modules return Any

    def representations(self, pixel_values: Tensor) -> Tensor:
        """What FedSC contrasts: the latents of images x_TCSS, or the projection of them; raises as `latents`."""
        latents_TD = self.latents(pixel_values)
        return self.projection(latents_TD) if self.config.projection_size else latents_TD

    def _checked(self, latents_TD: Tensor | None) -> Tensor:
        assert latents_TD is not None
        if latents_TD.ndim != 2 or latents_TD.shape[1] != self.config.latent_size:
            raise InputError(
                f"latents of shape {tuple(latents_TD.shape)}: must be [images, {self.config.latent_size}], 8 · width; "
                "compute them with this model's `latents`"
            )
        return latents_TD

    def _init_weights(self, module: nn.Module) -> None:
        """He's initialisation for what a ReLU follows; norms at one; a small gate, so that no expert is preferred at first."""
        if module is self.moe.gate:
            init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            init.kaiming_normal_(module.weight, nonlinearity="relu")
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)


def scaled(pixel_values: Tensor) -> Tensor:
    """Bytes as floats in −1…1, (x/255 − 0.5)/0.5; floats as they are."""
    return pixel_values if pixel_values.is_floating_point() else pixel_values.float() / 127.5 - 1.0


@torch.no_grad()
def all_latents(model: NetworkedMoEForImageClassification, pixel_values: Tensor, at_once: int = 500) -> Tensor:
    """Latents_TD of many images, without gradients, on the CPU: what stages 2 and 3 are trained on, F being frozen.

    Raises:
        InputError: the images do not have the config's shape.
    """
    chunks = (model.latents(chunk.to(model.device)).cpu() for chunk in torch.split(pixel_values, at_once))
    return torch.cat(list(chunks))


@torch.no_grad()
def opinions(model: NetworkedMoEForImageClassification, latents_TD: Tensor) -> Tensor:
    """log q_TEL, what every expert makes of every latent, on the CPU."""
    latents_TD = latents_TD.to(model.device)
    return torch.stack([body(latents_TD) for body in model.moe.experts], dim=1).cpu()


def _check(config: NetworkedMoEConfig) -> None:
    least = {"image_size": 8, "in_channels": 1, "expert_hidden": 1, "num_experts": 1, "num_labels": 2, "projection_size": 0}
    for field, bound in least.items():
        if getattr(config, field) < bound:
            raise InputError(f"{field} = {getattr(config, field)}: must be at least {bound}; raise it")
    if config.width < CHANNELS_PER_GROUP or config.width % CHANNELS_PER_GROUP:
        raise InputError(
            f"width = {config.width}: must be a multiple of {CHANNELS_PER_GROUP}, the channels of a GroupNorm's group; "
            "take 64 for ResNet-18 in full, 8 for the narrow one"
        )
    if config.stem_stride not in (1, 2):
        raise InputError(f"stem_stride = {config.stem_stride}: must be 1, or 2 to halve the sides of images first")
    if not 1 <= config.num_experts_per_tok <= config.num_experts:
        raise InputError(
            f"num_experts_per_tok = {config.num_experts_per_tok}: must lie in 1…{config.num_experts}, num_experts; change one"
        )


AutoConfig.register(NetworkedMoEConfig.model_type, NetworkedMoEConfig)
AutoModelForImageClassification.register(NetworkedMoEConfig, NetworkedMoEForImageClassification)
