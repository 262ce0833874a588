"""LeRobotDataset v3 on disk: write episodes atomically, read them back in order, add episode columns.

Writing goes through LeRobot itself. Reading a whole dataset goes through Parquet and one sequential video
decode, which is far faster than LeRobot's random access and gives the same frames.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from toolkit.base import files
from toolkit.data.lerobot_info import INFO, check_features, check_inside, data_files, read_info
from toolkit.data.lerobot_stats import two_shortcuts
from toolkit.data.parquet import plausible_rows, read_data_frame, read_parquet
from toolkit.data.pictures import check_video_lengths, read_pictures
from toolkit.data.schema import ACTION, IMAGE, STATE, Episode
from toolkit.errors import UserError

VIDEO_FILE_MB = 8
MOST_LETTERS = 10_000  # of an instruction


class EpisodeWriter:
    """Context manager that writes a LeRobotDataset v3 under a temporary name and renames it when complete.

    Video is H.264 in yuv444p: 47 dB and 2.8 kB a picture on 64x64 renderings, at a tenth of a millisecond each;
    "superfast" and "veryfast" give smaller files of worse pictures, and the usual yuv420p stops at 35 dB.
    `crf=0` codes yuv444p without loss: 51 dB or more whatever the pictures show, since only the colour conversion
    rounds, where `crf=2` falls to 41 dB on small noisy ones. It takes 3 (noise) to 20 (camera) percent more bytes.
    Every key of `Episode.cameras` becomes a video feature of its own.
    Leaving the block with an exception removes what was written. Raises UserError on entering if something stands at
    the place that the open run has not written.
    """

    def __init__(
        self,
        directory: Path,
        fps: int,
        state_names: list[str],
        action_names: list[str],
        robot_type: str = "sawyer",
        crf: int = 2,
    ) -> None:
        self.directory, self.fps, self.robot_type = Path(directory), fps, robot_type
        self.state_names, self.action_names, self.crf = state_names, action_names, crf
        self.temporary = files.partial_name(self.directory)
        self.metadata: list[dict[str, Any]] = []
        self._dataset: Any = None
        self._values: dict[str, list[np.ndarray]] = {STATE: [], ACTION: []}

    def __enter__(self) -> Self:
        self._block: AbstractContextManager[None] = self._writing()
        self._block.__enter__()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._block.__exit__(kind, error, trace)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        check_writable_name(self.directory)
        with files.atomic_directory(self.directory) as temporary:
            temporary.rmdir()  # LeRobot makes it, and nothing where there is one
            try:
                yield
            except BaseException:  # the first error is the one to tell
                with suppress(Exception):
                    self._finalize()
                raise
            self._finalize()
            self._complete()

    def add(self, episode: Episode) -> None:
        """Append one episode.

        Raises UserError if a number is not finite in float32, a shape differs from the first, or the instruction is
        too long.
        """
        number = len(self.metadata)
        with np.errstate(over="ignore"):  # infinity is complained about below
            vectors = {STATE: episode.states.astype(np.float32), ACTION: episode.actions.astype(np.float32)}
        for key, values in vectors.items():
            if not np.isfinite(values).all():
                raise UserError(f"episode {number}: '{key}' holds NaN or infinity; it was not written")
        for key, value in episode.metadata.items():
            if isinstance(value, float | np.floating) and not math.isfinite(value):
                raise UserError(f"episode {number}: '{key}' is {value}; expected a finite number. It was not written")
        check_instruction(episode.task, f"episode {number}")
        cameras = {IMAGE: episode.images, **episode.cameras}
        rows: dict[str, np.ndarray] = {**cameras, **vectors}
        lengths = {key: len(part) for key, part in rows.items()}
        if set(lengths.values()) != {len(episode)} or not len(episode):
            raise UserError(f"episode {len(self.metadata)}: lengths differ or are zero: {lengths}")
        shapes = {key: part.shape[1:] for key, part in rows.items()}
        if self._dataset is None:
            self._dataset, self._shapes = self._create({key: shapes[key] for key in cameras}), shapes
        if shapes != self._shapes:
            raise UserError(f"episode {len(self.metadata)}: shapes {shapes}; the first episode has {self._shapes}")
        with two_shortcuts(), temporary_files_in(self.temporary):
            for step in range(len(episode)):
                self._dataset.add_frame({**{key: part[step] for key, part in rows.items()}, "task": episode.task})
            self._dataset.save_episode()
        self.metadata.append(episode.metadata)
        self._values[STATE].append(episode.states)
        self._values[ACTION].append(episode.actions)

    def _finalize(self) -> None:
        if self._dataset is not None:
            with temporary_files_in(self.temporary):
                self._dataset.finalize()

    def _complete(self) -> None:
        if self._dataset is None:
            raise UserError(f"{self.directory}: no episode to write; the dataset would be empty")
        keys = sorted({key for row in self.metadata for key in row})
        add_episode_columns(self.temporary, {key: [row.get(key) for row in self.metadata] for key in keys})
        self._write_global_statistics()
        files.discard(self.temporary / "images", everything=True)

    def _create(self, image_shapes: dict[str, tuple[int, ...]]) -> Any:
        import av
        import datasets
        from lerobot.configs.video import RGBEncoderConfig
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        datasets.disable_progress_bars()  # one bar of ours instead of one per episode
        av.logging.set_libav_level(av.logging.PANIC)  # it tells statistics per episode, and damage, which we tell
        vector = {"dtype": "float32"}
        features = {
            **{
                key: {"dtype": "video", "shape": shape, "names": ["height", "width", "channels"]}
                for key, shape in image_shapes.items()
            },
            STATE: {**vector, "shape": (len(self.state_names),), "names": self.state_names},
            ACTION: {**vector, "shape": (len(self.action_names),), "names": self.action_names},
        }
        dataset = LeRobotDataset.create(
            f"local/{self.directory.name}",
            fps=self.fps,
            features=features,
            root=self.temporary,
            robot_type=self.robot_type,
            rgb_encoder=RGBEncoderConfig(vcodec="h264", crf=self.crf, pix_fmt="yuv444p", preset="ultrafast"),
            streaming_encoding=True,
            encoder_threads=1,
            encoder_queue_maxsize=1_000_000,  # at its default LeRobot drops frames when the encoder falls behind
        )
        # LeRobot rewrites the latest video file with every episode; at its 200 MB that soon takes longest.
        dataset.meta.update_chunk_settings(video_files_size_in_mb=VIDEO_FILE_MB)
        return dataset

    def _write_global_statistics(self) -> None:
        """Replace the averaged per-episode quantiles, which are wrong, by quantiles of all frames."""
        path = self.temporary / "meta/stats.json"
        statistics = files.read_json(path)
        for key, parts in self._values.items():
            values = np.concatenate(parts)
            for name in [name for name in statistics[key] if name[0] == "q"]:
                statistics[key][name] = np.quantile(values, int(name[1:]) / 100, axis=0).tolist()
        check_finite(statistics, str(self.directory / "meta/stats.json"))
        files.write_json(path, statistics)


def add_episode_columns(directory: Path, columns: dict[str, list[Any]]) -> None:
    """Add or replace columns of the episode table; each file is rewritten under a temporary name, then renamed.

    Raises UserError, before anything is written, for a number that is not finite, and for a damaged table.
    """
    import pyarrow
    import pyarrow.parquet

    for name, values in columns.items():
        check_finite(values, f"{directory}: column '{name}' of the episode table")
    for path in sorted((Path(directory) / "meta/episodes").rglob("*.parquet")):
        check_inside(directory, path.relative_to(directory))
        table = read_parquet(path).to_pandas()
        for name, values in columns.items():
            table[name] = [values[int(i)] for i in table["episode_index"]]
        with files.atomic_file(path) as temporary, temporary.open("wb") as file:  # whose name may be of any letters
            pyarrow.parquet.write_table(pyarrow.Table.from_pandas(table, preserve_index=False), file)


def check_finite(value: Any, where: str) -> None:
    """Raise UserError if a number in nested lists and mappings is not finite."""
    if isinstance(value, dict):
        for key, inner in value.items():
            check_finite(inner, f"{where}: '{key}'")
    elif isinstance(value, list):
        for inner in value:
            check_finite(inner, where)
    elif isinstance(value, float | np.floating) and not math.isfinite(value):
        raise UserError(f"{where} is {value}; expected finite numbers. It was not written")


def check_instruction(text: str, where: str) -> None:
    """Raise UserError for a text that is no instruction: longer than any, or none that a file can hold."""
    if len(text) > MOST_LETTERS:
        raise UserError(f"{where}: its instruction has {len(text)} letters; at most {MOST_LETTERS} are taken")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: its instruction is no UTF-8 text ({error.reason}); write it anew") from error


def check_writable_name(path: Path) -> None:
    """Raise UserError for a path that LeRobot and the libraries below it cannot write to."""
    name = str(path.resolve())
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{path}: its name is no UTF-8 text, so LeRobot cannot write there; choose another") from error
    if {"'", "\n"} & set(name):  # it joins videos by a list of their names, which it does not quote
        raise UserError(f"{path}: LeRobot cannot write below a name with a quotation mark ' in it; choose another")


@contextmanager
def temporary_files_in(folder: Path) -> Iterator[None]:
    """Where LeRobot joins videos, which it does in the system's place for temporary files; a full disk leaves them."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder.absolute())
    try:
        yield
    finally:
        tempfile.tempdir = before


