"""Diffusion Policy (arXiv 2303.04137) at a size that trains on a CPU: LeRobot's U-Net and schedule, another eye.

Of a picture of 64x64 the ResNet-18 of LeRobot's policy leaves four cells and takes four fifths of the training time.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
from torch import Tensor, nn

from policies.diffusion_compact.configuration_diffusion_compact import DiffusionCompactConfig
from policies.observation_encoder import COMPACT_WIDTH, STRIDE, CompactBackbone


class CompactRgbEncoder(nn.Module):
    """What `DiffusionRgbEncoder` is: pictures (B, 3, H, W), normalised, -> features (B, D). H and W divide by 8.

    Every cell of 8 x 8 pixels has weights of its own, so that a feature can tell places apart.
    """

    def __init__(self, height: int, width: int, feature_dim: int) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.backbone = CompactBackbone()
        self.out = nn.Linear(COMPACT_WIDTH * (height // STRIDE) * (width // STRIDE), feature_dim)

    def forward(self, image: Tensor) -> Tensor:
        return F.silu(self.out(self.backbone(image).flatten(1)))


class DiffusionCompactPolicy(DiffusionPolicy):
    """LeRobot's diffusion policy; only what turns a picture into features is another network."""

    config_class = DiffusionCompactConfig
    name = "diffusion_compact"

    def __init__(self, config: DiffusionCompactConfig, **kwargs: Any) -> None:
        for key, feature in config.image_features.items():
            channels, height, width = feature.shape
            if channels != 3 or height % STRIDE or width % STRIDE:
                raise ValueError(f"{key} is {feature.shape}; expected (3, H, W) with H and W multiples of {STRIDE}")
        super().__init__(config, **kwargs)
        encoders = [
            CompactRgbEncoder(feature.shape[1], feature.shape[2], 2 * config.spatial_softmax_num_keypoints)
            for feature in config.image_features.values()
        ]
        if not encoders:
            return
        separate = config.use_separate_rgb_encoder_per_camera
        self.diffusion.rgb_encoder = nn.ModuleList(encoders) if separate else encoders[0]
