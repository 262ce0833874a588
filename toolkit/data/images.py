"""Pictures in memory: decoding of single files, and the one way in which pictures are resized."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from toolkit.base.errors import UserError

MAX_PIXELS = 2**26  # of one encoded picture; a small file can declare a huge one
FREE_BYTES = 2**20  # in memory, that every picture may take
MAX_EXPANSION = 2000  # times the size of the file, for what takes more; black pictures as PNG reach 1,030


def decode_picture(data: bytes) -> np.ndarray:
    """A JPEG or PNG file as (H, W, 3) uint8; bytes after its end do not count.

    Raises ValueError if it is damaged, or declares more pixels than it can hold.
    """
    try:
        with _opened(data, ("JPEG", "PNG")) as image:
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow raises SyntaxError, struct.error, zlib.error, DecompressionBombError ...
        raise ValueError(f"not readable as JPEG or PNG: {error}") from error


def decode_photograph(data: bytes) -> np.ndarray:
    """As `decode_picture`, turned the way its EXIF data say that the camera was held. Refuses 16 bits, as of depth."""
    try:
        with _opened(data, ("JPEG", "PNG")) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError("a colour has more than 8 bits")
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except Exception as error:
        raise ValueError(f"not readable as a JPEG or PNG of 8 bits: {error}") from error


def picture_size(data: bytes) -> tuple[int, int]:
    """(height, width) that a JPEG, PNG or GIF file declares. Raises ValueError as `decode_picture`."""
    try:
        with _opened(data, ("JPEG", "PNG", "GIF")) as image:
            return image.height, image.width
    except Exception as error:
        raise ValueError(f"not readable as a picture: {error}") from error


def _opened(data: bytes, formats: tuple[str, ...]) -> Image.Image:
    """A picture of which nothing but the header has been read, and whose size the file can hold."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # told below, in one line
        image = Image.open(io.BytesIO(data), formats=formats)
    pixels = image.width * image.height
    if pixels > MAX_PIXELS or 3 * pixels > max(FREE_BYTES, MAX_EXPANSION * len(data)):
        raise ValueError(f"a file of {len(data)} bytes that declares {image.width}x{image.height} pixels")
    return image


def encode_jpeg(image: np.ndarray, quality: int, subsampling: int = 0) -> np.ndarray:
    """(H, W, 3) uint8 as the bytes of a JPEG file, (N,) uint8. subsampling: 0 = full colour resolution, 2 = half."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling=subsampling)
    return np.frombuffer(file.getvalue(), np.uint8)


def resized(images: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """(T, H, W, 3) uint8 to (T, *size, 3): averaged where both sides shrink, else linear in between."""
    height, width = size
    if images.shape[1:3] == (height, width):
        return images
    shrinks = images.shape[1] >= height and images.shape[2] >= width
    box = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
    return np.stack([np.asarray(Image.fromarray(image).resize((width, height), box)) for image in images])


def inner_size(size: Sequence[int], frame: Sequence[int]) -> tuple[int, int]:
    """(height, width) of the largest picture of the shape of `size` that fits into `frame`."""
    scale = min(frame[0] / size[0], frame[1] / size[1])
    height, width = (max(1, min(limit, round(side * scale))) for side, limit in zip(size, frame, strict=True))
    return height, width


def letterboxed(images: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """(T, H, W, 3) uint8 to (T, *size, 3), never stretched: bars beside or above and below are black."""
    height, width = inner_size(images.shape[1:3], size)
    inner = resized(np.ascontiguousarray(images), (height, width))
    if (height, width) == tuple(size):
        return inner
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    framed = np.zeros((len(images), *size, 3), np.uint8)
    framed[:, top : top + height, left : left + width] = inner
    return framed


def as_size(value: Any, name: str) -> tuple[int, int]:
    """(height, width) of [height, width], or of one number for both. Raises UserError that names the option."""
    sides = [value, value] if isinstance(value, int) else list(value) if isinstance(value, Sequence) else []
    if len(sides) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides):
        raise UserError(f"{name}={value}: expected [height, width] in pixels, or one number for both")
    return sides[0], sides[1]


def moved(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """(H, W, 3) with its content so many pixels further down and to the right; its edges are repeated."""
    height, width = image.shape[:2]
    down, right = np.arange(height) - rows, np.arange(width) - columns
    return image[np.clip(down, 0, height - 1)][:, np.clip(right, 0, width - 1)]