def provenance(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the episode table without LeRobot's own bookkeeping."""
    own = ("stats/", "meta/", "videos/", "data/", "dataset_", "episode_index", "tasks", "length")
    return {key: value for key, value in row.items() if not key.startswith(own)}


@dataclass
class Table:
    """Everything but the pictures: the episode table and the rows of all frames, in order."""

    episodes: list[dict[str, Any]]  # columns of the episode table
    lengths: np.ndarray  # (E,)
    states: np.ndarray  # (N, S) float32
    actions: np.ndarray  # (N, A) float32
    tasks: list[str]  # (E,) instructions

    def metadata(self, episode: int) -> dict[str, Any]:
        """Provenance columns of one episode."""
        return provenance(self.episodes[episode])


def read_table(directory: Path, state_keys: Sequence[str] = (STATE,), action_key: str = ACTION) -> Table:
    """States (of several keys side by side), actions, tasks and episode columns.

    Raises UserError for missing keys, damaged files, tables that do not fit together, NaN.
    """
    directory = Path(directory)
    info = read_info(directory)
    check_features(directory, info, None, (*state_keys, action_key))
    totals = {key: plausible_rows(info[f"total_{key}"]) for key in ("episodes", "frames")}
    episodes = _read_parquet(directory, "meta/episodes", ["episode_index", "length"], most_rows=totals["episodes"])
    rows = ["index", "episode_index", "task_index", *state_keys, action_key]  # without pictures, where they lie there
    frames = _read_parquet(directory, "data", rows, only=True, most_rows=totals["frames"])
    tasks = _read_parquet(directory, "meta", ["task_index"], stem="tasks", most_rows=totals["frames"])
    try:
        episodes, frames = episodes.sort_values("episode_index"), frames.sort_values("index")
        names = {int(row["task_index"]): str(name) for name, row in tasks.iterrows()}
        lengths = episodes["length"].to_numpy(np.int64)
        if len(lengths) == 0 or lengths.min() < 1 or lengths.max() > len(frames):
            raise UserError(f"{directory}: the episode table has no rows, or lengths that cannot be")
        if lengths.sum() != len(frames):
            raise UserError(f"{directory}: {len(frames)} rows of data; the episode table says {lengths.sum()}")
        indices = np.arange(len(lengths))
        if not np.array_equal(episodes["episode_index"], indices):
            raise UserError(f"{directory}: 'episode_index' of the episode table does not count 0, 1, 2, ...")
        if not np.array_equal(frames["episode_index"], np.repeat(indices, lengths)):
            raise UserError(f"{directory}: 'episode_index' of the rows disagrees with the lengths of the episodes")
        states = np.concatenate([_columns(directory, info, key, frames[key]) for key in state_keys], axis=1)
        actions = _columns(directory, info, action_key, frames[action_key])
        first = np.cumsum(lengths) - lengths
        instructions = [names.get(int(i)) for i in frames["task_index"].to_numpy()[first]]
    except UserError:
        raise
    except Exception as error:  # cells of a wrong type make pandas and NumPy raise classes of every kind
        raise UserError(f"{directory}: its tables are damaged ({type(error).__name__}: {error})") from error
    if None in instructions:
        raise UserError(f"{directory}: episode {instructions.index(None)} has a 'task_index' that meta/tasks lacks")
    for episode, text in enumerate(instructions):
        check_instruction(str(text), f"{directory}: episode {episode}")
    for key, values in ((" + ".join(state_keys), states), (action_key, actions)):
        if not np.isfinite(values).all():
            row = int(np.argmax(~np.isfinite(values).all(axis=1)))
            episode = int(np.searchsorted(first, row, side="right")) - 1
            raise UserError(f"{directory}: '{key}' holds NaN or infinity (episode {episode}); remove that episode")
    return Table(episodes.to_dict("records"), lengths, states, actions, [str(name) for name in instructions])


def _columns(directory: Path, info: dict, key: str, cells: Any) -> np.ndarray:
    """(N, D) float32 from cells that hold vectors, or numbers where D = 1."""
    with np.errstate(over="ignore"):  # infinity is complained about later
        values = np.stack(cells.to_numpy()).astype(np.float32).reshape(len(cells), -1)
    if values.shape[1] != (width := math.prod(info["features"][key]["shape"])):
        raise UserError(f"{directory}: '{key}' has {values.shape[1]} values a row; {INFO} says {width}")
    return values


def read_actions(directory: Path) -> list[tuple[dict[str, Any], np.ndarray]]:
    """Metadata and actions (T, A) of each episode, without decoding a picture."""
    table = read_table(directory)
    parts = np.split(table.actions, np.cumsum(table.lengths)[:-1])
    return [(table.metadata(i), part) for i, part in enumerate(parts)]


def read_episodes(
    directory: Path,
    image_key: str = IMAGE,
    *,
    cameras: Sequence[str] = (),
    state_keys: Sequence[str] = (STATE,),
    action_key: str = ACTION,
) -> Iterator[Episode]:
    """All episodes in order; `cameras` names further picture features, for `Episode.cameras`.

    Raises UserError as `read_table`, and for too few or unreadable pictures.
    """
    directory = Path(directory)
    info = read_info(directory)
    for key in (image_key, *cameras):
        check_features(directory, info, key, (*state_keys, action_key))
    table = read_table(directory, state_keys, action_key)
    pictures = {}
    for key in (image_key, *cameras):
        check_video_lengths(directory, info, table.episodes, key)
        pictures[key] = read_pictures(directory, table.episodes, key)
    start = 0
    for index, length in enumerate(table.lengths):
        stop = start + int(length)
        images = {key: _next_episode(parts, int(length)) for key, parts in pictures.items()}
        yield Episode(
            images[image_key],
            table.states[start:stop],
            table.actions[start:stop],
            table.tasks[index],
            table.metadata(index),
            {key: images[key] for key in cameras},
        )
        start = stop


def _next_episode(parts: Iterator[np.ndarray], length: int) -> np.ndarray:
    """(T, H, W, 3): the parts of one episode put together."""
    images = [next(parts)]
    while sum(map(len, images)) < length:
        images.append(next(parts))
    return np.concatenate(images)


def dataset_id(directory: Path) -> str:
    """SHA-256 over names and contents of all files, first 16 hex digits; scores noted later do not count."""
    digest = hashlib.sha256()
    for path in data_files(directory):
        name = str(path.relative_to(directory))
        check_inside(directory, name)
        digest.update(os.fsencode(name))
        if name.startswith("meta/episodes/"):
            table = read_parquet(path).replace_schema_metadata(None)
            for column in sorted(c for c in table.column_names if not c.startswith(("replay_", "score_"))):
                digest.update(f"{column}={table[column].to_pylist()}".encode())
        else:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _read_parquet(
    directory: Path, folder: str, columns: Sequence[str], *, only: bool = False, stem: str = "*", most_rows: int
) -> Any:
    """All tables of a folder as one. Raises UserError if one is damaged or lacks a column; `only` leaves others out."""
    import pandas as pd

    paths = sorted((directory / folder).rglob(f"{stem}.parquet"))
    if not paths:
        raise UserError(f"{directory / folder}: no Parquet file; the dataset is incomplete")
    tables = []
    for path in paths:
        check_inside(directory, path.relative_to(directory))
        tables.append(read_data_frame(path, columns, only=only, most_rows=most_rows))
    return pd.concat(tables)
