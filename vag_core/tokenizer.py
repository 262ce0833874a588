"""Causal convolutional video VAE, small enough to train on two CPU cores.

The first frame becomes one latent frame; each further group of s frames becomes one more, as in the causal
tokenizers of large video models (arXiv 2501.03575). All convolutions run after PixelUnshuffle, at latent
resolution: full-resolution convolutions cost far more and reconstructed worse.

The group decoder predicts the change against the first frame, which generation is always given: what does not
move stays sharp, and the latents are free to say what does.

Shapes: frames (B, 3, F, H, W) in [0, 1]; latents (B, C, T, h, w), unit variance; F = 1 + (T - 1) * s.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor, nn

from vag_core.config import ConvTokenizerConfig
from vag_core.layers import ResidualBlock
from vag_core.whole_batch import WholeBatch


def _tower(inputs: int, width: int, depth: int, outputs: int) -> nn.Sequential:
    blocks = [ResidualBlock(width) for _ in range(depth)]
    return nn.Sequential(nn.Conv2d(inputs, width, 1), *blocks, nn.SiLU(), nn.Conv2d(width, outputs, 1))


class VideoTokenizer(nn.Module):
    """Frames <-> latents; see the module docstring for shapes."""

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: ConvTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        pixels = 3 * config.spatial_stride**2
        channels, group = config.latent_channels, pixels * config.temporal_stride
        self.frame_encoder = _tower(pixels, config.width, config.depth, 2 * channels)
        self.frame_decoder = _tower(channels, config.width, config.depth, pixels)
        self.group_encoder = _tower(group + pixels, config.width, config.depth, 2 * channels)
        self.group_decoder = _tower(channels + pixels, config.width, config.depth, group)
        nn.init.zeros_(cast(nn.Conv2d, self.group_decoder[-1]).weight)  # a new decoder repeats the first frame
        # Two rows: the first-frame latent and the group latents have different statistics.
        self.register_buffer("latent_mean", torch.zeros(2, channels))
        self.register_buffer("latent_std", torch.ones(2, channels))

    def encode(self, frames: Float[Tensor, "b 3 f height width"]) -> Float[Tensor, "b c t h w"]:
        """Deterministic latents (the posterior mean), standardised. (B, 3, F, H, W) -> (B, C, T, h, w)."""
        mean, _ = self._posterior(frames)
        return self._standardise(mean)

    def encode_first(self, image: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b c 1 h w"]:
        """Latent of the first frame alone. (B, 3, H, W) -> (B, C, 1, h, w)."""
        return self.encode(image[:, :, None])

    def decode(
        self, latents: Float[Tensor, "b c t h w"], first_frame: Float[Tensor, "b 3 height width"] | None = None
    ) -> Float[Tensor, "b 3 f height width"]:
        """(B, C, T, h, w) -> (B, 3, F, H, W) in [0, 1].

        first_frame: (B, 3, H, W); returned as it is where given, else decoded from its latent.
        """
        mean, std = self._statistics(latents.shape[2])
        return self._decode(latents * std + mean, first_frame).clamp(0, 1)

    def loss(self, batch: dict[str, Any]) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Reconstruction + KL. batch["frames"]: (B, 3, F, H, W) in [0, 1] or (B, F, H, W, 3) uint8.

        Of a part of a batch (see `whole_batch`) the mean over all parts is the loss of the whole one.
        """
        frames = to_float_frames(batch["frames"])
        mean, log_variance = self._posterior(frames)
        noise = WholeBatch.of(batch, len(frames)).randn(mean)
        latents = mean + noise * (0.5 * log_variance).exp()
        reconstruction = self._decode(latents, frames[:, :, 0])
        first = self._decode(latents[:, :, :1], None)
        error = F.mse_loss(reconstruction[:, :, 1:], frames[:, :, 1:]) if frames.shape[2] > 1 else frames.new_zeros(())
        first_error = F.mse_loss(first, frames[:, :, :1])
        # L1 keeps small moving parts, which squared error would leave to the background.
        detail = (reconstruction - frames).abs().mean() + (first - frames[:, :, :1]).abs().mean()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        loss = error + first_error + 0.1 * detail + self.config.kl_weight * kl
        psnr = -10 * torch.log10(error.detach().clamp(min=1e-10))
        first_psnr = -10 * torch.log10(first_error.detach().clamp(min=1e-10))
        return loss, {"psnr": psnr, "first_frame_psnr": first_psnr, "kl": kl.detach()}

    @torch.no_grad()
    def calibrate(self, frames: Float[Tensor, "b 3 f height width"]) -> None:
        """Measure the latents' mean and deviation on (B, 3, F, H, W), so that `encode` gives unit variance."""
        mean, _ = self._posterior(frames)
        for row, part in enumerate((mean[:, :, :1], mean[:, :, 1:])):
            if part.shape[2]:
                self.latent_mean[row] = part.mean(dim=(0, 2, 3, 4))
                self.latent_std[row] = part.std(dim=(0, 2, 3, 4)).clamp(min=1e-3)

    def _posterior(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        config = self.config
        if (frames.shape[2] - 1) % config.temporal_stride:
            raise ValueError(f"{frames.shape[2]} frames: expected 1 + a multiple of {config.temporal_stride}")
        pixels = _unshuffle(2 * frames - 1, config.spatial_stride)  # (B, F, 192, h, w)
        parts = [self.frame_encoder(pixels[:, 0])[:, :, None]]
        groups = (pixels.shape[1] - 1) // config.temporal_stride
        if groups:
            context = pixels[:, :1].expand(-1, groups, -1, -1, -1)
            moving = rearrange(pixels[:, 1:], "b (g s) c h w -> b g (s c) h w", s=config.temporal_stride)
            moving = torch.cat([moving, context], dim=2).flatten(0, 1)
            parts.append(rearrange(self.group_encoder(moving), "(b g) c h w -> b c g h w", g=groups))
        mean, log_variance = torch.cat(parts, dim=2).chunk(2, dim=1)
        return mean, log_variance.clamp(-20, 10)

    def _decode(self, latents: Tensor, first_frame: Tensor | None) -> Tensor:
        stride = self.config.spatial_stride
        if first_frame is None:
            first_frame = (_shuffle(self.frame_decoder(latents[:, :, 0])[:, None], stride)[:, :, 0] + 1) / 2
        first = first_frame[:, :, None]  # (B, 3, 1, H, W)
        groups = latents.shape[2] - 1
        if not groups:
            return first
        context = _unshuffle(2 * first - 1, stride).expand(-1, groups, -1, -1, -1)
        tokens = torch.cat([rearrange(latents[:, :, 1:], "b c g h w -> b g c h w"), context], dim=2).flatten(0, 1)
        change = rearrange(
            self.group_decoder(tokens),
            "(b g) (s c) h w -> b (g s) c h w",
            g=groups,
            s=self.config.temporal_stride,
        )
        return torch.cat([first, first + _shuffle(change, stride) / 2], dim=2)

    def _statistics(self, frames: int) -> tuple[Tensor, Tensor]:
        rows = [0] + [1] * (frames - 1)
        mean, std = (x[rows].T[None, :, :, None, None] for x in (self.latent_mean, self.latent_std))
        return mean, std

    def _standardise(self, latents: Tensor) -> Tensor:
        mean, std = self._statistics(latents.shape[2])
        return (latents - mean) / std


def to_float_frames(frames: Shaped[Tensor, "b _ _ _ _"]) -> Float[Tensor, "b 3 f h w"]:
    """(B, F, H, W, 3) uint8 -> (B, 3, F, H, W) float in [0, 1]; floats pass unchanged."""
    if frames.dtype != torch.uint8:
        return frames
    return rearrange(frames, "b f h w c -> b c f h w").float() / 255


def to_uint8_frames(frames: Float[Tensor, "b 3 f h w"]) -> UInt8[Tensor, "b f h w 3"]:
    """Inverse of `to_float_frames`."""
    return rearrange((frames * 255).round().clamp(0, 255).to(torch.uint8), "b c f h w -> b f h w c")


def _unshuffle(frames: Tensor, stride: int) -> Tensor:
    return rearrange(frames, "b c f (h p) (w q) -> b f (c p q) h w", p=stride, q=stride)


def _shuffle(pixels: Tensor, stride: int) -> Tensor:
    return rearrange(pixels, "b f (c p q) h w -> b c f (h p) (w q)", p=stride, q=stride)
