"""Small 3D CNNs that turn clips into feature vectors, for distances between sets of clips.

Shapes: clips (B, F, H, W, 3) uint8 of any F >= 2; inside, x is (B, 3, 12, 64, 64) in [-1, 1]; features (B, 64).
One kind learns, without labels, on real clips that nothing else sees; the other keeps its random weights.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.base.errors import UserError
from toolkit.base.files import atomic_file
from toolkit.base.progress import progress
from toolkit.base.randomness import isolated_randomness

NUM_FRAMES, SIZE, FEATURES = 12, 64, 64
TEMPERATURE = 0.1


class ClipEncoder(nn.Module):
    """Three strided 3D convolutions and a linear map of all their outputs, so that places and times stay apart.

    Weights of a new encoder are drawn from `seed` alone; torch's own random state is left as it was.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with isolated_randomness(seed):
            self.convolutions = nn.Sequential(
                nn.Conv3d(3, 16, (3, 6, 6), (1, 4, 4), (1, 1, 1)),
                nn.ReLU(),
                nn.Conv3d(16, 32, 3, 2, 1),
                nn.GroupNorm(4, 32),
                nn.ReLU(),
                nn.Conv3d(32, 48, 3, 2, 1),
                nn.ReLU(),
            )
            self.project = nn.Linear(48 * 3 * 4 * 4, FEATURES)
            for layer in (*self.convolutions, self.project):
                if isinstance(layer, nn.Conv3d | nn.Linear):
                    nn.init.kaiming_normal_(layer.weight)
                    if layer.bias is not None:
                        nn.init.zeros_(layer.bias)
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("scale", torch.ones(FEATURES))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, 3, 12, 64, 64) in [-1, 1]. Returns features (B, 64), standardised by `standardise`."""
        x = self.convolutions(x)  # (B, 48, 3, 4, 4)
        return (self.project(x.flatten(1)) - self.mean) / self.scale

    @property
    def encoder_id(self) -> str:
        """12 hexadecimal digits of the SHA-256 of all weights: which encoder made a number."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:12]

    def standardise(self, clips: np.ndarray) -> None:
        """From now on features have mean 0 and deviation 1 on these clips. Raises ValueError as `encode_clips`."""
        self.mean.zero_()
        self.scale.fill_(1)
        features = torch.from_numpy(encode_clips(self, clips))
        self.mean.copy_(features.mean(0))
        self.scale.copy_(features.std(0, correction=0).clamp_min(1e-6))


@torch.no_grad()
def encode_clips(encoder: ClipEncoder, clips: np.ndarray, batch_size: int = 32) -> np.ndarray:
    """Features of clips (B, F, H, W, 3) uint8 as (B, 64) float32.

    Raises ValueError for another shape or type, for no clip, and for fewer than two frames.
    """
    _check(clips)
    device = encoder.mean.device
    parts = [
        encoder(network_input(clips[start : start + batch_size]).to(device)).cpu()
        for start in range(0, len(clips), batch_size)
    ]
    return torch.cat(parts).numpy()


def network_input(clips: np.ndarray) -> Tensor:
    """Clips (B, F, H, W, 3) uint8 as (B, 3, 12, 64, 64) in [-1, 1].

    In time the nearest frames are taken: blended frames would hide disorder. In space it is bilinear, antialiased.
    """
    steps = np.linspace(0, clips.shape[1] - 1, NUM_FRAMES).round().astype(int)
    frames = torch.from_numpy(np.ascontiguousarray(clips[:, steps]))
    x = rearrange(frames, "b f h w c -> (b f) c h w").float() / 127.5 - 1
    if x.shape[-2:] != (SIZE, SIZE):
        x = F.interpolate(x, (SIZE, SIZE), mode="bilinear", antialias=True)
    return rearrange(x, "(b f) c h w -> b c f h w", f=NUM_FRAMES)


def random_clip_encoders(count: int = 5, reference: np.ndarray | None = None) -> list[ClipEncoder]:
    """Encoders with the random weights of seeds 1 to `count`, standardised on `reference` clips where given.

    What they rank like the trained encoder is no accident of its training. Raises ValueError as `encode_clips`.
    """
    encoders = [ClipEncoder(seed).eval() for seed in range(1, count + 1)]
    if reference is not None:
        for encoder in encoders:
            encoder.standardise(reference)
    return encoders


