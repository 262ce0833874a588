"""What the streams of a generator read beside pictures and actions: latents of windows, vectors of instructions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from toolkit.base.progress import progress
from toolkit.data.batches import ALL, GeneratorClips, Part
from toolkit.data.cache import open_latents
from vag_core.tokenizer import VideoTokenizer, to_float_frames


def latents_of(starts: GeneratorClips, tokenizer: VideoTokenizer, device: str) -> np.ndarray:
    """Latents of the window at the start of every episode, from the cache where it has them."""
    store = starts.store

    @torch.no_grad()
    def encode() -> Iterator[np.ndarray]:
        parts = np.array_split(np.arange(store.num_episodes), -(-store.num_episodes // 8))
        for part in progress(parts, description="encode", unit="batch"):
            yield tokenizer.encode(frames_of(starts, part).to(device)).cpu().numpy()

    window = f"first {starts.num_frames} frames, {starts.frame_stride} apart"
    identity = _state_id(tokenizer)
    tokenizer.to(device)
    latents = open_latents(store, identity, window, encode)
    tokenizer.to("cpu")
    return latents


def _state_id(module: torch.nn.Module) -> str:
    """SHA-256 over all weights and their names."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def frames_of(starts: GeneratorClips, episodes: Any) -> torch.Tensor:
    """Pictures (B, 3, F, H, W) of the windows at the start of these episodes, as the tokenizer takes them."""
    return to_float_frames(torch.from_numpy(starts.window(np.asarray(episodes))["frames"]))


class EncodedInstructions:
    """Instructions of the batches of another source as the generator takes them: see `instruction_encoder`."""

    def __init__(self, source: Any, encode: Any) -> None:
        self.source, self.encode = source, encode

    def batch(self, step: int, part: Part = ALL) -> dict[str, Any]:
        batch = self.source.batch(step, part)
        return {**batch, "instruction": self.encode(batch["instruction"])}
