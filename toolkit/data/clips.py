"""The clip file: a dataset decoded once, memory-mapped, and the windows that training draws from it.

One HDF5 file with contiguous arrays; its frames are mapped, not read, so a window costs one memory copy and
a file larger than memory works. It needs neither LeRobot nor a video decoder. Frames are raw, or JPEG files one after
the other: then `jpeg_lengths` (N,) [byte] and the group `jpegs` of arrays of bytes stand in place of `frames`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from toolkit.base.errors import UserError
from toolkit.base.files import atomic_file
from toolkit.base.reading import parse_json
from toolkit.data.canvas import Canvas
from toolkit.data.episode import ACTION, ACTION_IS_PAD, STATE, TASK, Episode
from toolkit.data.episode_notes import episode_id
from toolkit.data.formats.hdf5_write import new_hdf5
from toolkit.data.frames import Frames, JpegFrames
from toolkit.data.seen_scenes import SeenScenes

ARRAYS = {  # dimensions and kind of number
    "frames": (4, "u"),
    "states": (2, "f"),
    "actions": (2, "f"),
    "episode_starts": (1, "iu"),
    "episode_lengths": (1, "iu"),
    "episode_tasks": (1, "iu"),
    "about": (1, "u"),
}
ABOUT = {"tasks": list, "metadata": list, "fps": float, "source_id": str}  # JSON, in the bytes of an array of its own
JPEGS, JPEG_LENGTHS = "jpegs", "jpeg_lengths"
CHECKED_ROWS = 1 << 16  # rows looked at together, so that a check of millions of rows needs little memory


@dataclass
class ClipStore:
    """frames (N, H, W, 3) uint8, states (N, S), actions (N, A) float32; episode arrays (E,) int64."""

    path: Path
    frames: Frames
    states: np.ndarray
    actions: np.ndarray
    episode_starts: np.ndarray
    episode_lengths: np.ndarray
    episode_tasks: np.ndarray
    tasks: list[str]
    metadata: list[dict[str, Any]]
    fps: float
    source_id: str
    canvas: Canvas  # whose pictures `frames` show, and where
    source: str = ""  # what the user calls it
    state_names: Sequence[str] = ()  # what the dimensions are, where the dataset says so
    action_names: Sequence[str] = ()
    robot_type: str = ""  # where the dataset says so
    codec: str = ""  # of its videos
    seen_scenes: SeenScenes | None = None  # by the generator behind the episodes, where the dataset says so

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.source or str(self.path)

    @classmethod
    def open(cls, path: str | Path) -> ClipStore:
        """Map a clip file. Raises UserError if it is missing, truncated, lacks a key or holds NaN."""
        path = Path(path)
        if not path.is_file():
            raise UserError(f"{path}: clip file not found")
        try:
            # Unlocked: the file is complete when it has its name, and some file systems know no locks.
            with h5py.File(path, "r", locking=False) as file:
                raw = JPEG_LENGTHS not in file
                arrays: Any = {name: _mapped(path, file, name) for name in ARRAYS if raw or name != "frames"}
                rows = None if raw else _jpeg_rows(path, file)
        except (OSError, KeyError, ValueError, TypeError, RuntimeError, OverflowError) as error:
            raise UserError(f"{path}: not a complete clip file ({error}); delete it to build it again") from error
        about = _about(path, arrays.pop("about"), arrays["frames"].shape[1:3] if raw else ())
        if rows is not None:
            data = np.asarray(np.memmap(path, np.uint8, "r"))
            arrays["frames"] = JpegFrames(path, data, *rows, about["canvas"].size)
        store = cls(path, **about, **arrays)
        store._check()
        return store

    def _check(self) -> None:
        """Raise UserError where the arrays contradict each other, or states or actions are not finite."""
        rows, episodes = len(self.frames), self.num_episodes
        if self.frames.shape[1:] != (*self.canvas.size, 3):
            raise UserError(f"{self.path}: frames are {self.frames.shape[1:]}, its cameras take {self.canvas.size}")
        for name in ("states", "actions"):
            if len(getattr(self, name)) != rows:
                raise UserError(f"{self.path}: {len(getattr(self, name))} rows of '{name}', {rows} frames")
        if len({episodes, len(self.episode_lengths), len(self.episode_tasks), len(self.metadata)}) > 1:
            raise UserError(f"{self.path}: the episode arrays differ in length; build the clip file again")
        stops = self.episode_starts + self.episode_lengths
        if self.episode_starts.min() < 0 or self.episode_lengths.min() < 1 or stops.max() > rows:
            raise UserError(f"{self.path}: episodes reach beyond the {rows} frames; build the clip file again")
        if self.episode_tasks.min() < 0 or self.episode_tasks.max() >= len(self.tasks):
            raise UserError(f"{self.path}: an episode names a task that is not listed; build the clip file again")
        for name in ("states", "actions"):
            for first in range(0, rows, CHECKED_ROWS):
                with np.errstate(over="ignore"):  # what is infinite in float32 is complained about below
                    values = getattr(self, name)[first : first + CHECKED_ROWS].astype(np.float32, copy=False)
                finite = np.isfinite(values).all(axis=1)
                if not finite.all():
                    row = first + int(np.argmin(finite))
                    episode = int(np.searchsorted(self.episode_starts, row, side="right")) - 1
                    raise UserError(
                        f"{self.path}: '{name}' holds NaN or infinity (episode {episode}); remove that episode"
                    )

    @property
    def num_episodes(self) -> int:
        return len(self.episode_starts)

    @property
    def episode_ids(self) -> list[str]:
        """(E,), see `episode_id`."""
        rows = [self.rows_of(np.array([episode])) for episode in range(self.num_episodes)]
        return [episode_id(self.states[part], self.actions[part]) for part in rows]

    def instruction(self, episode: int) -> str:
        return self.tasks[int(self.episode_tasks[episode])]

    def rows_of(self, episodes: np.ndarray) -> np.ndarray:
        """Rows of these episodes, one after the other."""
        spans = zip(self.episode_starts[episodes], self.episode_lengths[episodes], strict=True)
        return np.concatenate([np.arange(start, start + length) for start, length in spans])

    def generator_batch(
        self,
        episodes: np.ndarray,
        starts: np.ndarray,
        num_frames: int,
        frame_stride: int = 1,
        with_frames: bool = True,
    ) -> dict[str, Any]:
        """Windows of `num_frames` frames and the N actions between them; past the end the last row repeats.

        episodes, starts: (B,), a start counts from the episode's first row; frame_stride: rows from a frame to the
        next, so N = (F - 1) * frame_stride. Returns frames (B, F, H, W, 3) uint8 (or, without frames, the first one
        of each as image (B, H, W, 3)), states (B, N + 1, S), actions (B, N, A), is_pad (B, N) bool, instruction
        (B strings).
        """
        steps = starts[:, None] + np.arange((num_frames - 1) * frame_stride + 1)
        last = self.episode_lengths[episodes][:, None] - 1
        rows = self.episode_starts[episodes][:, None] + np.minimum(steps, last)
        # `take` copies rows faster than indexing does, small ones most of all.
        batch = {
            "states": self.states.take(rows, axis=0),
            "actions": self.actions.take(rows[:, :-1], axis=0),
            "is_pad": steps[:, 1:] > last,
            "instruction": [self.tasks[task] for task in self.episode_tasks[episodes].tolist()],
        }
        if with_frames:
            return {"frames": self.frames.take(rows[:, ::frame_stride], axis=0), **batch}
        return {"image": self.frames.take(rows[:, 0], axis=0), **batch}

    def policy_batch(
        self,
        episodes: np.ndarray,
        steps: np.ndarray,
        actions: int | Sequence[int],
        observations: Sequence[int] = (0,),
    ) -> dict[str, Any]:
        """Observations and actions around a step of each sample, in LeRobot's keys.

        actions, observations: the wanted steps by their distance from that step, in LeRobot's words delta indices; a
        number of actions is so many from that step on. Before the start and past the end of an episode its first and
        last row repeat. Returns the picture of each camera (B, 3, H, W) float32 in [0, 1] under its key,
        observation.state (B, S), action (B, T, A), action_is_pad (B, T), task (B strings). Of other observations than
        that of the step alone, pictures and states have an axis for them, (B, n, ...), and `<key>_is_pad` (B, n).
        """
        ahead = range(actions) if isinstance(actions, int) else actions
        alone = list(observations) == [0]
        seen = self.rows_around(episodes, steps, observations)
        rows = seen[:, 0] if alone else seen
        pictures = self.canvas.cells(self.frames.take(rows, axis=0))
        observed: dict[str, Any] = {camera: to_channels_first(picture) for camera, picture in pictures.items()}
        observed[STATE] = self.states.take(rows, axis=0)
        outside = {} if alone else dict.fromkeys(observed, self.outside(episodes, steps, observations))
        return {
            **observed,
            **{f"{key}_is_pad": padded for key, padded in outside.items()},
            ACTION: self.actions.take(self.rows_around(episodes, steps, ahead), axis=0),
            ACTION_IS_PAD: self.outside(episodes, steps, ahead),
            TASK: [self.instruction(e) for e in episodes],
        }

    def rows_around(self, episodes: np.ndarray, steps: np.ndarray, deltas: Sequence[int]) -> np.ndarray:
        """(B, n) rows at these distances from a step of each sample, inside its episode."""
        last = self.episode_lengths[episodes][:, None] - 1
        return self.episode_starts[episodes][:, None] + np.clip(steps[:, None] + np.asarray(deltas), 0, last)

    def outside(self, episodes: np.ndarray, steps: np.ndarray, deltas: Sequence[int]) -> np.ndarray:
        """(B, n) True where one of these steps is none of the episode."""
        around = steps[:, None] + np.asarray(deltas)
        return (around < 0) | (around >= self.episode_lengths[episodes][:, None])


def to_channels_first(pictures: np.ndarray) -> np.ndarray:
    """(..., H, W, 3) uint8 -> (..., 3, H, W) float32 in [0, 1], as policies take them."""
    return np.moveaxis(pictures.astype(np.float32), -1, -3) / 255


def _about(path: Path, text: np.ndarray, size: Sequence[int]) -> dict[str, Any]:
    """What a clip file says of itself. Raises UserError unless it is what `ABOUT` says."""
    found = parse_json(text.tobytes(), path)
    for key, kind in ABOUT.items():
        if not isinstance(found.get(key), kind):
            raise UserError(f"{path}: 'about' holds no {key} ({kind.__name__}); build the clip file again")
    if not all(isinstance(task, str) for task in found["tasks"]):
        raise UserError(f"{path}: a task is no text; build the clip file again")
    if not all(isinstance(row, dict) for row in found["metadata"]):
        raise UserError(f"{path}: 'metadata' is no list of mappings; build the clip file again")
    if not 0 < found["fps"] < np.inf:
        raise UserError(f"{path}: fps is {found['fps']}; build the clip file again")
    try:  # of version 0.1 there was one camera, whose name is not told
        canvas = Canvas.from_dict(found["canvas"]) if "canvas" in found else Canvas.single(size)
    except ValueError as error:
        raise UserError(f"{path}: 'canvas': {error}; build the clip file again") from error
    return {**{key: found[key] for key in ABOUT}, "canvas": canvas}


def _mapped(path: Path, file: h5py.File, name: str) -> np.ndarray:
    """An array of a clip file, mapped. Raises UserError unless it is what `ARRAYS` says, all of it in this file."""
    data, offset = _array(path, file, name, *ARRAYS[name])
    # As a plain array: indexing np.memmap costs more, and the map lives as long as the array does.
    return np.asarray(np.memmap(path, data.dtype, "r", offset, data.shape))


def _array(path: Path, file: h5py.File, name: str, dimensions: int, kinds: str) -> tuple[h5py.Dataset, int]:
    """An array of a clip file and where its bytes begin. Raises as `_mapped`."""
    if not isinstance(file.get(name, getlink=True) if name in file else None, h5py.HardLink):
        raise UserError(f"{path}: no array '{name}'; expected a clip file with {', '.join(ARRAYS)}; build it again")
    data = file[name]
    fits = isinstance(data, h5py.Dataset) and data.ndim == dimensions and data.dtype.kind in kinds
    if not fits or not data.dtype.isnative:
        raise UserError(f"{path}: '{name}' is not an array of {dimensions} dimensions; build the clip file again")
    offset = data.id.get_offset()
    if offset is None or data.size == 0:
        raise UserError(f"{path}: array '{name}' is empty or not contiguous; build the clip file again")
    if offset + data.nbytes > path.stat().st_size:
        raise UserError(f"{path}: truncated inside '{name}'; delete it to build it again")
    return data, offset


def _jpeg_rows(path: Path, file: h5py.File) -> tuple[np.ndarray, np.ndarray]:
    """Where in a clip file the JPEG file of each frame begins, and its length [byte], (N,). Raises as `_mapped`."""
    lengths = _array(path, file, JPEG_LENGTHS, 1, "iu")[0][()].astype(np.int64)
    parts = [_array(path, file, f"{JPEGS}/{name}", 1, "u") for name in sorted(file[JPEGS])]
    ends = np.cumsum([0, *(data.nbytes for data, _ in parts)])[1:]
    stops = np.cumsum(lengths)
    if not parts or lengths.min() < 1 or lengths.max() > ends[-1] or stops[-1] != ends[-1] or set(ends) - set(stops):
        raise UserError(f"{path}: '{JPEG_LENGTHS}' does not fit the bytes of '{JPEGS}'; delete it to build it again")
    starts = stops - lengths
    part = np.searchsorted(ends, starts, side="right")
    shifts = np.array([offset - (end - data.nbytes) for (data, offset), end in zip(parts, ends, strict=True)])
    return starts + shifts[part], lengths


@dataclass
class ClipTable:
    """All of a clip file but its frames."""

    states: np.ndarray  # (N, S) float32
    actions: np.ndarray  # (N, A) float32
    lengths: np.ndarray  # (E,)
    tasks: list[str]  # (E,) instructions
    metadata: list[dict[str, Any]]  # (E,) provenance
    fps: float
    source_id: str
    canvas: Canvas


def create_clips(path: Path, table: ClipTable) -> int:
    """Write a clip file whose frames read as zero until they are written; returns where in the file they begin [byte].

    No room is taken on the disk for the frames. Raises OSError if the disk has none for the rest.
    """
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)  # the place is known before the first frame is
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    space = h5py.h5s.create_simple((len(table.states), *table.canvas.size, 3))
    with new_hdf5(path) as (file, _):  # which takes no lock: HDF5's own would collide with that of the builder
        frames = h5py.h5d.create(file.id, b"frames", h5py.h5t.STD_U8LE, space, properties)
        _write_table(file, table)
        return frames.get_offset()


@contextmanager
def create_jpeg_clips(path: Path, table: ClipTable) -> Iterator[Callable[[np.ndarray, np.ndarray], None]]:
    """Write a clip file of JPEG files: gives what adds the next rows, their lengths (T,) and their bytes, all in one.

    Raises OSError if the disk has no room.
    """
    lengths: list[np.ndarray] = []
    with new_hdf5(path) as (file, raw):

        def add(sizes: np.ndarray, data: np.ndarray) -> None:
            file[f"{JPEGS}/{len(lengths):08d}"] = data
            lengths.append(sizes)
            raw.check()

        yield add
        _write_table(file, table)
        file[JPEG_LENGTHS] = np.concatenate(lengths)


def _write_table(file: h5py.File, table: ClipTable) -> None:
    names = sorted(set(table.tasks))
    file["states"], file["actions"] = table.states.astype(np.float32), table.actions.astype(np.float32)
    file["episode_starts"] = np.cumsum(table.lengths) - table.lengths
    file["episode_lengths"] = np.asarray(table.lengths)
    file["episode_tasks"] = np.array([names.index(task) for task in table.tasks])
    metadata = [{k: v.item() if hasattr(v, "item") else v for k, v in row.items()} for row in table.metadata]
    about = {"tasks": names, "metadata": metadata, "fps": float(table.fps), "source_id": table.source_id}
    about["canvas"] = table.canvas.to_dict()
    file["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)


def write_frames(path: Path, offset: int, first: int, frames: np.ndarray) -> None:
    """Put (T, H, W, 3) uint8 into the rows from `first` on of the frames that begin at byte `offset`."""
    with path.open("r+b") as file:
        file.seek(offset + first * frames[0].nbytes)
        file.write(np.ascontiguousarray(frames))


def write_clips(path: Path, episodes: Iterable[Episode], total_frames: int, fps: float, source_id: str) -> None:
    """A clip file of episodes in memory; written under a temporary name, then renamed.

    Raises UserError unless they have `total_frames` rows in all.
    """
    episodes = list(episodes)
    rows = sum(map(len, episodes))
    if rows != total_frames or not rows:
        raise UserError(f"{path}: source has {rows} frames; its metadata says {total_frames}")
    table = ClipTable(
        np.concatenate([episode.states for episode in episodes]),
        np.concatenate([episode.actions for episode in episodes]),
        np.array([len(episode) for episode in episodes]),
        [episode.task for episode in episodes],
        [episode.metadata for episode in episodes],
        fps,
        source_id,
        Canvas({key: part.shape[1:3] for key, part in episodes[0].pictures.items()}, episodes[0].images.shape[1:3]),
    )
    with atomic_file(path) as temporary:
        offset = create_clips(temporary, table)
        for first, episode in zip(np.cumsum(table.lengths) - table.lengths, episodes, strict=True):
            write_frames(temporary, offset, int(first), table.canvas.compose(episode.pictures))
