"""Conditional 1D U-Net over the action sequence, FiLM-conditioned (Diffusion Policy, arXiv 2303.04137), as published.

Shapes: trajectory (B, N, A); condition (B, D); inside, channels first (B, c, N).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vag_core.actions.branch import ConditionedBranch, VideoView
from vag_core.actions.bridge import PoolingBridge
from vag_core.config import GeneratorConfig, UNetConfig


class ConvBlock(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, config: UNetConfig) -> None:
        super().__init__(
            nn.Conv1d(inputs, outputs, config.kernel_size, padding=config.kernel_size // 2),
            nn.GroupNorm(config.groups, outputs),
            nn.SiLU(),  # the original's Mish is far slower on CPU
        )


class ResidualFiLM(nn.Module):
    """Two convolutions; the condition scales and shifts between them (arXiv 1709.07871)."""

    def __init__(self, inputs: int, outputs: int, condition: int, config: UNetConfig) -> None:
        super().__init__()
        self.first = ConvBlock(inputs, outputs, config)
        self.second = ConvBlock(outputs, outputs, config)
        self.film = nn.Sequential(nn.SiLU(), nn.Linear(condition, 2 * outputs))
        self.skip = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Float[Tensor, "b c n"], condition: Float[Tensor, "b d"]) -> Float[Tensor, "b e n"]:
        scale, shift = self.film(condition)[..., None].chunk(2, dim=1)
        return self.skip(x) + self.second((1 + scale) * self.first(x) + shift)


class ActionUNet(nn.Module):
    """Velocity of the noisy trajectory. (B, N, A), (B, D) -> (B, N, A); N must divide by 2^(levels - 1)."""

    def __init__(self, config: UNetConfig, width: int, condition: int) -> None:
        super().__init__()
        channels = list(config.channels)

        def pair(inputs: int, outputs: int) -> nn.ModuleList:
            return nn.ModuleList(
                [
                    ResidualFiLM(inputs, outputs, condition, config),
                    ResidualFiLM(outputs, outputs, condition, config),
                ]
            )

        self.down = nn.ModuleList(pair(i, o) for i, o in zip([width, *channels[:-1]], channels, strict=True))
        self.shrink = nn.ModuleList(nn.Conv1d(c, c, 3, stride=2, padding=1) for c in channels[:-1])
        self.middle = pair(channels[-1], channels[-1])
        self.up = nn.ModuleList(pair(2 * c, c) for c in reversed(channels[:-1]))
        self.grow = nn.ModuleList(
            nn.ConvTranspose1d(i, o, 4, stride=2, padding=1)
            for i, o in zip(reversed(channels[1:]), reversed(channels[:-1]), strict=True)
        )
        self.out = nn.Sequential(ConvBlock(channels[0], channels[0], config), nn.Conv1d(channels[0], width, 1))

    def forward(self, trajectory: Float[Tensor, "b n c"], condition: Float[Tensor, "b d"]) -> Float[Tensor, "b n c"]:
        x = trajectory.transpose(1, 2)
        skips = []
        for level, blocks in enumerate(self.down):
            for block in cast(Iterable[nn.Module], blocks):
                x = block(x, condition)
            if level < len(self.shrink):
                skips.append(x)
                x = self.shrink[level](x)  # (B, c, N / 2^level)
        for block in self.middle:
            x = block(x, condition)
        for grow, blocks in zip(self.grow, self.up, strict=True):
            x = torch.cat([grow(x), skips.pop()], dim=1)
            for block in cast(Iterable[nn.Module], blocks):
                x = block(x, condition)
        return self.out(x).transpose(1, 2)


class UNetBranch(ConditionedBranch):
    """Denoises the trajectory beside the video, of which it reads the pooled clean prediction; sends no gradient."""

    predicts_velocity = True

    def __init__(self, config: GeneratorConfig) -> None:
        action = config.action
        assert isinstance(action, UNetConfig)
        super().__init__(config, action.bridge.width)
        self.bridge = PoolingBridge(action.bridge, config.latent_shape, config.areas(action.bridge.first_frame_grid))
        condition = action.bridge.width + self.bridge.out_width
        self.network = ActionUNet(action, config.action_dim + config.state_dim, condition)

    def forward(
        self,
        noisy: Float[Tensor, "b n c"],
        t: Float[Tensor, " b"],
        condition: Float[Tensor, "b d"],
        video: VideoView | None,
    ) -> Float[Tensor, "b n c"]:
        """As in `ActionBranch`: the velocity (B, N, A + S)."""
        assert video is not None
        condition = condition + self.time(t)
        return self.network(noisy, torch.cat([condition, self.bridge(video.latents.detach())], dim=-1))
