"""Where generated episodes start: photographs with states of their own, or of the recording that looks most alike."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from recipes.common import Pictures, load_clips
from recipes.schema import SynthesizeConfig
from recipes.start_scenes import PHOTOGRAPHS, SceneRow, Scenes, check_widths
from toolkit.base.errors import UserError, warn
from toolkit.base.progress import progress
from toolkit.base.reading import read_bytes
from toolkit.base.run import Run
from toolkit.data.canvas import Canvas, describe_cameras
from toolkit.data.clips import ClipStore
from toolkit.data.conventions import RETRAIN, Conventions
from toolkit.data.formats.lerobot_layout import check_instruction
from toolkit.data.formats.scene_table import MOST_BYTES, Columns, read_picture, read_rows
from toolkit.data.images import inner_size, letterboxed
from vag_core import Generator

TOGETHER = 16  # recorded pictures that a photograph is compared with at once
COMPARED = 50  # recorded pictures whose own nearest one is looked for


@dataclass(frozen=True)
class Photograph:
    """A row of a table: number there, state (S,) if there is one, instruction, what is noted."""

    number: int
    state: np.ndarray | None
    instruction: str
    metadata: dict[str, Any]


@dataclass
class Photographs:
    """Reads the pictures of a table's rows. others: those whose shape is not that of their camera, so far."""

    path: Path
    rows: dict[int, dict[str, Any]]
    columns: Columns
    canvas: Canvas
    others: list[str] = field(default_factory=list)

    def read(self, number: int) -> tuple[np.ndarray, bytes]:
        """A row's picture on the canvas (H, W, 3), and its files. Raises UserError that names row and column."""
        row, pictures, files = self.rows[number], dict[str, np.ndarray](), b""
        for camera, column in self.columns.cameras.items():
            where = f"{self.path}: row {number}, column '{column}'"
            picture, data = read_picture(self.path.parent, row.get(column), where)
            files += data
            place = self.canvas.places[camera][2:]  # without the bars of the camera's own pictures
            pictures[camera] = letterboxed(picture[None], place)
            if inner_size(picture.shape[:2], place) != place:
                self.others.append(f"{row[column]} {picture.shape[0]}x{picture.shape[1]}")
        return self.canvas.compose(pictures)[0], files


def photographed_scenes(config: SynthesizeConfig, run: Run, generator: Generator, canvas: Canvas, path: Path) -> Scenes:
    """A scene for each row of a table; one without a state gets that of the nearest recorded first picture.

    Raises UserError that names row and column for what is missing, cannot be read, or lies outside of the folder.
    """
    trained, shape = Conventions.of(config.checkpoint), generator.config
    if not trained.fps:
        raise UserError(f"{config.checkpoint}: names no rate and no cameras; photographs need a newer generator")
    trained.cameras_of(config.cameras)  # refuses others
    rows = read_rows(path)
    columns = Columns.of(path, rows, canvas, config.rename, trained.state_names, shape.state_dim)
    digest, found = hashlib.sha256(read_bytes(path, MOST_BYTES)), list[Photograph]()
    pictures = Photographs(path, rows, columns, canvas)
    for number, row in progress(rows.items(), description="photographs", total=len(rows)):
        where = f"{path}: row {number}"
        digest.update(pictures.read(number)[1])
        instruction, state = columns.instruction_of(row, where), columns.state_of(row, where)
        check_instruction(instruction, where)
        note = {PHOTOGRAPHS: ", ".join(f"{camera}: {row[column]}" for camera, column in columns.cameras.items())}
        note |= {} if state is None else {"state_from": "the table"}
        found.append(Photograph(number, state, instruction, note))
    run.add_data(path, digest.hexdigest()[:16], len(found))
    if others := pictures.others:
        warn(
            f"{path}: {len(others)} pictures have another shape than the cameras ({describe_cameras(canvas)}), such as "
            f"{others[0]}: black bars fill the rest"
        )
    warn_of_far_states(path, found, generator)
    layout: dict[str, Any] = {"fps": round(trained.fps), "robot_type": trained.robot_type or "unknown"}
    layout["state_names"] = list(trained.state_names) or [f"state_{i}" for i in range(shape.state_dim)]
    layout["action_names"] = list(trained.action_names) or [f"action_{i}" for i in range(shape.action_dim)]
    there = with_states(config, run, generator, pictures, found)

    def read(index: int) -> tuple[np.ndarray, np.ndarray, None]:
        state = there[index].state
        assert state is not None
        return pictures.read(there[index].number)[0], state, None

    return Scenes([SceneRow(i, one.instruction, one.metadata) for i, one in enumerate(there)], read, layout)


