"""What the streams of a generator read beside pictures and actions: latents of windows, vectors or tokens of text."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from recipes.common import pick_device
from recipes.schema import TrainGeneratorConfig
from recipes.video_model import is_pretrained
from toolkit.base.progress import progress
from toolkit.data.batches import ALL, GeneratorClips, Part
from toolkit.data.latents import LatentClips, Latents, open_latents
from vag_core import Generator
from vag_core.config import FramewiseConfig, PretrainedConfig
from vag_core.tokenizer import to_float_frames

SHARD = 64  # windows of large pictures whose latents are in one file: a kill costs no more of them
STARTS = 8  # windows that begin in the course of one, where latents of several are cached


def prepared(
    config: TrainGeneratorConfig,
    clips: GeneratorClips,
    generator: Generator,
    encode: Callable[[Sequence[str]], Any],
    fixed: bool = False,
) -> Any:
    """The source of clips as training reads it: with latents that are in the cache, and instructions encoded.

    Windows from anywhere are too many to be encoded beforehand, but for a pretrained model, whose tokenizer takes
    longer: its windows begin `start_every` apart. fixed: each window is drawn again and again, as held-out ones are.
    """
    source: Any = clips
    if reads_latents(config, fixed):
        reads_frames = isinstance(config.generator.action, FramewiseConfig)
        device, half = pick_device(config.runtime), is_pretrained(config.generator)
        source = LatentClips(source, latents_of(clips, generator, device, half), reads_frames)
    if config.instruction_encoder is not None or config.name_views or is_pretrained(config.generator):
        source = EncodedInstructions(source, encode)
    return source


def reads_latents(config: TrainGeneratorConfig, fixed: bool = False) -> bool:
    """Whether clips come with their latents, encoded beforehand."""
    beforehand = fixed or not config.random_start or is_pretrained(config.generator)
    return config.generator.action.makes_video and beforehand


def start_every(config: TrainGeneratorConfig) -> int:
    """Rows from one start of a window to the next: any, or an eighth of a window where latents are cached."""
    shape = config.generator
    return max(1, shape.action_horizon // STARTS) if is_pretrained(shape) else 1


def latents_of(clips: GeneratorClips, generator: Generator, device: str, half: bool = False) -> Latents:
    """Latents of all windows that are drawn, in order, from the cache where it has them.

    half: of large pictures: one window at a time, kept as bfloat16.
    """
    counts = clips.windows_of
    episodes = np.repeat(np.arange(len(counts)), counts)
    starts = (np.arange(len(episodes)) - np.repeat(np.cumsum(counts) - counts, counts)) * clips.start_every

    tokenizer, video = generator.tokenizer, generator.config.video
    # Of a pretrained one some numbers are in its config alone.
    identity = video.base_id if isinstance(video, PretrainedConfig) else _state_id(tokenizer)

    @torch.no_grad()
    def encode(windows: np.ndarray) -> Iterator[torch.Tensor]:
        tokenizer.to(device)
        parts = np.array_split(windows, -(-len(windows) // (1 if half else 8)))
        for part in progress(parts, description="encode", unit="window" if half else "batch"):
            yield tokenizer.encode(frames_of(clips, episodes[part], starts[part]).to(device))

    window = f"{clips.num_frames} frames, {clips.frame_stride} apart, from {clips.random_start} {clips.start_every}"
    latents = open_latents(clips.store, identity, window, len(episodes), encode, size=SHARD if half else None)
    tokenizer.to("cpu")
    if device == "cuda":
        torch.cuda.empty_cache()
    return latents


def _state_id(module: torch.nn.Module) -> str:
    """SHA-256 over all weights and their names."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def frames_of(clips: GeneratorClips, episodes: Any, starts: np.ndarray | None = None) -> torch.Tensor:
    """Pictures (B, 3, F, H, W) of windows of these episodes, as the tokenizer takes them; at their starts for None."""
    return to_float_frames(torch.from_numpy(clips.window(np.asarray(episodes), starts)["frames"]))


class EncodedInstructions:
    """Instructions of the batches of another source as the generator takes them: see `instruction_encoder`."""

    def __init__(self, source: Any, encode: Any) -> None:
        self.source, self.encode = source, encode

    def batch(self, step: int, part: Part = ALL) -> dict[str, Any]:
        batch = self.source.batch(step, part)
        return {**batch, "instruction": self.encode(batch["instruction"])}
