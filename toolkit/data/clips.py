"""The clip file: a dataset decoded once, memory-mapped, and the windows that training draws from it.

One HDF5 file with contiguous arrays; its frames are mapped, not read, so a window costs one memory copy and
a file larger than memory works. It needs neither LeRobot nor a video decoder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from toolkit.data.schema import ACTION, ACTION_IS_PAD, IMAGE, STATE, TASK, Episode
from toolkit.errors import UserError

ARRAYS = ("frames", "states", "actions", "episode_starts", "episode_lengths", "episode_tasks")


@dataclass
class ClipStore:
    """frames (N, H, W, 3) uint8, states (N, S), actions (N, A) float32; episode arrays (E,) int64."""

    path: Path
    frames: np.ndarray
    states: np.ndarray
    actions: np.ndarray
    episode_starts: np.ndarray
    episode_lengths: np.ndarray
    episode_tasks: np.ndarray
    tasks: list[str]
    metadata: list[dict[str, Any]]
    fps: float
    source_id: str

    @classmethod
    def open(cls, path: str | Path) -> ClipStore:
        """Map a clip file. Raises UserError if it is missing, truncated, or lacks a key."""
        path = Path(path)
        if not path.is_file():
            raise UserError(f"{path}: clip file not found")
        arrays: dict[str, np.ndarray] = {}
        try:
            with h5py.File(path, "r") as file:
                for name in ARRAYS:
                    if name not in file:
                        raise UserError(f"{path}: no array '{name}'; expected a clip file with {', '.join(ARRAYS)}")
                    data = file[name]
                    offset = data.id.get_offset()
                    if offset is None or data.size == 0:
                        raise UserError(f"{path}: array '{name}' is empty or not contiguous; build the clip file again")
                    if offset + data.nbytes > path.stat().st_size:
                        raise UserError(f"{path}: truncated inside '{name}'; delete it to build it again")
                    arrays[name] = np.memmap(path, data.dtype, "r", offset, data.shape)
                attributes = {key: file.attrs[key] for key in ("tasks", "metadata", "fps", "source_id")}
        except (OSError, KeyError) as error:
            raise UserError(f"{path}: not a complete clip file ({error}); delete it to build it again") from error
        for name in ("states", "actions"):
            if len(arrays[name]) != len(arrays["frames"]):
                raise UserError(f"{path}: {len(arrays[name])} rows of '{name}', {len(arrays['frames'])} frames")
            if not np.isfinite(arrays[name]).all():
                row = int(np.argmax(~np.isfinite(arrays[name]).all(axis=1)))
                episode = int(np.searchsorted(arrays["episode_starts"], row, side="right")) - 1
                raise UserError(f"{path}: '{name}' holds NaN or infinity (episode {episode}); remove that episode")
        return cls(
            path,
            **arrays,
            tasks=json.loads(attributes["tasks"]),
            metadata=json.loads(attributes["metadata"]),
            fps=float(attributes["fps"]),
            source_id=str(attributes["source_id"]),
        )

    @property
    def num_episodes(self) -> int:
        return len(self.episode_starts)

    @property
    def image_size(self) -> int:
        return self.frames.shape[1]

    def instruction(self, episode: int) -> str:
        return self.tasks[int(self.episode_tasks[episode])]

    def generator_batch(
        self, episodes: np.ndarray, starts: np.ndarray, num_frames: int, with_frames: bool = True
    ) -> dict[str, Any]:
        """Windows of `num_frames` frames and the actions between them; past the end the last row repeats.

        episodes, starts: (B,), a start counts from the episode's first row. Returns frames (B, F, H, W, 3)
        uint8, states (B, F, S), actions (B, F-1, A), is_pad (B, F-1) bool, instruction (B strings).
        """
        steps = starts[:, None] + np.arange(num_frames)
        last = self.episode_lengths[episodes][:, None] - 1
        rows = self.episode_starts[episodes][:, None] + np.minimum(steps, last)
        return {
            **({"frames": self.frames[rows]} if with_frames else {}),
            "states": self.states[rows],
            "actions": self.actions[rows[:, :-1]],
            "is_pad": steps[:, 1:] > last,
            "instruction": [self.instruction(e) for e in episodes],
        }

    def policy_batch(self, episodes: np.ndarray, steps: np.ndarray, horizon: int) -> dict[str, Any]:
        """One observation and the next `horizon` actions per sample, in LeRobot's keys.

        Returns observation.image (B, 3, H, W) float32 in [0, 1], observation.state (B, S), action (B, T, A),
        action_is_pad (B, T), task (B strings).
        """
        ahead = steps[:, None] + np.arange(horizon)
        last = self.episode_lengths[episodes][:, None] - 1
        first = self.episode_starts[episodes]
        images = self.frames[first + steps].astype(np.float32).transpose(0, 3, 1, 2) / 255
        return {
            IMAGE: images,
            STATE: self.states[first + steps],
            ACTION: self.actions[first[:, None] + np.minimum(ahead, last)],
            ACTION_IS_PAD: ahead > last,
            TASK: [self.instruction(e) for e in episodes],
        }


def write_clips(path: Path, episodes: Iterable[Episode], total_frames: int, fps: float, source_id: str) -> None:
    """Stream episodes into a clip file of `total_frames` rows; written under a temporary name, then renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    starts, lengths, tasks, metadata, row = [], [], [], [], 0
    try:
        with h5py.File(temporary, "w") as file:
            for episode in episodes:
                if not row:
                    for name, values in (
                        ("frames", episode.images),
                        ("states", episode.states),
                        ("actions", episode.actions),
                    ):
                        file.create_dataset(name, (total_frames, *values.shape[1:]), values.dtype)
                stop = row + len(episode)
                file["frames"][row:stop] = episode.images
                file["states"][row:stop] = episode.states
                file["actions"][row:stop] = episode.actions
                starts.append(row)
                lengths.append(len(episode))
                tasks.append(episode.task)
                metadata.append({k: v.item() if hasattr(v, "item") else v for k, v in episode.metadata.items()})
                row = stop
            if row != total_frames or not row:
                raise UserError(f"{path}: source has {row} frames; its metadata says {total_frames}")
            names = sorted(set(tasks))
            file["episode_starts"] = np.array(starts)
            file["episode_lengths"] = np.array(lengths)
            file["episode_tasks"] = np.array([names.index(task) for task in tasks])
            file.attrs.update(tasks=json.dumps(names), metadata=json.dumps(metadata), fps=fps, source_id=source_id)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
