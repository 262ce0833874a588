"""Latent video diffusion transformer: noisy latents, time and conditions -> velocity.

A DiT with adaLN-Zero (arXiv 2212.09748) over space-time patches. The clean first-frame latent is a prefix of
the sequence; the velocity of the frames after it is predicted.

Shapes: latents (B, C, T, h, w); tokens (B, N, D) with N = T * (h / p) * (w / p); condition (B, D).
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vag_core.config import VideoConfig
from vag_core.layers import TimeEmbedding, sinusoidal_embedding


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale[:, None]) + shift[:, None]


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.q_norm = nn.RMSNorm(width // heads)
        self.k_norm = nn.RMSNorm(width // heads)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        x = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.out(rearrange(x, "b h n d -> b n (h d)"))


class Block(nn.Module):
    """Attention over all tokens, over space (`b (t s)` -> `(b t) s`) or over time, then an MLP; both gated."""

    def __init__(self, width: int, heads: int, axis: str) -> None:
        super().__init__()
        self.axis = axis
        self.norm_1 = nn.LayerNorm(width, elementwise_affine=False)
        self.norm_2 = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor, frames: int) -> Tensor:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(condition).chunk(6, dim=-1)
        h = modulate(self.norm_1(x), shift_1, scale_1)
        if self.axis == "space":
            h = rearrange(h, "b (t s) d -> (b t) s d", t=frames)
            h = rearrange(self.attention(h), "(b t) s d -> b (t s) d", t=frames)
        elif self.axis == "time":
            h = rearrange(h, "b (t s) d -> (b s) t d", t=frames)
            h = rearrange(self.attention(h), "(b s) t d -> b (t s) d", b=x.shape[0])
        else:
            h = self.attention(h)
        x = x + gate_1[:, None] * h
        return x + gate_2[:, None] * self.mlp(modulate(self.norm_2(x), shift_2, scale_2))


class VideoDiT(nn.Module):
    """Velocity of the noisy latent frames, given the clean first frame and a condition vector."""

    def __init__(self, config: VideoConfig, latent_channels: int) -> None:
        super().__init__()
        self.config = config
        width, patch = config.width, latent_channels * config.patch_size**2
        self.time = TimeEmbedding(width)
        self.embed_first = nn.Linear(patch, width)  # its own embedding tells the clean prefix from noisy frames
        self.embed = nn.Linear(patch, width)
        axes = ["full"] * config.depth
        if config.attention == "factorised":
            axes = [("space", "time")[i % 2] for i in range(config.depth)]
        self.blocks = nn.ModuleList(Block(width, config.heads, axis) for axis in axes)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.out = nn.Linear(width, patch)
        self.initialise()

    def initialise(self) -> None:
        """adaLN-Zero: every block is the identity and the output is zero at the start."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for modulation in [self.modulation, *(cast(Block, block).modulation for block in self.blocks)]:
            nn.init.zeros_(cast(nn.Linear, modulation[-1]).weight)
        nn.init.zeros_(self.out.weight)

    def forward(self, noisy: Tensor, first: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """noisy: (B, C, T-1, h, w), first: (B, C, 1, h, w), t: (B,) -> velocity (B, C, T-1, h, w)."""
        p = self.config.patch_size
        frames, height, width = noisy.shape[2] + 1, noisy.shape[3] // p, noisy.shape[4] // p
        patches = "b c t (h p) (w q) -> b (t h w) (c p q)"
        prefix = self.embed_first(rearrange(first, patches, p=p, q=p))
        x = torch.cat([prefix, self.embed(rearrange(noisy, patches, p=p, q=p))], dim=1)  # (B, N, D)
        x = x + positions(frames, height, width, x.shape[-1], x.device).to(x.dtype)
        c = self.time(t) + condition
        for block in self.blocks:
            x = block(x, c, frames)
        shift, scale = self.modulation(c).chunk(2, dim=-1)
        x = self.out(modulate(self.norm(x[:, prefix.shape[1] :]), shift, scale))  # (B, N', C * p * p)
        return rearrange(x, "b (t h w) (c p q) -> b c t (h p) (w q)", h=height, w=width, p=p, q=p)


def positions(frames: int, height: int, width: int, channels: int, device: torch.device) -> Tensor:
    """Fixed sine-cosine code of (t, y, x), so that other lengths and sizes need no new weights. (N, channels)"""
    part = channels // 3 // 2 * 2
    sizes = (channels - 2 * part, part, part)
    grid = torch.meshgrid(*(torch.arange(n, device=device) for n in (frames, height, width)), indexing="ij")
    codes = [sinusoidal_embedding(axis.flatten(), size, 100.0) for axis, size in zip(grid, sizes, strict=True)]
    return torch.cat(codes, dim=-1)
