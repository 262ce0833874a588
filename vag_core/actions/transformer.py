"""Transformer over the trajectory, one token per latent frame: it holds the actions that lead to that frame.

Each token reads the video tokens of its own frame: what moves where is in the picture of that instant, and attention
along time does the rest.

Shapes: grouped trajectory (B, K, n), K = T - 1 latent frames after the first, n numbers each; condition (B, D).
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from vag_core.actions.branch import ConditionedBranch, VideoView, blank_pure_noise
from vag_core.config import ActionOnlyConfig, GeneratorConfig, TemporalConfig, TransformerConfig
from vag_core.layers import AdaLNBlock, ModulatedNorm, TimeEmbedding, average_areas, count_areas, sinusoidal_embedding
from vag_core.scene_encoder import SceneEncoder
from vag_core.trajectory import group_by_latent_frame, ungroup


class GroupTransformer(nn.Module):
    """Tokens and a condition in, grouped trajectory out."""

    def __init__(self, config: TransformerConfig | ActionOnlyConfig | TemporalConfig, group_width: int) -> None:
        """group_width: n, numbers of the trajectory that belong to one latent frame."""
        super().__init__()
        # Dropout, since trajectories are few and easily learned by heart.
        self.blocks = nn.ModuleList(
            AdaLNBlock(config.width, config.heads, dropout=config.dropout) for _ in range(config.depth)
        )
        self.norm = ModulatedNorm(config.width)
        self.out = nn.Linear(config.width, group_width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Float[Tensor, "b k d"], condition: Float[Tensor, "b d"]) -> Float[Tensor, "b k n"]:
        """x: (B, K, D), condition: (B, D) -> (B, K, n)."""
        x = x.to(self.out.weight.dtype)  # under autocast too, whatever has been added to it: see `VideoDiT`
        x = x + sinusoidal_embedding(torch.arange(x.shape[1], device=x.device), x.shape[2], 100.0).to(x.dtype)
        for block in self.blocks:
            x = block(x, condition)
        return self.out(self.norm(x, condition))


class ActionTransformer(nn.Module):
    """Noisy trajectory, and the hidden video tokens of the same instants, to the clean trajectory; both grouped."""

    def __init__(
        self,
        config: TransformerConfig | ActionOnlyConfig,
        group_width: int,
        patches: tuple[int, int] = (0, 0),
        areas: tuple[int, int] = (0, 0),
        video_width: int = 0,
    ) -> None:
        """patches, video_width: rows and columns of video tokens of one frame and their width; 0 = it reads no video.

        areas: the rows and columns of areas that these are averaged over.
        """
        super().__init__()
        self.embed = nn.Linear(group_width, config.width)
        self.rows, self.areas = patches[0], areas
        read = math.prod(count_areas(patches, areas)) * video_width
        self.read = nn.Linear(read, config.width) if read else None
        # In place of a video, where plans do without.
        self.unread = nn.Parameter(torch.zeros(config.width)) if read and config.plan_share else None
        self.transformer = GroupTransformer(config, group_width)

    def forward(
        self,
        grouped: Float[Tensor, "b k n"],
        hidden: Float[Tensor, "b k s v"] | None,
        condition: Float[Tensor, "b d"],
    ) -> Float[Tensor, "b k n"]:
        """grouped: (B, K, n), hidden: (B, K, S, Dv) or None for no video, condition: (B, D) -> (B, K, n)."""
        x = self.embed(grouped)
        if self.read is not None and hidden is not None:
            areas = average_areas(rearrange(hidden, "b k (h w) v -> b k v h w", h=self.rows), self.areas)
            hidden = rearrange(areas, "b k v h w -> b k (h w) v")
            x = x + self.read(hidden.flatten(2))  # not pooled to one: it knows where in the picture it comes from
        elif self.unread is not None:
            x = x + self.unread
        return self.transformer(x, condition)


class TransformerBranch(ConditionedBranch):
    """Denoises the trajectory beside the video, whose hidden tokens it reads, or from the scene alone.

    Without a video branch (ActionOnlyConfig) there is nothing to read.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        action = config.action
        assert isinstance(action, TransformerConfig | ActionOnlyConfig)
        super().__init__(config, action.width)
        self.detach = isinstance(action, TransformerConfig) and action.detach
        self.scene = SceneEncoder(config, action.width, with_tokens=False)
        self.video_time = TimeEmbedding(action.width) if action.makes_video else None
        if isinstance(action, TransformerConfig):
            areas, width = config.areas(action.read_grid), config.video.width
            self.network = ActionTransformer(action, config.group_width, config.patches, areas, width)
        else:
            self.network = ActionTransformer(action, config.group_width)

    def encode(
        self,
        image: Float[Tensor, "b 3 height width"],
        state: Float[Tensor, "b s"],
        instruction: list[str] | Tensor,
        keep: Shaped[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b d"]:
        """As in `ActionBranch`; the picture is read too."""
        return super().encode(image, state, instruction, keep) + self.scene(image)[1]

    def forward(
        self,
        noisy: Float[Tensor, "b n c"],
        t: Float[Tensor, " b"],
        condition: Float[Tensor, "b d"],
        video: VideoView | None,
    ) -> Float[Tensor, "b n c"]:
        """As in `ActionBranch`: the clean trajectory (B, N, A + S)."""
        condition, hidden = condition + self.time(t), None
        if video is not None and video.hidden is not None and self.video_time is not None:
            hidden = video.hidden.detach() if self.detach else video.hidden
            condition = condition + self.video_time(video.t)
        grouped = group_by_latent_frame(blank_pure_noise(noisy, t), self.latent_frames)
        return ungroup(self.network(grouped, hidden, condition), self.steps)
