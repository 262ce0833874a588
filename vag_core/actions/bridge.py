"""The bridge between the streams: what the action branch sees of the predicted clean video."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vag_core.config import BridgeConfig
from vag_core.layers import average_areas, count_areas


class PoolingBridge(nn.Module):
    """Adaptive 3D average pooling of the predicted clean video latent to a (t, h, w) grid.

    A single cell, tiled to the condition width with no learned layer, is the published setting (arXiv
    2604.09330): it keeps what the scene contains. A finer grid, flattened and projected, keeps where it is.
    """

    def __init__(self, config: BridgeConfig, latent_shape: tuple[int, int, int, int], areas: tuple[int, int]) -> None:
        """areas: rows and columns of areas that the first frame is averaged over."""
        super().__init__()
        channels, frames, height, width = latent_shape
        self.grid = (min(config.grid[0], frames), min(config.grid[1], height), min(config.grid[2], width))
        self.width, self.first_frame, self.areas = config.width, config.first_frame, areas
        cells = self.grid[0] * self.grid[1] * self.grid[2]
        features = cells * channels
        self.project = nn.Linear(features, config.width) if cells > 1 else None
        first = channels * math.prod(count_areas((height, width), areas))
        self.project_first = nn.Linear(first, config.width) if config.first_frame else None

    def forward(self, latents: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d"]:
        """latents: (B, C, T, h, w), first frame included, unit variance -> condition (B, width)."""
        pooled = F.adaptive_avg_pool3d(latents, self.grid).flatten(1)  # (B, C * t * h * w)
        if self.project is not None:
            condition = self.project(pooled)
        else:
            repeats = -(-self.width // pooled.shape[1])
            condition = pooled.repeat(1, repeats)[:, : self.width]
        if self.project_first is not None:
            first = average_areas(latents[:, :, 0], self.areas).flatten(1)
            condition = torch.cat([condition, self.project_first(first)], dim=-1)
        return condition

    @property
    def out_width(self) -> int:
        """Width of the condition vector."""
        return self.width * (2 if self.first_frame else 1)
