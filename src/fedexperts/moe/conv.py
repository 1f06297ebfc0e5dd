"""A small convolutional MoE image classifier: a stem, one `MoELayer` with convolutional experts, a linear head.

A checkpoint is a folder like any other: config.json of model_type ``conv_moe`` and safetensors with ``stem.*``,
``moe.gate.weight``, ``moe.experts.{m}.*`` and ``head.*``. Once this module is imported, transformers' auto classes build and
load it too. An image is one token: it is routed as a whole.

Normalisation is by groups of channels and never over a batch, whose statistics would differ from device to device and carry
one device's data to another.

Shapes: N images (tokens), C channels of an image, H, W its height and width, S channels of the stem, U expert_channels,
D = S·(H/2)·(W/2) numbers of the stem, F expert_dim, G numbers that the gate sees.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from .layer import MoELayer
from .own_types import GATE_GRID

GROUPS = 4
"""Of the stem's channels, normalised together."""
LAYOUT = torch.channels_last
"""In memory: pooling is several times faster like this on a CPU."""


class ConvMoEConfig(PretrainedConfig):  # type: ignore[misc]  # transformers is untyped
    """Images of ``in_channels`` × ``image_size`` × ``image_size``, M (``num_experts``), K (``num_experts_per_tok``), widths."""

    model_type = "conv_moe"

    image_size: int = 32
    in_channels: int = 3
    channels: int = 16
    expert_channels: int = 32
    expert_dim: int = 64
    num_experts: int = 8
    num_experts_per_tok: int = 1


class ConvExpert(nn.Module):
    """conv–ReLU–pool–conv–ReLU–pool–linear on the stem's output of one image, flattened."""

    def __init__(self, config: ConvMoEConfig):
        super().__init__()
        self.shape = (config.channels, config.image_size // 2, config.image_size // 2)
        self.first = nn.Conv2d(config.channels, config.expert_channels, 3, padding=1)
        self.second = nn.Conv2d(config.expert_channels, config.expert_channels, 3, padding=1)
        self.output = nn.Linear(config.expert_channels * (config.image_size // 8) ** 2, config.expert_dim)

    def forward(self, x_ND: Tensor) -> Tensor:
        """y_NF."""
        x_NSHW = x_ND.view(-1, *self.shape).contiguous(memory_format=LAYOUT)
        h = F.relu(F.max_pool2d(self.first(x_NSHW), 2))  # pooled first: the same, cheaper
        h = F.relu(F.max_pool2d(self.second(h), 2))
        return self.output(h.flatten(1))  # type: ignore[no-any-return]  # torch's modules return Any


class ConvMoEForImageClassification(PreTrainedModel):  # type: ignore[misc]
    """The classifier.

    Raises:
        ValueError: images are smaller than the three poolings need, or channels cannot be normalised in groups.
    """

    config_class = ConvMoEConfig
    main_input_name = "pixel_values"

    def __init__(self, config: ConvMoEConfig):
        super().__init__(config)
        if config.image_size < 8:
            raise ValueError(f"image_size = {config.image_size}: must be at least 8, as images are halved three times")
        if config.channels % GROUPS:
            raise ValueError(f"channels = {config.channels}: must be a multiple of {GROUPS}, the groups that are normalised")
        self.stem = nn.Sequential(
            nn.Conv2d(config.in_channels, config.channels, 3, padding=1),
            nn.MaxPool2d(2),  # before the rest, which then costs a quarter
            nn.GroupNorm(GROUPS, config.channels),
        )
        experts = [ConvExpert(config) for _ in range(config.num_experts)]
        self.moe = MoELayer(config.channels * GATE_GRID**2, experts, config.num_experts_per_tok)
        self.head = nn.Linear(config.expert_dim, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """torch's own initialisation, which follows fan-in: a constant deviation would silence convolutions."""
        if isinstance(module, nn.Conv2d | nn.Linear | nn.GroupNorm):
            module.reset_parameters()

    def features(self, pixel_values: Tensor) -> Tensor:
        """The stem's output x_NSHW of images, see `normalised`."""
        x_NCHW = normalised(pixel_values).to(self.head.weight.dtype)
        return self.stem(x_NCHW.contiguous(memory_format=LAYOUT))  # type: ignore[no-any-return]

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **_: Any) -> ImageClassifierOutputWithNoAttention:
        """Logits of images, and with ``labels`` the mean cross-entropy."""
        x_NSHW = self.features(pixel_values)
        y_NF = self.moe(F.relu(x_NSHW).flatten(1), self._gate_input(x_NSHW))
        logits = self.head(F.relu(y_NF))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)

    def _gate_input(self, x_NSHW: Tensor) -> Tensor:
        """Means of the stem's output, x_NG: D weights an expert would make the gate as large as an expert.

        Taken before the ReLU, where they lie around zero: after it all images look alike to a new gate, which then sends
        most of them to one expert.
        """
        return F.adaptive_avg_pool2d(x_NSHW, GATE_GRID).flatten(1)


def normalised(pixel_values: Tensor) -> Tensor:
    """Pixels 0…255 (uint8) as numbers from −1 to 1; other types are taken to be that already.

    The constants are fixed, (x/255 − 0.5)/0.5: mean and deviation of the training data would have to leave the devices.
    """
    return pixel_values if pixel_values.is_floating_point() else pixel_values.to(torch.float32) / 127.5 - 1


AutoConfig.register(ConvMoEConfig.model_type, ConvMoEConfig)
AutoModelForImageClassification.register(ConvMoEConfig, ConvMoEForImageClassification)
