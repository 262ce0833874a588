"""Layers that more than one branch uses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Shaped
from torch import Tensor, nn


def sinusoidal_embedding(
    t: Shaped[Tensor, "*b"], width: int, max_period: float = 10_000.0
) -> Float[Tensor, "*b {width}"]:
    """Sine-cosine features of scalar positions or times. t: (...,) -> (..., width)."""
    frequencies = torch.exp(-math.log(max_period) * torch.arange(width // 2, device=t.device) / (width // 2))
    angles = t[..., None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def average_areas(x: Float[Tensor, "*b h w"], areas: tuple[int, int]) -> Float[Tensor, "*b i j"]:
    """x (..., h, w) averaged over equal areas to so many rows and columns, but no more than it has.

    What follows may then read every area with weights of its own, and has as many for a large picture as for a small
    one. Each cell counts, and has a gradient.
    """
    rows, columns = count_areas(x.shape[-2:], areas)
    if (rows, columns) == tuple(x.shape[-2:]):
        return x
    return F.adaptive_avg_pool2d(x.flatten(0, -3), (rows, columns)).unflatten(0, x.shape[:-2])


def count_areas(size: Sequence[int], areas: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns that `average_areas` leaves of a map of this (height, width)."""
    return min(size[0], areas[0]), min(size[1], areas[1])


