"""Inverse dynamics, the second stage of two-stage systems: from a finished video to the trajectory, by regression.

Shapes: grouped trajectory (B, T - 1, n), the n numbers that belong to each latent frame after the first.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from vag_core.actions.branch import ConditionedBranch, VideoView
from vag_core.actions.transformer import GroupTransformer
from vag_core.config import FramewiseConfig, GeneratorConfig, TemporalConfig
from vag_core.trajectory import ungroup


class TemporalInverseDynamics(nn.Module):
    """All latents at once, with attention along time: the strong baseline."""

    def __init__(self, config: TemporalConfig, group_width: int, latent_shape: tuple[int, int, int, int]) -> None:
        super().__init__()
        channels, _, height, width = latent_shape
        self.read = nn.Linear(2 * channels * height * width, config.width)  # a frame and the change to it
        self.dropout = nn.Dropout(config.dropout)
        self.transformer = GroupTransformer(config, group_width)

    def forward(self, latents: Tensor, condition: Tensor) -> Tensor:
        """latents: (B, C, T, h, w), condition: (B, D) -> grouped trajectory (B, T - 1, n)."""
        now, before = latents[:, :, 1:], latents[:, :, :-1]
        pairs = rearrange(torch.cat([now, now - before], dim=1), "b c t h w -> b t (c h w)")
        return self.transformer(self.read(self.dropout(pairs)), condition)


class FramewiseInverseDynamics(nn.Module):
    """Two frames that follow each other to the actions between them, each pair alone: the usual baseline."""

    def __init__(self, config: FramewiseConfig, group_width: int) -> None:
        super().__init__()
        import timm  # takes seconds, which other systems need not wait

        # A name with a scheme, as `hf-hub:`, would be downloaded.
        if config.backbone not in timm.list_models():
            raise ValueError(f"action.backbone = {config.backbone!r}: expected the name of a timm model")
        self.backbone = timm.create_model(config.backbone, pretrained=False, in_chans=6, num_classes=group_width)

    def forward(self, frames: Tensor) -> Tensor:
        """frames: (B, 3, F, H, W) in [0, 1], those at the ends of the groups -> grouped trajectory (B, F - 1, n)."""
        pairs = torch.cat([frames[:, :, :-1], frames[:, :, 1:]], dim=1)
        pairs = rearrange(2 * pairs - 1, "b c f h w -> (b f) c h w")
        return rearrange(self.backbone(pairs), "(b f) n -> b f n", b=len(frames))


class TemporalBranch(ConditionedBranch):
    """Infers the trajectory from all latents of the finished video."""

    def __init__(self, config: GeneratorConfig) -> None:
        action = config.action
        assert isinstance(action, TemporalConfig)
        super().__init__(config, action.width)
        self.network = TemporalInverseDynamics(action, config.group_width, config.latent_shape)

    def forward(self, noisy: Tensor, t: Tensor, condition: Tensor, video: VideoView | None) -> Tensor:
        """As in `ActionBranch`: the trajectory (B, N, A + S)."""
        assert video is not None
        return ungroup(self.network(video.latents, condition), self.steps)


class FramewiseBranch(nn.Module):
    """Infers the trajectory from the frames of the finished video; instruction and state are not read."""

    predicts_velocity = False

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        action = config.action
        assert isinstance(action, FramewiseConfig)
        self.stride, self.steps = config.tokenizer.temporal_stride, config.action_horizon
        self.network = FramewiseInverseDynamics(action, config.group_width)

    def encode(
        self, image: Tensor, state: Tensor, instruction: list[str] | Tensor, keep: Tensor | None = None
    ) -> Tensor:
        """Nothing: (B, 0)."""
        return state[:, :0]

    def forward(self, noisy: Tensor, t: Tensor, condition: Tensor, video: VideoView | None) -> Tensor:
        """As in `ActionBranch`: the trajectory (B, N, A + S)."""
        assert video is not None
        assert video.frames is not None
        return ungroup(self.network(video.frames[:, :, :: self.stride]), self.steps)
