"""Cameras side by side: letterboxed, never stretched, and the same when they are taken apart again."""

import numpy as np
import pytest

from toolkit.base.errors import UserError
from toolkit.data.canvas import Canvas, choose_cameras
from toolkit.data.images import as_size, inner_size, letterboxed

TOP, WRIST = "observation.images.top", "observation.images.wrist"


def pictures(*size: int, steps: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 256, (steps, *size, 3), dtype=np.uint8)


@pytest.mark.parametrize(("cameras", "grid"), [(1, (1, 1)), (2, (1, 2)), (3, (2, 2)), (4, (2, 2)), (5, (2, 3))])
def test_pictures_of_the_size_of_a_cell_come_back_as_they_were(cameras: int, grid: tuple[int, int]) -> None:
    shown = {f"observation.images.{k}": pictures(8, 12, seed=k) for k in range(cameras)}
    canvas = Canvas(dict.fromkeys(shown, (8, 12)), (8, 12))
    made = canvas.compose(shown)
    assert canvas.grid == grid
    assert made.shape == (3, *canvas.size, 3) == (3, 8 * grid[0], 12 * grid[1], 3)
    for camera, part in canvas.take_apart(made).items():
        np.testing.assert_array_equal(part, shown[camera])
    for camera, part in canvas.cells(made).items():
        np.testing.assert_array_equal(part, shown[camera])
    assert made.any(-1).sum() == 3 * cameras * 8 * 12  # cells that no camera fills are black


def test_a_picture_of_another_shape_gets_bars_and_loses_them_again() -> None:
    canvas = Canvas({TOP: (48, 64), WRIST: (64, 32)}, (32, 32))
    assert canvas.places == {TOP: (4, 0, 24, 32), WRIST: (0, 32 + 8, 32, 16)}
    blocks = {
        TOP: pictures(24, 32).repeat(2, 1).repeat(2, 2),
        WRIST: pictures(32, 16, seed=1).repeat(2, 1).repeat(2, 2),
    }
    made = canvas.compose(blocks)
    assert not made[:, :4, :32].any()
    assert not made[:, 28:, :32].any()
    np.testing.assert_array_equal(made[:, 4:28, :32], blocks[TOP][:, ::2, ::2])
    apart = canvas.take_apart(made)
    assert {camera: part.shape for camera, part in apart.items()} == {TOP: (3, 48, 64, 3), WRIST: (3, 64, 32, 3)}
    assert np.abs(apart[TOP].astype(int) - blocks[TOP])[:, ::2, ::2].mean() < 64  # enlarged smoothly, in its place


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (1, 999), (64, 64), (37, 53)])
def test_nothing_is_stretched(size: tuple[int, int]) -> None:
    height, width = inner_size(size, (64, 96))
    assert height <= 64
    assert width <= 96
    assert height == 64 or width == 96
    scale = min(64 / size[0], 96 / size[1])
    assert abs(height - size[0] * scale) <= 1
    assert abs(width - size[1] * scale) <= 1


def test_a_square_is_resized_as_it_was_before_there_were_bars() -> None:
    picture = pictures(128, 128)
    means = picture.reshape(3, 64, 2, 64, 2, 3).mean((2, 4))
    assert np.abs(letterboxed(picture, (64, 64)) - means).max() <= 1


def test_what_a_file_says_is_read_again_or_refused() -> None:
    canvas = Canvas({TOP: (480, 640), WRIST: (480, 640)}, (48, 64))
    assert Canvas.from_dict(canvas.to_dict()) == canvas
    for damaged in (
        None,
        {},
        {"cameras": {}, "cell": [8, 8]},
        {"cameras": {TOP: [8]}, "cell": [8, 8]},
        {"cameras": {TOP: [8, 8]}, "cell": [8, -8]},
        {"cameras": {TOP: [8, 1e9]}, "cell": [8, 8]},
        {"cameras": {str(k): [8, 8] for k in range(99)}, "cell": [8, 8]},
    ):
        with pytest.raises(ValueError, match="expected"):
            Canvas.from_dict(damaged)


def test_cameras_are_chosen_by_name_and_a_missing_one_is_told_with_a_map() -> None:
    found = ["observation.images.cam_high", WRIST]
    assert choose_cameras(found, [], {}, "data") == {camera: camera for camera in found}
    assert choose_cameras(found, [TOP], {found[0]: TOP}, "data") == {TOP: found[0]}
    with pytest.raises(
        UserError, match=r"data: no camera 'observation.images.top'; .*rename=\{observation.images.cam_hi"
    ):
        choose_cameras(found, [WRIST, TOP], {}, "data")
    with pytest.raises(UserError, match="gives two of its cameras one name"):
        choose_cameras(found, [], {found[0]: WRIST}, "data")
    with pytest.raises(UserError, match="one is named twice"):
        choose_cameras(found, [WRIST, WRIST], {}, "data")
    with pytest.raises(UserError, match="no camera; expected at least one"):
        choose_cameras([], [], {}, "data")


@pytest.mark.parametrize("value", [0, -4, True, [4], [4, 5, 6], "64", 6.4, [4, 5.0]])
def test_a_size_that_is_none(value: object) -> None:
    assert as_size(64, "image_size") == as_size([64, 64], "image_size") == (64, 64)
    with pytest.raises(UserError, match=r"image_size=.*: expected \[height, width\]"):
        as_size(value, "image_size")


@pytest.mark.parametrize(
    ("cameras", "words"),
    [
        (1, ""),
        (2, "multi-view video: left: c0 camera, right: c1 camera"),
        (3, "multi-view video: top left: c0 camera, top right: c1 camera, bottom left: c2 camera, bottom right: black"),
        (
            10,
            "multi-view video: top column 1: c0 camera, top column 2: c1 camera, top column 3: c2 camera, top column 4",
        ),
    ],
)
def test_what_a_canvas_shows_in_words(cameras: int, words: str) -> None:
    canvas = Canvas({f"observation.images.c{k}": (8, 8) for k in range(cameras)}, (8, 8))
    assert canvas.description.startswith(words)
    assert bool(canvas.description) == bool(words)
