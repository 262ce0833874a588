"""Pictures in memory: decoding of single files, and the one way in which pictures are resized."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image

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


def encode_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """(H, W, 3) uint8 as the bytes of a JPEG file with full colour resolution, (N,) uint8."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling=0)
    return np.frombuffer(file.getvalue(), np.uint8)


def resized(images: np.ndarray, size: int) -> np.ndarray:
    """(T, H, W, 3) uint8 to (T, size, size, 3): averaged where both sides shrink, else linear in between."""
    if images.shape[1:3] == (size, size):
        return images
    box = Image.Resampling.BOX if min(images.shape[1:3]) >= size else Image.Resampling.BILINEAR
    return np.stack([np.asarray(Image.fromarray(image).resize((size, size), box)) for image in images])


def moved(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """(H, W, 3) with its content so many pixels further down and to the right; its edges are repeated."""
    height, width = image.shape[:2]
    down, right = np.arange(height) - rows, np.arange(width) - columns
    return image[np.clip(down, 0, height - 1)][:, np.clip(right, 0, width - 1)]
