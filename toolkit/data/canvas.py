"""Pictures of several cameras side by side: each letterboxed into a cell of its own, and taken out again.

Cells are equal, row by row, in as square a grid as there is: one camera fills the canvas, two stand beside each other,
three or four make 2x2, as in DreamGen (arXiv 2505.12705). What no picture covers is black. Sizes are (height, width).
For policies, cameras may keep sizes of their own: each then stands in the top left corner of its cell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from toolkit.base.errors import UserError
from toolkit.data.episode import IMAGE
from toolkit.data.images import inner_size, letterboxed, resized

MOST_CAMERAS = 16
MOST_PIXELS = 8192  # a side
Size = tuple[int, int]


@dataclass(frozen=True)
class Canvas:
    """cameras: (height, width) of the pictures as recorded, by feature key, in the order of their cells; cell: (height,
    width) of one on the canvas; own: of each camera, where it fills only a part of its cell."""

    cameras: Mapping[str, tuple[int, int]]
    cell: tuple[int, int]
    own: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def sized(cls, cameras: Mapping[str, tuple[int, int]], size: Size | Mapping[str, Size] | None) -> Canvas:
        """With one size for all cameras, one for each, or (None) the recorded ones."""
        chosen = size if isinstance(size, Mapping) else dict.fromkeys(cameras, size)
        sizes = {camera: chosen.get(camera) or recorded for camera, recorded in cameras.items()}
        cell = max(height for height, _ in sizes.values()), max(width for _, width in sizes.values())
        return cls(cameras, cell, sizes if set(sizes.values()) != {cell} else {})

    @classmethod
    def single(cls, size: Sequence[int], camera: str = IMAGE) -> Canvas:
        """One picture that fills it."""
        height, width = map(int, size)
        return cls({camera: (height, width)}, (height, width))

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of cells."""
        columns = math.ceil(math.sqrt(len(self.cameras)))
        return math.ceil(len(self.cameras) / columns), columns

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the whole."""
        return self.grid[0] * self.cell[0], self.grid[1] * self.cell[1]

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """(height, width) that `cells` gives of each camera."""
        return {camera: self.own.get(camera, self.cell) for camera in self.cameras}

    @property
    def places(self) -> dict[str, tuple[int, int, int, int]]:
        """By camera where its picture stands: top, left, height, width, without the bars."""
        found = {}
        for index, (camera, size) in enumerate(self.cameras.items()):
            row, column = divmod(index, self.grid[1])
            whole = self.sizes[camera]
            height, width = inner_size(size, whole)
            top, left = (whole[0] - height) // 2, (whole[1] - width) // 2
            found[camera] = (row * self.cell[0] + top, column * self.cell[1] + left, height, width)
        return found

    @property
    def description(self) -> str:
        """What it shows, in words for an instruction, as in DreamGen; nothing of a single camera."""
        rows, columns = self.grid
        if len(self.cameras) == 1:
            return ""
        down, across = (
            {1: [""], 2: [low, high], 3: [low, "middle", high]}.get(count, [f"{name} {k + 1}" for k in range(count)])
            for count, name, low, high in ((rows, "row", "top", "bottom"), (columns, "column", "left", "right"))
        )
        names = [f"{camera.rsplit('.', 1)[-1]} camera" for camera in self.cameras]
        names += ["black"] * (rows * columns - len(names))
        places = [f"{row} {column}".strip() for row in down for column in across]
        return "multi-view video: " + ", ".join(f"{place}: {name}" for place, name in zip(places, names, strict=True))

    def compose(self, pictures: Mapping[str, np.ndarray]) -> np.ndarray:
        """Pictures (T, H, W, 3) uint8 by camera, of any size, as canvases (T, *size, 3)."""
        cells = [letterboxed(pictures[camera], size) for camera, size in self.sizes.items()]
        if len(cells) == 1:
            return cells[0]
        canvas = np.zeros((len(cells[0]), *self.size, 3), np.uint8)
        for cell, part in zip(cells, self._cells(canvas), strict=True):
            part[...] = cell
        return canvas

    def cells(self, canvases: np.ndarray) -> dict[str, np.ndarray]:
        """Canvases (..., H, W, C) as one picture for each camera, (..., *size, C), with its bars."""
        return dict(zip(self.cameras, self._cells(canvases), strict=True))

    def _cells(self, canvases: np.ndarray) -> list[np.ndarray]:
        (height, width), columns = self.cell, self.grid[1]
        corners = [divmod(index, columns) for index in range(len(self.cameras))]
        return [
            canvases[..., row * height : row * height + own[0], column * width : column * width + own[1], :]
            for (row, column), own in zip(corners, self.sizes.values(), strict=True)
        ]

    def take_apart(self, canvases: np.ndarray) -> dict[str, np.ndarray]:
        """Inverse of `compose`, but for what resizing loses: (T, H, W, 3) by camera at the recorded sizes."""
        return {
            camera: resized(canvases[:, top : top + height, left : left + width], self.cameras[camera])
            for camera, (top, left, height, width) in self.places.items()
        }

    def renamed(self, names: Mapping[str, str]) -> Canvas:
        """The same under other keys."""
        cameras, own = (
            {names.get(camera, camera): size for camera, size in sizes.items()} for sizes in (self.cameras, self.own)
        )
        return replace(self, cameras=cameras, own=own)

    def to_dict(self) -> dict[str, Any]:
        cameras, own = ({camera: list(size) for camera, size in sizes.items()} for sizes in (self.cameras, self.own))
        return {"cameras": cameras, "cell": list(self.cell), **({"own": own} if own else {})}

    @classmethod
    def from_dict(cls, values: Any) -> Canvas:
        """Inverse of `to_dict`. Raises ValueError for what no canvas can be."""
        cameras = values.get("cameras") if isinstance(values, dict) else None
        if not isinstance(cameras, dict) or not 0 < len(cameras) <= MOST_CAMERAS:
            raise ValueError(f"cameras: expected 1 to {MOST_CAMERAS}, with the height and width of each")
        cell, own = _checked(values.get("cell")), values.get("own", {})
        if not isinstance(own, dict) or (own and own.keys() != cameras.keys()):
            raise ValueError("own: expected a height and a width for each camera")
        sizes = {camera: _checked(own[camera], camera) for camera in cameras if own}
        if any(size[0] > cell[0] or size[1] > cell[1] for size in sizes.values()):
            raise ValueError("own: a camera is larger than its cell")
        return cls({camera: _checked(size, camera) for camera, size in cameras.items()}, cell, sizes)


def _checked(size: Any, name: str = "cell") -> tuple[int, int]:
    fits = isinstance(size, list) and len(size) == 2 and all(type(n) is int and 0 < n <= MOST_PIXELS for n in size)
    if not fits:
        raise ValueError(f"{name[:100]}: expected a height and a width")
    return size[0], size[1]


def describe_cameras(canvas: Canvas) -> str:
    """Cameras and their sizes, for messages."""
    return ", ".join(f"{camera} {height}x{width}" for camera, (height, width) in canvas.cameras.items())


def choose_cameras(
    found: Sequence[str], wanted: Sequence[str], names: Mapping[str, str], source: str
) -> dict[str, str]:
    """Of the cameras that a dataset has, those that are wanted (all where none is named): key there, by key here.

    names: other keys for cameras of the dataset. Raises UserError for a camera that is missing, with what would help.
    """
    here = {names.get(camera, camera): camera for camera in found}
    if not here:
        raise UserError(f"{source}: no camera; expected at least one feature of pictures with three colours")
    if len(here) < len(found):
        raise UserError(f"{source}: rename={{{_map(names)}}} gives two of its cameras one name: {', '.join(found)}")
    for camera in wanted:
        if camera not in here:
            spare = next((other for other in here if other not in wanted), next(iter(here)))
            raise UserError(
                f"{source}: no camera '{camera}'; it has {', '.join(here)}. Choose cameras=[...] that it has, or say "
                f"which one is meant, such as rename={{{here[spare]}: {camera}}}"
            )
    if len(set(wanted)) < len(wanted):
        raise UserError(f"cameras=[{', '.join(wanted)}]: one is named twice")
    if len(wanted or here) > MOST_CAMERAS:
        raise UserError(f"{source}: {len(here)} cameras; at most {MOST_CAMERAS} are taken: cameras=[...]")
    return {camera: here[camera] for camera in wanted or here}


def _map(names: Mapping[str, str]) -> str:
    return ", ".join(f"{old}: {new}" for old, new in names.items())
