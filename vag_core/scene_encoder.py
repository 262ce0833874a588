"""What the first frame shows, read at full resolution: the plan stands or falls with where things are.

The video tokenizer spends its few numbers on how the picture looks; a hand's breadth of error in the place of an
object costs it little and the robot everything.

Where a picture shows several cameras side by side (`GeneratorConfig.views`), places are read off each of them.

Shapes: image (B, 3, H, W) in [0, 1]; map (B, c, H / s, W / s); tokens (B, S, D); summary (B, D).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vag_core.config import GeneratorConfig
from vag_core.layers import ResidualBlock, average_areas, count_areas


class SceneEncoder(nn.Module):
    """Residual convolutions over the unshuffled picture; spatial softmax (arXiv 1504.00702) reads places off."""

    def __init__(self, whole: GeneratorConfig, width: int, with_tokens: bool) -> None:
        """width: of the summary and of the tokens, one for each patch of the video branch, where they are wanted."""
        super().__init__()
        config = whole.scene
        self.stride, self.patches, self.grid, self.views = config.stride, whole.patches, config.grid, whole.views
        rows, columns = (pixels // config.stride for pixels in whole.image_size)
        view = (rows // self.views[0] // 2, columns // self.views[1] // 2)  # of the map at half its resolution
        areas = math.prod(count_areas(view, (self.grid, self.grid)))
        self.embed = nn.Conv2d(3 * config.stride**2, config.width, 3, padding=1)
        self.blocks = nn.Sequential(*[ResidualBlock(config.width) for _ in range(config.depth)])
        self.norm = nn.GroupNorm(8, config.width)
        self.keypoints = nn.Conv2d(config.width, config.keypoints, 1)
        self.reduce = nn.Conv2d(config.width, 16, 1)
        self.summary = nn.Sequential(
            nn.Linear(math.prod(self.views) * (2 * config.keypoints + 16 * areas), width),
            nn.SiLU(),
            nn.Linear(width, width),
        )
        cells = rows // self.patches[0] * (columns // self.patches[1])
        self.token = nn.Linear(config.width * cells, width) if with_tokens else None

    def forward(
        self, image: Float[Tensor, "b 3 height width"]
    ) -> tuple[Float[Tensor, "b s d"] | None, Float[Tensor, "b d"]]:
        """image: (B, 3, H, W) in [0, 1] -> tokens (B, S, D), row by row, and summary (B, D)."""
        features = self.embed(F.pixel_unshuffle(2 * image - 1, self.stride))
        features = F.silu(self.norm(self.blocks(features)))  # (B, c, H / s, W / s)
        tokens = None
        if self.token is not None:
            rows, columns = self.patches
            tokens = self.token(rearrange(features, "b c (h p) (w q) -> b (h w) (c p q)", h=rows, w=columns))
        views = features
        if math.prod(self.views) > 1:
            views = rearrange(features, "b c (r h) (q w) -> (b r q) c h w", r=self.views[0], q=self.views[1])
        positions = self.positions(self.keypoints(views)).flatten(1)  # (B * views, 2 * keypoints)
        coarse = F.silu(average_areas(self.reduce(F.avg_pool2d(views, 2)), (self.grid, self.grid))).flatten(1)
        return tokens, self.summary(torch.cat([positions, coarse], dim=-1).reshape(len(image), -1))

    @staticmethod
    def positions(heat: Float[Tensor, "b k h w"]) -> Float[Tensor, "b k 2"]:
        """Mean position under each softmax of a heat map, in [-1, 1]. (B, k, h, w) -> (B, k, 2) as (x, y)."""
        weights = heat.flatten(2).softmax(-1).unflatten(2, heat.shape[2:])
        x, y = (torch.linspace(-1, 1, n, device=heat.device) for n in (heat.shape[3], heat.shape[2]))
        return torch.stack([(weights.sum(2) * x).sum(-1), (weights.sum(3) * y).sum(-1)], dim=-1)
