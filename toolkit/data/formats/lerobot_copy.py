"""In place of LeRobot's encoder: videos of a source that are copied, since nothing about their pictures changes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Copies = Callable[[str], Callable[[Path], None]]


class CopyingEncoder:
    """What LeRobot 0.6.1 asks of its streaming encoder. Pictures only count for the statistics."""

    def __init__(self, copies: Copies) -> None:
        self.copies = copies
        self._folder = Path()
        self._statistics: dict[str, Any] = {}

    def start_episode(self, video_keys: Sequence[str], temp_dir: Path, depth_video_keys: Any = None) -> None:
        from lerobot.datasets import compute_stats

        self._folder = temp_dir
        self._statistics = {key: compute_stats.RunningQuantileStats() for key in video_keys}

    def feed_frame(self, video_key: str, image: np.ndarray) -> None:
        from lerobot.datasets.compute_stats import auto_downsample_height_width

        small = auto_downsample_height_width(image.transpose(2, 0, 1))
        self._statistics[video_key].update(small.transpose(1, 2, 0).reshape(-1, len(small)))

    def finish_episode(self) -> dict[str, tuple[Path, dict[str, Any]]]:
        found = {}
        for key, statistics in self._statistics.items():
            path = Path(tempfile.mkdtemp(dir=self._folder)) / "copied.mp4"
            self.copies(key)(path)
            found[key] = path, statistics.get_statistics()
        return found

    def cancel_episode(self) -> None:
        self._statistics = {}

    close = cancel_episode
