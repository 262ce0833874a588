"""Latent video diffusion transformer: noisy latents, time and conditions -> velocity.

A DiT with adaLN-Zero (arXiv 2212.09748) over space-time patches. The clean first-frame latent is a prefix of
the sequence; the velocity of the frames after it is predicted.

Shapes: latents (B, C, T, h, w); tokens (B, N, D) with N = T * S, S = (h / p) * (w / p); condition (B, D);
grouped (B, T - 1, n), the n numbers of the trajectory that belong to each latent frame.
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vag_core.config import DiTConfig
from vag_core.layers import AdaLNBlock, ModulatedNorm, Modulation, TimeEmbedding, sinusoidal_embedding


class VideoDiT(nn.Module):
    """Velocity of the noisy latent frames, given the clean first frame, a condition vector and perhaps actions."""

    def __init__(self, config: DiTConfig, latent_channels: int, group_width: int) -> None:
        """group_width: numbers of the trajectory that belong to one latent frame; 0 = no actions are taken in."""
        super().__init__()
        self.config = config
        width, patch = config.width, latent_channels * config.patch_size**2
        self.time = TimeEmbedding(width)
        self.embed_first = nn.Linear(patch, width)  # its own embedding tells the clean prefix from noisy frames
        self.embed = nn.Linear(patch, width)
        self.embed_actions = nn.Linear(group_width, width) if group_width else None
        self.action_time = TimeEmbedding(width) if group_width else None
        axes = ["full"] * config.depth
        if config.attention == "factorised":
            axes = [("space", "time")[i % 2] for i in range(config.depth)]
        self.blocks = nn.ModuleList(AdaLNBlock(width, config.heads, axis) for axis in axes)
        self.norm = ModulatedNorm(width)
        self.out = nn.Linear(width, patch)
        self.initialise()

    def initialise(self) -> None:
        """adaLN-Zero: every block is the identity and the output is zero at the start."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, Modulation):
                module.reset()
        nn.init.zeros_(self.out.weight)

    def forward(
        self,
        noisy: Float[Tensor, "b c k h w"],
        first: Float[Tensor, "b c 1 h w"],
        t: Float[Tensor, " b"],
        scene: Float[Tensor, "b s d"],
        condition: Float[Tensor, "b d"],
        grouped: Float[Tensor, "b k n"] | None = None,
        t_action: Float[Tensor, " b"] | None = None,
    ) -> tuple[Float[Tensor, "b c k h w"], Float[Tensor, "b k s d"]]:
        """noisy: (B, C, T-1, h, w), first: (B, C, 1, h, w), t: (B,), scene: (B, S, D), condition: (B, D).

        grouped (B, T-1, n), t_action (B,): the noisy trajectory and its clock, for a branch that takes actions in.
        Returns the velocity (B, C, T-1, h, w) and the hidden tokens of the same frames (B, T-1, S, D).
        """
        p = self.config.patch_size
        frames, height, width = noisy.shape[2] + 1, noisy.shape[3] // p, noisy.shape[4] // p
        patches = "b c t (h p) (w q) -> b (t h w) (c p q)"
        prefix = self.embed_first(rearrange(first, patches, p=p, q=p)) + scene  # (B, S, D)
        x = self.embed(rearrange(noisy, patches, p=p, q=p))
        c = self.time(t) + condition
        if self.embed_actions is not None and self.action_time is not None:
            assert grouped is not None
            assert t_action is not None
            x = x + self.embed_actions(grouped).repeat_interleave(height * width, dim=1)
            c = c + self.action_time(t_action)
        # Blocks add to the stream in the precision of the weights, which autocast does not change; else one added
        # parameter, or none, would decide on it.
        x = torch.cat([prefix, x], dim=1).to(self.embed.weight.dtype)  # (B, N, D)
        x = x + positions(frames, height, width, x.shape[-1], x.device).to(x.dtype)
        for block in self.blocks:
            x = block(x, c, frames)
        x = self.norm(x[:, prefix.shape[1] :], c)  # (B, N', D)
        hidden = x.unflatten(1, (frames - 1, -1))
        x = self.out(x)  # (B, N', C * p * p)
        return rearrange(x, "b (t h w) (c p q) -> b c t (h p) (w q)", h=height, w=width, p=p, q=p), hidden


def positions(
    frames: int, height: int, width: int, channels: int, device: torch.device
) -> Float[Tensor, "n {channels}"]:
    """Fixed sine-cosine code of (t, y, x), so that other lengths and sizes need no new weights. (N, channels)"""
    part = channels // 3 // 2 * 2
    sizes = (channels - 2 * part, part, part)
    grid = torch.meshgrid(*(torch.arange(n, device=device) for n in (frames, height, width)), indexing="ij")
    codes = [sinusoidal_embedding(axis.flatten(), size, 100.0) for axis, size in zip(grid, sizes, strict=True)]
    return torch.cat(codes, dim=-1)
