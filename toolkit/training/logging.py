"""Progress bars with an ETA and TensorBoard scalars."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm


def progress(items: Iterable[Any] | None = None, *, description: str, total: int | None = None, **options: Any) -> tqdm:
    """A tqdm bar with an ETA; $VAG_PROGRESS_POSITION gives parallel processes a line each."""
    position = int(os.environ.get("VAG_PROGRESS_POSITION", "0"))
    return tqdm(items, desc=description, total=total, position=position, mininterval=1.0, dynamic_ncols=True, **options)


class ScalarLog:
    """TensorBoard writer that starts again at `first_step` after a resume."""

    def __init__(self, directory: Path, first_step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(directory), purge_step=first_step or None)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def video(self, step: int, name: str, frames: np.ndarray, fps: float) -> None:
        """frames: (B, F, H, W, 3) uint8, shown as one row of sample videos (GIF summaries)."""
        picture = np.concatenate(list(frames), axis=2)  # (F, H, B * W, 3)
        self.writer.add_image(f"{name}/last_frame", picture[-1], step, dataformats="HWC")
        try:
            self.writer.add_video(name, picture.transpose(0, 3, 1, 2)[None], step, fps=fps)
        except (ImportError, AttributeError, TypeError):  # torch's GIF writer needs moviepy 1
            pass

    def close(self) -> None:
        self.writer.close()