def warn_of_far_states(path: Path, photographs: Sequence[Photograph], generator: Generator) -> None:
    """Say which numbers lie further beyond those of the data than these reach, as in other units."""
    units = generator.trajectory
    low, high = (limit[units.action_dim :].cpu().numpy() for limit in (units.low, units.high))
    given = [one.state for one in photographs if one.state is not None]
    far = [state for state in given if (np.maximum(state - high, low - state) > high - low).any()]
    if far:
        k = int(np.argmax(np.maximum(far[0] - high, low - far[0]) - (high - low)))
        warn(
            f"{path}: {len(far)} of {len(given)} states lie far outside of what the generator has seen, such as "
            f"{far[0][k]:.4g} in dimension {k} ({low[k]:.4g} to {high[k]:.4g}); are the units those of the data?"
        )


def with_states(
    config: SynthesizeConfig, run: Run, generator: Generator, pictures: Photographs, photographs: Sequence[Photograph]
) -> list[Photograph]:
    """The same with states, of `states_from` where the table has none. Raises UserError where nothing has any."""
    lacking, source = sum(one.state is None for one in photographs), config.states_from
    if lacking and source is None:
        raise UserError(
            f"{config.scenes_from}: {lacking} of {len(photographs)} rows have no state; give a column 'state' with "
            f"lists of {generator.config.state_dim} numbers, or states_from=DATASET: each then takes that of the "
            "recorded episode whose first picture is nearest"
        )
    if not lacking and source is not None:
        warn(f"states_from={source} is not read: every row has a state")
    if not lacking or source is None:
        return list(photographs)
    trained = Conventions.of(config.checkpoint)
    store = load_clips(run, source, Pictures.trained_on(pictures.canvas, config, trained))
    trained.check(store, remedy=RETRAIN)
    check_widths(source, store, generator.config)
    found, distances = list[Photograph](), list[float]()
    for one in progress(photographs, description="states", total=len(photographs)):
        if one.state is None:
            episode, distance = nearest_episode(store, pictures.read(one.number)[0])
            distances.append(distance)
            note = {**one.metadata, "state_from": f"episode {episode} of {source}", "state_distance": distance}
            one = replace(one, state=store.states[store.episode_starts[episode]], metadata=note)
        found.append(one)
    warn(
        f"{lacking} of {len(found)} photographs have no state: each gets that of the episode of {source} whose "
        f"first picture is nearest, {np.median(distances):.3g} of 255 away in the median; {beside(store)}"
    )
    return found


def nearest_episode(store: ClipStore, picture: np.ndarray, left_out: int | None = None) -> tuple[int, float]:
    """The episode whose first picture is nearest to (H, W, 3), and the root mean square of their difference."""
    errors = np.empty(store.num_episodes)
    for start in range(0, store.num_episodes, TOGETHER):
        part = slice(start, start + TOGETHER)
        difference = store.frames.take(store.episode_starts[part], axis=0).astype(np.int32) - picture
        errors[part] = np.square(difference).mean(axis=(1, 2, 3))
    if left_out is not None:
        errors[left_out] = np.inf
    episode = int(errors.argmin())
    return episode, float(np.sqrt(errors[episode]))


def beside(store: ClipStore) -> str:
    """How near recorded first pictures are to the nearest other one, in words."""
    if store.num_episodes < 2:
        return "there is no other recorded one to compare this with"
    chosen = np.unique(np.linspace(0, store.num_episodes - 1, COMPARED).round().astype(int)).tolist()
    near = [nearest_episode(store, store.frames[store.episode_starts[k]], k)[1] for k in chosen]
    return f"recorded first pictures are {np.median(near):.3g} from the nearest other one"
