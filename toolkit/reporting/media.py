"""Small videos and pictures for people: grids, film strips and files that every browser plays.

Legend: T frames, H x W pixels, three channels, always uint8 RGB.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image

from toolkit.base.files import atomic_file

MIN_SIDE = 640  # the longer side of a written video is at least this many pixels
MAX_BYTES = 64 * 2**20  # of a file inside a page
SEPARATOR = 96  # grey level between tiles: visible on light and on dark pages
MIME = {
    ".mp4": "video/mp4",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
}


def write_video(path: str | Path, frames: np.ndarray, fps: float) -> None:
    """Write (T, H, W, 3) uint8 as an H.264 mp4 (yuv420p), under its final name only when complete.

    Small frames are enlarged by a whole factor without smoothing, until the longer side has 640 pixels: it keeps
    them sharp on screen and hides the halved colour resolution. Odd sides grow by one repeated line.
    Raises ValueError for another shape or type, for no frames and for fps <= 0.
    """
    av.logging.set_libav_level(av.logging.PANIC)  # it tells statistics
    _check(frames)
    if fps <= 0:
        raise ValueError(f"fps is {fps}; expected a positive number")
    _, height, width, _ = frames.shape
    scale = max(1, math.ceil(MIN_SIDE / max(height, width)))
    odd = (0, height * scale % 2), (0, width * scale % 2), (0, 0)
    with (
        atomic_file(path) as temporary,
        av.open(str(temporary), "w", "mp4", {"movflags": "faststart"}) as container,
    ):
        rate = Fraction(fps).limit_denominator(1000)
        stream = container.add_stream("libx264", rate, {"crf": "18", "preset": "fast"})
        stream.height, stream.width = height * scale + odd[0][1], width * scale + odd[1][1]
        stream.pix_fmt = "yuv420p"
        # Browsers take untagged small videos for BT.601 or BT.709 as they like; the tag keeps the colours.
        stream.codec_context.colorspace = Colorspace.ITU709
        stream.codec_context.color_range = ColorRange.MPEG
        for image in frames:
            image = np.pad(image.repeat(scale, 0).repeat(scale, 1), odd, mode="edge")
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            container.mux(
                stream.encode(
                    frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
                )
            )
        container.mux(stream.encode())


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Write (H, W, 3) uint8 as PNG, under its final name only when complete. Raises ValueError otherwise."""
    _check(image[None])
    with atomic_file(path) as temporary:
        Image.fromarray(image).save(temporary, "PNG")


def grid(videos: Sequence[np.ndarray], columns: int, gap: int = 1) -> np.ndarray:
    """Tile (T_i, H, W, 3) videos row by row into one (max T_i, ...) video.

    A short video holds its last frame. `gap` pixels of grey lie between tiles; empty places are grey too.
    Raises ValueError for no videos or for different picture sizes.
    """
    for video in videos:
        _check(video)
    if not videos or columns < 1 or len({video.shape[1:] for video in videos}) > 1:
        shapes = sorted({video.shape[1:3] for video in videos})
        raise ValueError(f"grid needs videos of one picture size and columns >= 1; got {shapes}, {columns}")
    length = max(map(len, videos))
    _, height, width, _ = videos[0].shape
    columns = min(columns, len(videos))
    rows = math.ceil(len(videos) / columns)
    shape = length, rows * (height + gap) - gap, columns * (width + gap) - gap, 3
    canvas = np.full(shape, SEPARATOR, np.uint8)
    for index, video in enumerate(videos):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        canvas[:, top : top + height, left : left + width] = video[np.minimum(np.arange(length), len(video) - 1)]
    return canvas


def data_uri(path: Path, data: bytes) -> str:
    """`data` as `data:` address, of the kind that the name of its file says: one of MIME."""
    return f"data:{MIME[path.suffix.lower()]};base64,{base64.b64encode(data).decode()}"


def _check(frames: np.ndarray) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
        raise ValueError(f"expected frames (T, H, W, 3) uint8, none of them zero; got {frames.shape} {frames.dtype}")
