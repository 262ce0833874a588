"""AutoencoderKLWan as a tokenizer: that of Wan2.1, which Cosmos-Predict2 and 2.5 use, and that of Wan2.2.

Causal: frame 0 is latent 0, frames 4k-3 to 4k are latent k. Shapes as in `video_branch`.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class WanTokenizer(nn.Module):
    """Frames <-> standardised latents, frozen."""

    mean: Tensor
    std: Tensor

    def __init__(self, vae: Any) -> None:
        """vae: diffusers' AutoencoderKLWan."""
        super().__init__()
        self.vae = vae.eval().requires_grad_(False)
        self.channels: int = vae.config.z_dim
        self.temporal_stride: int = vae.config.scale_factor_temporal
        self.spatial_stride: int = vae.config.scale_factor_spatial
        for name, values in (("mean", vae.config.latents_mean), ("std", vae.config.latents_std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1, 1), persistent=False)

    @torch.no_grad()
    def encode(self, frames: Float[Tensor, "b 3 f height width"]) -> Float[Tensor, "b c t h w"]:
        """(B, 3, F, H, W) in [0, 1] -> (B, C, T, h, w), the mode of the posterior.

        Raises ValueError for sizes that do not divide.
        """
        count, height, width = frames.shape[2:]
        if (count - 1) % self.temporal_stride or height % self.spatial_stride or width % self.spatial_stride:
            raise ValueError(
                f"frames of {height} x {width}, {count} of them: expected sides that are multiples of "
                f"{self.spatial_stride}, and 1 + a multiple of {self.temporal_stride} frames"
            )
        # One clip at a time: it takes gigabytes.
        clips = (2 * frames - 1).to(self.vae.dtype).split(1)
        mode = torch.cat([self.vae.encode(clip).latent_dist.mode() for clip in clips])
        return (mode.float() - self.mean) / self.std

    def encode_first(self, image: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b c 1 h w"]:
        """(B, 3, H, W) in [0, 1] -> (B, C, 1, h, w), the first latent of any clip that begins with it."""
        return self.encode(image[:, :, None])

    @torch.no_grad()
    def decode(
        self, latents: Float[Tensor, "b c t h w"], first_frame: Float[Tensor, "b 3 height width"] | None = None
    ) -> Float[Tensor, "b 3 f height width"]:
        """(B, C, T, h, w) -> (B, 3, F, H, W) in [0, 1]; `first_frame` (B, 3, H, W) comes back as it is."""
        clips = (latents * self.std + self.mean).to(self.vae.dtype).split(1)
        frames = torch.cat([((self.vae.decode(clip).sample.float() + 1) / 2).clamp(0, 1) for clip in clips])
        return frames if first_frame is None else torch.cat([first_frame[:, :, None], frames[:, :, 1:]], dim=2)