class TimeEmbedding(nn.Module):
    """Flow time in [0, 1] -> condition vector. t: (B,) -> (B, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Float[Tensor, " b"]) -> Float[Tensor, "b d"]:
        return self.mlp(sinusoidal_embedding(1000.0 * t, self.width))


class InstructionEncoder(nn.Module):
    """Instruction -> one vector. Learned on bytes, so that no vocabulary and no download is needed.

    `embedding` mode takes vectors computed outside (a sentence-transformer or T5) instead of strings, `tokens` mode
    sequences (B, L, embedding_width) with zeros as padding, of which a learned query takes an average.
    """

    def __init__(self, kind: str, width: int, length: int, embedding_width: int) -> None:
        super().__init__()
        self.kind, self.length, self.embedding_width = kind, length, embedding_width
        self.null = nn.Parameter(torch.zeros(width))  # stands for "no instruction" in guidance
        if kind == "bytes":
            self.embedding = nn.Embedding(257, width, padding_idx=256)
            self.position = nn.Parameter(0.02 * torch.randn(length, width))
            self.convolution = nn.Conv1d(width, width, 5, padding=2)
        if kind == "tokens":
            self.query = nn.Parameter(torch.zeros(embedding_width))
        self.out = nn.Linear(width if kind == "bytes" else embedding_width, width)

    def forward(
        self, instruction: list[str] | Tensor, keep: Shaped[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b d"]:
        """Strings, or tensors as the mode asks for -> (B, width). Raises ValueError on a mismatch.

        keep: (B,), 0 puts `null` in the instruction's place.
        """
        encoded = self._encode(instruction).to(self.null.dtype)  # under autocast too, whether any are dropped or not
        return encoded if keep is None else torch.where(keep[:, None].bool(), encoded, self.null)

    def _encode(self, instruction: list[str] | Tensor) -> Tensor:
        device = self.null.device
        if (instruction.ndim if isinstance(instruction, Tensor) else 0) != ("bytes", "", "embedding", "tokens").index(
            self.kind
        ):
            expected = {
                "bytes": "strings",
                "embedding": f"a (B, {self.embedding_width}) tensor",
                "tokens": f"a (B, L, {self.embedding_width}) tensor",
            }
            raise ValueError(f"instruction: expected {expected[self.kind]} (instruction.kind = {self.kind})")
        if isinstance(instruction, Tensor):
            if self.kind == "tokens":
                tokens = instruction.to(device)
                scores = (tokens @ self.query.to(tokens.dtype)).masked_fill(~tokens.any(-1), -1e4)  # (B, L)
                instruction = (scores.softmax(-1)[..., None] * tokens).sum(1)
            if instruction.shape[-1] != self.embedding_width:
                raise ValueError(f"instruction: vectors of {instruction.shape[-1]}; expected {self.embedding_width}")
            return self.out(instruction.to(device))
        texts = list(dict.fromkeys(instruction))  # each once: a batch has few tasks
        codes = [list(text.lower().strip().encode()) for text in texts]
        if (longest := max(map(len, codes))) > self.length:
            raise ValueError(f"instruction of {longest} bytes; the generator reads {self.length} (instruction.length)")
        # The process does not wait for the device with these few bytes.
        ids = torch.tensor([c + [256] * (self.length - len(c)) for c in codes]).to(device, non_blocking=True)  # (B, L)
        mask = (ids != 256)[..., None]
        tokens = self.embedding(ids) + self.position
        tokens = F.silu(self.convolution((tokens * mask).transpose(1, 2)).transpose(1, 2))  # (B, L, D)
        vectors = self.out((tokens * mask).sum(1) / mask.sum(1).clamp(min=1))
        rows = {text: row for row, text in enumerate(texts)}
        return vectors[torch.tensor([rows[text] for text in instruction]).to(device, non_blocking=True)]


class Attention(nn.Module):
    """Self-attention with normalised queries and keys. (B, N, D) -> (B, N, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.q_norm = nn.RMSNorm(width // heads)
        self.k_norm = nn.RMSNorm(width // heads)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        x = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.out(rearrange(x, "b h n d -> b n (h d)"))


def modulate(
    x: Float[Tensor, "b n d"], shift: Float[Tensor, "b d"], scale: Float[Tensor, "b d"]
) -> Float[Tensor, "b n d"]:
    """x: (B, N, D), shift and scale: (B, D) -> (B, N, D)."""
    return x * (1 + scale[:, None]) + shift[:, None]


class Modulation(nn.Sequential):
    """Condition (B, D) -> shifts, scales and gates (B, n * D), all zero at the start."""

    def __init__(self, width: int, n: int) -> None:
        super().__init__(nn.SiLU(), nn.Linear(width, n * width))
        self.reset()

    def reset(self) -> None:
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


class ModulatedNorm(nn.Module):
    """Layer normalisation whose shift and scale follow a condition: x (B, N, D), condition (B, D) -> (B, N, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = Modulation(width, 2)

    def forward(self, x: Float[Tensor, "b n d"], condition: Float[Tensor, "b d"]) -> Float[Tensor, "b n d"]:
        shift, scale = self.modulation(condition).chunk(2, dim=-1)
        return modulate(self.norm(x), shift, scale)


class AdaLNBlock(nn.Module):
    """adaLN-Zero block (arXiv 2212.09748): attention, then an MLP, both gated; the identity at the start.

    Attention goes over all tokens, or of the tokens of several frames over `space` (`b (t s)` -> `(b t) s`) or `time`.
    """

    def __init__(self, width: int, heads: int, axis: str = "full", dropout: float = 0.0) -> None:
        super().__init__()
        self.axis = axis
        self.norm_1 = nn.LayerNorm(width, elementwise_affine=False)
        self.norm_2 = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(approximate="tanh"),
            nn.Dropout(dropout),
            nn.Linear(4 * width, width),
        )
        self.modulation = Modulation(width, 6)

    def forward(
        self, x: Float[Tensor, "b n d"], condition: Float[Tensor, "b d"], frames: int = 1
    ) -> Float[Tensor, "b n d"]:
        """x: (B, N, D), condition: (B, D), frames: of which the N tokens are -> (B, N, D)."""
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


class ResidualBlock(nn.Module):
    """Two convolutions and a skip. (B, width, h, w) -> the same; width divides by 8."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )
        nn.init.zeros_(cast(nn.Conv2d, self.layers[-1]).weight)  # the block starts as the identity

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x + self.layers(x)
