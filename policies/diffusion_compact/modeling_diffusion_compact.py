"""Diffusion Policy (arXiv 2303.04137) at a size that trains on a CPU: LeRobot's U-Net and schedule, another eye.

Of a picture of 64x64 the ResNet-18 of LeRobot's policy leaves four cells, and it takes most of the training time.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
from torch import Tensor, nn

from policies.action_steps import tell_chunk_begins
from policies.diffusion_compact.configuration_diffusion_compact import DiffusionCompactConfig
from policies.observation_encoder import COMPACT_WIDTH, STRIDE, CompactBackbone, letterboxed, padded
from policies.strict_loading import StrictLoading


class CompactRgbEncoder(nn.Module):
    """In the place of `DiffusionRgbEncoder`: pictures (B, 3, H, W), normalised, -> features (B, D).

    Every cell of 8 x 8 pixels has weights of its own, so that a feature can tell places apart: they are 48 D for each.
    Sides that 8 does not divide are padded. In rollouts a picture of another size is letterboxed, since `lerobot-eval`
    passes on what the simulator renders. Raises ValueError for one in training.
    """

    def __init__(self, height: int, width: int, feature_dim: int) -> None:
        super().__init__()
        self.size, self.feature_dim = (height, width), feature_dim
        self.backbone = CompactBackbone()
        self.out = nn.Linear(COMPACT_WIDTH * -(-height // STRIDE) * -(-width // STRIDE), feature_dim)

    def forward(self, image: Tensor) -> Tensor:
        if (found := tuple(image.shape[2:])) != self.size:
            if self.training:
                raise ValueError(f"picture of {found[0]} x {found[1]}: expected {self.size[0]} x {self.size[1]}")
            image = letterboxed(image, self.size)
        return F.silu(self.out(self.backbone(padded(image, STRIDE)).flatten(1)))


class DiffusionCompactPolicy(StrictLoading, DiffusionPolicy):
    """LeRobot's diffusion policy; only what turns a picture into features is another network."""

    config_class = DiffusionCompactConfig
    name = "diffusion_compact"

    def __init__(self, config: DiffusionCompactConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)  # builds a ResNet too, which is dropped here
        if shapes := [feature.shape for feature in config.image_features.values()]:
            height, width = self.common_size = max(s[1] for s in shapes), max(s[2] for s in shapes)
            separate = config.use_separate_rgb_encoder_per_camera
            encoders = [
                CompactRgbEncoder(height, width, 2 * config.spatial_softmax_num_keypoints)
                for _ in (shapes if separate else shapes[:1])
            ]
            self.diffusion.rgb_encoder = nn.ModuleList(encoders) if separate else encoders[0]

    def _of_one_size(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Pictures of cameras that differ in size, each in the corner of one as large as all: LeRobot stacks them."""
        sizes = {key: (feature.shape[1], feature.shape[2]) for key, feature in self.config.image_features.items()}
        if len(set(sizes.values())) < 2:
            return batch
        height, width = self.common_size
        result = dict(batch)
        for key, size in sizes.items():
            image = result[key].flatten(0, -4)
            image = image if self.training else letterboxed(image, size)
            image = F.pad(image, (0, width - size[1], 0, height - size[0]))
            result[key] = image.unflatten(0, result[key].shape[:-3])
        return result

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, None]:
        return super().forward(self._of_one_size(batch))

    def select_action(self, batch: dict[str, Tensor], noise: Tensor | None = None) -> Tensor:
        return super().select_action(self._of_one_size(batch), noise=noise)

    def predict_action_chunk(self, batch: dict[str, Tensor], noise: Tensor | None = None) -> Tensor:
        tell_chunk_begins(batch)
        remembered = any(map(len, self._queues.values()))  # where `select_action` calls, which has put them there
        return super().predict_action_chunk(batch if remembered else self._of_one_size(batch), noise=noise)
