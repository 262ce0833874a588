"""Pictures in memory: decoding of single files, and the one way in which pictures are resized."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

MAX_PIXELS = 2**26  # of one encoded picture; a small file can declare a huge one


def decode_picture(data: bytes) -> np.ndarray:
    """A JPEG or PNG file as (H, W, 3) uint8; bytes after its end do not count. Raises ValueError if damaged."""
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"declares {image.width}x{image.height} pixels")
        return np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow raises SyntaxError, struct.error, zlib.error, DecompressionBombError ...
        raise ValueError(f"not readable as JPEG or PNG: {error}") from error


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
