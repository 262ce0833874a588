"""Stable Video Diffusion on recorded scenes: the first picture of each in, a video of the same window out, no actions.

F: frames of a window, H, W: its pictures as the generators see them; N, height, width: what the model itself makes.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from recipes.common import file_id, user_errors
from recipes.schema import EvaluateGeneratorConfig, SvdConfig
from recipes.start_scenes import scene_seeds
from toolkit.base.errors import UserError, warn
from toolkit.base.progress import progress
from toolkit.base.run import Run
from toolkit.data.batches import GeneratorClips
from toolkit.data.canvas import Canvas
from toolkit.data.episode import IMAGE
from toolkit.data.images import as_size
from vag_core.backbones.svd import Svd, SvdDirectory, load_svd, locate_svd, nearest_frames, told_fps


def find_svd(path: str, image_size: Any) -> tuple[SvdDirectory, tuple[int, int]]:
    """The model, checked, and the (height, width) that it shall make. Raises UserError; nothing is loaded.

    image_size: as the option `svd.image_size`.
    """
    with user_errors():
        directory = locate_svd(path)
        size = directory.size if image_size is None else as_size(image_size, "svd.image_size")
        directory.check_size(size)
    return directory, size


@dataclass
class SvdVideos:
    """identity: of the weights, 16 hex digits."""

    model: Svd
    size: tuple[int, int]
    config: SvdConfig
    identity: str

    @classmethod
    def open(cls, config: EvaluateGeneratorConfig, run: Run, device: str) -> SvdVideos | None:
        """The model that a config names, entered in the run record, if it names one."""
        if config.svd.path is None:
            return None
        if config.given != "nothing":
            raise UserError(f"evaluate-generator: given={config.given} with svd.path: it takes the first picture alone")
        directory, size = find_svd(config.svd.path, config.svd.image_size)
        files = "".join(map(file_id, directory.weights))
        identity = hashlib.sha256(files.encode()).hexdigest()[:16]
        run.add_data(config.svd.path, identity)
        with user_errors():
            return cls(load_svd(config.svd.path, device), size, config.svd, identity)

    def sample_all(
        self, seed: int, clips: GeneratorClips, episodes: np.ndarray
    ) -> tuple[dict[str, np.ndarray], float, int]:
        """frames (E, F, H, W, 3) of the first window of each episode; seconds in all, and network evaluations of each.

        The noise of a video depends on the seed and the scene alone, as that of generators does.
        """
        seeds = scene_seeds(seed, clips.store.metadata)
        rate = clips.store.fps / clips.frame_stride
        made, seconds = list[np.ndarray](), 0.0
        self.warn_of_end(clips.num_frames, rate)
        for episode in progress(episodes, description="sample", total=len(episodes), unit="video"):
            first = clips.window(np.array([episode]))["frames"][0, 0]
            began = time.perf_counter()
            made.append(self.video(first, clips.num_frames, rate, seeds[episode]))
            seconds += time.perf_counter() - began
        return {"frames": np.stack(made)}, seconds, 2 * self.config.num_inference_steps  # with the picture and without

    def video(self, first: np.ndarray, num_frames: int, rate: float, seed: int) -> np.ndarray:
        """(F, H, W, 3) uint8 at `rate` [1/s] that begins with a picture (H, W, 3) uint8.

        The picture is letterboxed into the size that the model makes, and its frames are taken out of the bars again.
        Each frame is the one of the model's that is nearest in time; the first is the picture itself.
        """
        places = Canvas({IMAGE: (first.shape[0], first.shape[1])}, self.size)
        fps = self.fps(num_frames, rate)
        with user_errors():
            made = self.model.sample(
                places.compose({IMAGE: first[None]})[0],
                torch.Generator().manual_seed(seed),
                num_inference_steps=self.config.num_inference_steps,
                fps=fps,
                motion_bucket_id=self.config.motion_bucket_id,
                decode_chunk_size=self.config.decode_chunk_size,
            )
        frames = places.take_apart(made)[IMAGE][nearest_frames(num_frames, rate, len(made), fps)]
        frames[0] = first
        return frames

    def fps(self, num_frames: int, rate: float) -> int:
        """Pictures a second that the model is told."""
        made = self.model.directory.num_frames
        return told_fps(num_frames, rate, made) if self.config.fps is None else self.config.fps

    def warn_of_end(self, num_frames: int, rate: float) -> None:
        """Warn if the model's frames end before the window does."""
        made, fps = self.model.directory.num_frames, self.fps(num_frames, rate)
        if (asked := (num_frames - 1) / rate) > made / fps:
            warn(
                f"{self.config.path}: {made} frames at svd.fps={fps} are {made / fps:.1f} s of the window's "
                f"{asked:.1f} s; the last of them is repeated"
            )
