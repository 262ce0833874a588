"""Scalars and videos of a training, through the trackers of accelerate."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image

from toolkit.base.manifest import check_inside, note

EVENTS = "events.out.tfevents.*"


class ScalarLog:
    """The tracker of a training: scalars, and videos in TensorBoard. The main process writes.

    After a resume TensorBoard forgets what came after `first_step`; its files are in `directory/tensorboard`.
    """

    def __init__(self, accelerator: Accelerator, directory: Path, first_step: int = 0) -> None:
        self.accelerator, folder = accelerator, directory / "tensorboard"
        own = {"wandb": {"name": directory.parent.name, "group": directory.name, "dir": str(directory)}}
        options: dict[str, Any] = {"tensorboard": {"purge_step": first_step + 1 if first_step else None}, **own}
        if not accelerator.is_main_process:
            return
        check_inside(folder / EVENTS)
        before = set(folder.glob(EVENTS))
        accelerator.init_trackers("tensorboard" if _board(accelerator) else "vag", init_kwargs=options)
        for path in set(folder.glob(EVENTS)) - before:
            note(path)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self.accelerator.log(values, step=step)

    def video(self, step: int, name: str, frames: np.ndarray, fps: float) -> None:
        """Sample videos side by side as an animated GIF. frames: (B, F, H, W, 3) uint8.

        Written as TensorBoard's own image summary, since torch's `add_video` needs an old moviepy. Other trackers get
        none.
        """
        if not self.accelerator.is_main_process or not _board(self.accelerator):
            return
        from tensorboard.compat.proto.summary_pb2 import Summary

        pictures = [Image.fromarray(row) for row in np.concatenate(list(frames), axis=2)]  # F x (H, B * W, 3)
        file = io.BytesIO()
        pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=1000 / fps, loop=0)
        image = Summary.Image(
            height=pictures[0].height,
            width=pictures[0].width,
            colorspace=3,
            encoded_image_string=file.getvalue(),
        )
        writer = self.accelerator.get_tracker("tensorboard", unwrap=True)
        writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)

    def close(self) -> None:
        for tracker in self.accelerator.trackers:
            tracker.finish()


def _board(accelerator: Accelerator) -> bool:
    return "tensorboard" in map(str, accelerator.log_with)
