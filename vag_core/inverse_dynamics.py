"""Inverse dynamics, the second stage of two-stage systems: from a finished video to the trajectory, by regression.

Shapes: chunks (B, T - 1, n), the n numbers of the trajectory that belong to each latent frame after the first.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from vag_core.action_transformer import ChunkTransformer
from vag_core.config import ActionConfig


class TemporalInverseDynamics(nn.Module):
    """All latents at once, with attention along time: the strong baseline."""

    def __init__(self, config: ActionConfig, chunk: int, latent_shape: tuple[int, int, int, int]) -> None:
        super().__init__()
        channels, _, height, width = latent_shape
        self.read = nn.Linear(2 * channels * height * width, config.width)  # a frame and the change to it
        self.dropout = nn.Dropout(config.dropout)
        self.transformer = ChunkTransformer(config, chunk)

    def forward(self, latents: Tensor, condition: Tensor) -> Tensor:
        """latents: (B, C, T, h, w), condition: (B, D) -> chunks (B, T - 1, n)."""
        now, before = latents[:, :, 1:], latents[:, :, :-1]
        pairs = rearrange(torch.cat([now, now - before], dim=1), "b c t h w -> b t (c h w)")
        return self.transformer(self.read(self.dropout(pairs)), condition)


class FramewiseInverseDynamics(nn.Module):
    """Two frames that follow each other to the actions between them, each pair alone: the usual baseline."""

    def __init__(self, config: ActionConfig, chunk: int) -> None:
        super().__init__()
        import timm  # takes seconds, which other systems need not wait

        # A name with a scheme, as `hf-hub:`, would be downloaded.
        if config.backbone not in timm.list_models():
            raise ValueError(f"action.backbone = {config.backbone!r}: expected the name of a timm model")
        self.backbone = timm.create_model(config.backbone, pretrained=False, in_chans=6, num_classes=chunk)

    def forward(self, frames: Tensor) -> Tensor:
        """frames: (B, 3, F, H, W) in [0, 1], those at the ends of the chunks -> chunks (B, F - 1, n)."""
        pairs = torch.cat([frames[:, :, :-1], frames[:, :, 1:]], dim=1)
        pairs = rearrange(2 * pairs - 1, "b c f h w -> (b f) c h w")
        return rearrange(self.backbone(pairs), "(b f) n -> b f n", b=len(frames))
