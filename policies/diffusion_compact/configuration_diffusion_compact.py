"""Sizes and settings of `diffusion_compact`: LeRobot's diffusion policy for the minutes of a CPU."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from lerobot.configs import PreTrainedConfig
from lerobot.optim import AdamConfig
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig

OF_THE_RESNET = ("vision_backbone", "pretrained_backbone_weights", "use_group_norm")
OF_A_PART = ("resize_shape", "crop_ratio", "crop_shape")


@PreTrainedConfig.register_subclass("diffusion_compact")
@dataclass
class DiffusionCompactConfig(DiffusionConfig):
    """Names as in `DiffusionConfig`, other defaults: one observation, a small U-Net, no download.

    A picture becomes 2 * spatial_softmax_num_keypoints features, as many as there; what concerns LeRobot's ResNet is
    refused. Nothing is cropped: at 64x64 a pixel is about a centimetre, and a shifted picture is another scene. It
    predicts actions instead of noise: on "find the dot" LeRobot's network is 3 pixels off after 100 steps of batch 16;
    predicting noise, 30 after 200 steps of batch 32.

    The instruction enters as `observation.environment_state`, which `vag` makes of it. `lerobot-train` does not: a
    policy that it trains sees the picture and the state alone.
    """

    n_obs_steps: int = 1
    horizon: int = 16
    n_action_steps: int = 8
    drop_n_last_frames: int = 0
    pretrained_backbone_weights: str | None = None
    use_group_norm: bool = True
    crop_is_random: bool = False
    spatial_softmax_num_keypoints: int = 64
    down_dims: tuple[int, ...] = (64, 128)
    noise_scheduler_type: str = "DDIM"
    prediction_type: str = "sample"
    num_inference_steps: int | None = 10
    do_mask_loss_for_padding: bool = True
    optimizer_betas: tuple[float, float] = (0.9, 0.95)
    optimizer_weight_decay: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in (*OF_THE_RESNET, *OF_A_PART) and value != field.default:
                raise ValueError(f"{field.name} is {value}; diffusion_compact has no ResNet and sees the whole picture")

    def validate_features(self) -> None:
        """Pictures, of any number of cameras and of any size each, or a vector."""
        if not self.image_features and not self.env_state_feature:
            raise ValueError("expected at least one image feature, or the environment's state")

    def get_optimizer_preset(self) -> AdamConfig:
        return replace(super().get_optimizer_preset(), grad_clip_norm=1.0)
