"""Pictures of a dataset as PNG: histograms of every dimension, and a contact sheet of frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from toolkit.base.files import atomic_file
from toolkit.reporting.media import SEPARATOR, grid, write_image

COLUMNS = 4  # of histograms
BINS = 60
TILE = 96  # pixels: a frame on the contact sheet is enlarged to at least this, or reduced to twice this
LETTERS = 200  # more than fit; Pillow refuses a million
BAND = 16  # pixels for the instruction


def write_histograms(path: str | Path, values: np.ndarray, names: Sequence[str], title: str) -> None:
    """Write one histogram per dimension of (N, D) numbers; numbers that are not finite are left out.

    The axes of counts are logarithmic: a few outliers, or a pile at the end of the range, stay visible.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    from toolkit.reporting.plots import INK, LINE, MUTED, PALETTE, SETTINGS

    count = values.shape[1]
    rows, columns = math.ceil(count / COLUMNS), min(count, COLUMNS)
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(2.9 * columns, 0.5 + 1.75 * rows), facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(title, color=INK, weight="bold", fontsize=11)
        for index in range(count):
            axes = figure.add_subplot(rows, columns, index + 1)
            numbers = values[np.isfinite(values[:, index]), index].astype(np.float64)
            if len(numbers):
                axes.hist(numbers, bins=BINS if np.ptp(numbers) > 0 else 1, color=PALETTE[0], log=True)
            axes.set_title(_short(names[index], 28), fontsize=9.5, color=INK)
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.tick_params(labelsize=8, colors=MUTED)
            axes.grid(axis="y", color=LINE)
        with atomic_file(path) as temporary:
            figure.savefig(temporary, format="png", dpi=110)


def write_contact_sheet(path: str | Path, strips: Sequence[tuple[str, Sequence[np.ndarray]]]) -> None:
    """Write one strip per (text, pictures of one size), the text above it, in two columns.

    Raises ValueError for no strips.
    """
    tiles = [_labelled(text, pictures) for text, pictures in strips]
    height, width = (max(tile.shape[axis] for tile in tiles) for axis in (0, 1))
    padded = []
    for tile in tiles:
        canvas = np.full((1, height, width, 3), SEPARATOR, np.uint8)
        canvas[0, : tile.shape[0], : tile.shape[1]] = tile
        padded.append(canvas)
    write_image(path, grid(padded, columns=2, gap=6)[0])


def _labelled(text: str, pictures: Sequence[np.ndarray]) -> np.ndarray:
    row = np.concatenate([_fitted(picture) for picture in pictures], axis=1)
    band = Image.new("RGB", (row.shape[1], BAND), (24, 24, 24))
    font = ImageFont.load_default(11)
    ImageDraw.Draw(band).text((4, BAND // 2), _short(text, LETTERS), fill=(255, 255, 255), font=font, anchor="lm")
    return np.concatenate([np.asarray(band), row])


def _fitted(picture: np.ndarray) -> np.ndarray:
    """Enlarged by a whole factor, or reduced, to between `TILE` and twice that in height."""
    height, width = picture.shape[:2]
    if height > 2 * TILE:
        size = max(1, round(width * 2 * TILE / height)), 2 * TILE
        return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))
    scale = math.ceil(TILE / height)
    return picture.repeat(scale, 0).repeat(scale, 1)


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