def train_clip_encoder(clips: np.ndarray, steps: int = 150, seed: int = 0, batch_size: int = 12) -> ClipEncoder:
    """Learn to tell clips apart, and each from itself reversed, shuffled, frozen and coarsened.

    clips: (B, F, H, W, 3) uint8, real and used for nothing else. The loss is InfoNCE (van den Oord et al. 2018,
    arXiv 1807.03748, eq. 4) between two views of a clip, cropped in time and shifted in space, whose negatives are
    the other clips and all clips in wrong order (a free label: Misra et al. 2016, arXiv 1603.08561), standing still,
    and at half the resolution. The same clips and seed give the same weights on one machine. Features are
    standardised on `clips`. Raises ValueError as `encode_clips`, and for fewer than two clips.
    """
    _check(clips)
    if len(clips) < 2:
        raise ValueError("train_clip_encoder: one clip cannot be told from others; give at least two")
    encoder, rng = ClipEncoder(seed), np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=max(steps, 2))
    size = min(batch_size, len(clips))
    for _ in progress(range(steps), description="clip encoder", unit="step"):
        chosen = clips[rng.permutation(len(clips))[:size]]
        anchors, positives = (network_input(_view(chosen, rng)) for _ in range(2))
        # One pass a kind of clip: CPU caches like small batches.
        keys = [encoder(x) for x in (positives, *_damaged(positives, rng))]
        loss = info_nce(encoder(anchors), torch.cat(keys))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    encoder.eval().requires_grad_(False)
    encoder.standardise(clips)
    return encoder


def info_nce(anchors: Tensor, keys: Tensor) -> Tensor:
    """Cross-entropy of finding key i for anchor i among all keys, by cosine over temperature 0.1.

    anchors: (B, D); keys: (K, D) with K >= B, of which the first B are the positives. Returns ().
    """
    logits = F.normalize(anchors, dim=-1) @ F.normalize(keys, dim=-1).T / TEMPERATURE  # (B, K)
    return F.cross_entropy(logits, torch.arange(len(anchors), device=anchors.device))


def save_clip_encoder(encoder: ClipEncoder, path: str | Path) -> None:
    """Write the weights as safetensors, under the final name only when complete."""
    with atomic_file(path) as temporary:
        save_file({name: tensor.cpu().contiguous() for name, tensor in encoder.state_dict().items()}, temporary)


def load_clip_encoder(path: str | Path) -> ClipEncoder:
    """The encoder that `save_clip_encoder` wrote, with the same `encoder_id`.

    Raises UserError if the file is missing, damaged, or holds other weights.
    """
    encoder = ClipEncoder()
    try:
        encoder.load_state_dict(load_file(path), strict=True)
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not the weights of a clip encoder ({reason}); train it again") from error
    return encoder.eval().requires_grad_(False)


def _view(clips: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each clip cut to at least 80 % of its frames and shifted by up to 1/16 of its sides; the border repeats."""
    length, height, width = clips.shape[1:4]
    views = []
    for clip in clips:
        kept = int(rng.integers(max(2, round(0.8 * length)), length + 1))
        first = int(rng.integers(length - kept + 1))
        steps = first + np.linspace(0, kept - 1, length).round().astype(int)
        rows, columns = (
            np.clip(np.arange(side) + rng.integers(-(side // 16), side // 16 + 1), 0, side - 1)
            for side in (height, width)
        )
        views.append(clip[steps][:, rows][:, :, columns])
    return np.stack(views)


def _damaged(x: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x (B, 3, T, H, W) reversed, shuffled, frozen at a random frame, and at half the resolution."""
    length = x.shape[2]
    shuffled = torch.from_numpy(rng.permutation(length))
    frozen = torch.full((length,), int(rng.integers(length)))
    coarse = F.interpolate(F.avg_pool3d(x, (1, 2, 2)), x.shape[2:], mode="trilinear")
    return x.flip(2), x[:, :, shuffled], x[:, :, frozen], coarse


def _check(clips: np.ndarray) -> None:
    if clips.ndim != 5 or clips.shape[-1] != 3 or clips.dtype != np.uint8 or not len(clips) or clips.shape[1] < 2:
        raise ValueError(
            f"clips: expected (B, F, H, W, 3) uint8 with B >= 1 and F >= 2, got {clips.shape} {clips.dtype}"
        )
