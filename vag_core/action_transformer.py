"""Transformer over the trajectory, one token per latent frame: it holds the actions that lead to that frame.

Each token reads the video tokens of its own frame: what moves where is in
the picture of that instant, and attention along time does the rest.

Shapes: chunks (B, K, n), K = T - 1 latent frames after the first, n numbers of the trajectory each; condition (B, D).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from vag_core.config import ActionConfig
from vag_core.layers import Attention, modulate, sinusoidal_embedding


class Block(nn.Module):
    """adaLN-Zero block (arXiv 2212.09748) with dropout, since trajectories are few and easily learned by heart."""

    def __init__(self, config: ActionConfig) -> None:
        super().__init__()
        width = config.width
        self.norm_1 = nn.LayerNorm(width, elementwise_affine=False)
        self.norm_2 = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = Attention(width, config.heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(approximate="tanh"),
            nn.Dropout(config.dropout),
            nn.Linear(4 * width, width),
        )
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(condition).chunk(6, dim=-1)
        x = x + gate_1[:, None] * self.attention(modulate(self.norm_1(x), shift_1, scale_1))
        return x + gate_2[:, None] * self.mlp(modulate(self.norm_2(x), shift_2, scale_2))


class ChunkTransformer(nn.Module):
    """Tokens and a condition in, chunks out."""

    def __init__(self, config: ActionConfig, chunk: int) -> None:
        super().__init__()
        width = config.width
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.out = nn.Linear(width, chunk)
        for modulation in [self.modulation, *(cast(Block, block).modulation for block in self.blocks)]:
            nn.init.zeros_(cast(nn.Linear, modulation[-1]).weight)
            nn.init.zeros_(cast(nn.Linear, modulation[-1]).bias)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x: (B, K, D), condition: (B, D) -> (B, K, n)."""
        x = x + sinusoidal_embedding(torch.arange(x.shape[1], device=x.device), x.shape[2], 100.0).to(x.dtype)
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.modulation(condition).chunk(2, dim=-1)
        return self.out(modulate(self.norm(x), shift, scale))


class ActionTransformer(nn.Module):
    """Noisy chunks, and the hidden video tokens of the same instants, to velocity or clean chunks."""

    def __init__(self, config: ActionConfig, chunk: int, tokens: int, video_width: int) -> None:
        """tokens, video_width: video tokens of one frame and their width; 0 tokens = it reads no video."""
        super().__init__()
        self.embed = nn.Linear(chunk, config.width)
        self.read = nn.Linear(tokens * video_width, config.width) if tokens else None
        self.unread = nn.Parameter(torch.zeros(config.width)) if tokens else None  # in place of a video
        self.transformer = ChunkTransformer(config, chunk)

    def forward(self, chunks: Tensor, hidden: Tensor | None, condition: Tensor) -> Tensor:
        """chunks: (B, K, n), hidden: (B, K, S, Dv) or None for no video, condition: (B, D) -> (B, K, n)."""
        x = self.embed(chunks)
        if self.read is not None and self.unread is not None:
            # Not pooled: a token knows which place it comes from.
            x = x + (self.unread if hidden is None else self.read(hidden.flatten(2)))
        return self.transformer(x, condition)
