"""Inverse dynamics, the second stage of two-stage systems: from a finished video to the trajectory, by regression.

Shapes: trajectory (B, N, A + S); grouped by latent frame (B, T - 1, n).
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from vag_core.actions.branch import ConditionedBranch, VideoView
from vag_core.actions.transformer import GroupTransformer
from vag_core.config import FramewiseConfig, GeneratorConfig, TemporalConfig
from vag_core.layers import average_areas, count_areas
from vag_core.trajectory import ungroup


class TemporalBranch(ConditionedBranch):
    """All latents at once, with attention along time: the strong baseline."""

    def __init__(self, config: GeneratorConfig) -> None:
        action, (channels, _, height, width) = config.action, config.latent_shape
        assert isinstance(action, TemporalConfig)
        super().__init__(config, action.width)
        self.areas = config.areas(action.read_grid)
        cells = math.prod(count_areas((height, width), self.areas))
        self.read = nn.Linear(2 * channels * cells, action.width)  # a frame and the change to it
        self.dropout = nn.Dropout(action.dropout)
        self.transformer = GroupTransformer(action, config.group_width)

    def forward(
        self,
        noisy: Float[Tensor, "b n c"],
        t: Float[Tensor, " b"],
        condition: Float[Tensor, "b d"],
        video: VideoView | None,
    ) -> Float[Tensor, "b n c"]:
        """As in `ActionBranch`: the trajectory (B, N, A + S)."""
        assert video is not None
        latents = average_areas(video.latents, self.areas)
        now, before = latents[:, :, 1:], latents[:, :, :-1]
        pairs = rearrange(torch.cat([now, now - before], dim=1), "b c t h w -> b t (c h w)")
        return ungroup(self.transformer(self.read(self.dropout(pairs)), condition), self.steps)


class FramewiseBranch(nn.Module):
    """Two frames that follow each other to the actions between them, each pair alone: the usual baseline.

    Instruction and state are not read.
    """

    predicts_velocity = False

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        import timm  # takes seconds, which other systems need not wait

        assert isinstance(config.action, FramewiseConfig)
        name = config.action.backbone
        # A name with a scheme, as `hf-hub:`, would be downloaded.
        if name not in timm.list_models():
            raise ValueError(f"action.backbone = {name!r}: expected the name of a timm model")
        self.stride, self.steps = config.tokenizer.temporal_stride, config.action_horizon
        self.backbone = timm.create_model(name, pretrained=False, in_chans=6, num_classes=config.group_width)

    def encode(
        self,
        image: Float[Tensor, "b 3 height width"],
        state: Float[Tensor, "b s"],
        instruction: list[str] | Tensor,
        keep: Shaped[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b d"]:
        """Nothing: (B, 0)."""
        return state[:, :0]

    def forward(
        self,
        noisy: Float[Tensor, "b n c"],
        t: Float[Tensor, " b"],
        condition: Float[Tensor, "b d"],
        video: VideoView | None,
    ) -> Float[Tensor, "b n c"]:
        """As in `ActionBranch`: the trajectory (B, N, A + S)."""
        assert video is not None
        assert video.frames is not None
        frames = video.frames[:, :, :: self.stride]  # those at the ends of the groups
        pairs = torch.cat([frames[:, :, :-1], frames[:, :, 1:]], dim=1)
        grouped = self.backbone(rearrange(2 * pairs - 1, "b c f h w -> (b f) c h w"))
        return ungroup(rearrange(grouped, "(b f) n -> b f n", b=len(frames)), self.steps)
