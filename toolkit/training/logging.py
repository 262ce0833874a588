"""Progress bars with an ETA and TensorBoard scalars."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from toolkit.base.manifest import check_inside, note

EVENTS = "events.out.tfevents.*"


class ScalarLog:
    """TensorBoard writer that starts again at `first_step` after a resume."""

    def __init__(self, directory: Path, first_step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        check_inside(directory / EVENTS)
        before = set(directory.glob(EVENTS))
        self.writer = SummaryWriter(str(directory), purge_step=first_step or None)
        for path in set(directory.glob(EVENTS)) - before:
            note(path)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def video(self, step: int, name: str, frames: np.ndarray, fps: float) -> None:
        """Sample videos side by side as an animated GIF. frames: (B, F, H, W, 3) uint8.

        Written as TensorBoard's own image summary, since torch's `add_video` needs an old moviepy.
        """
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
        self.writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)

    def close(self) -> None:
        self.writer.close()
