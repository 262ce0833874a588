"""Settings of `diffusion_compact`: those of LeRobot's diffusion policy, less its ResNet."""

from __future__ import annotations

from dataclasses import dataclass

from lerobot.configs import PreTrainedConfig
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig


@PreTrainedConfig.register_subclass("diffusion_compact")
@dataclass
class DiffusionCompactConfig(DiffusionConfig):
    """As `DiffusionConfig`. A picture becomes 2 * spatial_softmax_num_keypoints features, as many as there.

    `resize_shape` and `crop_shape` are refused; other settings of the ResNet are without effect.
    """

    use_group_norm: bool = True
    pretrained_backbone_weights: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("resize_shape", "crop_shape", "pretrained_backbone_weights"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name} is {getattr(self, name)}; diffusion_compact sees the picture as it is")
