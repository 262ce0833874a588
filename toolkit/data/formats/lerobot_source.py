"""The episodes of a LeRobotDataset of any version as rows of one table, and each read alone: numbers, then pictures."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.base.errors import UserError, first_line, warn
from toolkit.base.reading import MOST_JSON_BYTES, parse_json, read_bytes
from toolkit.data.episode_notes import episode_id
from toolkit.data.formats import lerobot_read
from toolkit.data.formats.hdf5 import MAX_EPISODE_BYTES
from toolkit.data.formats.lerobot_layout import check_inside, check_instruction, data_file, video_file
from toolkit.data.formats.parquet import column_names, plausible_rows, read_data_frame, read_parquet
from toolkit.data.formats.videos import Span, Video
from toolkit.data.images import decode_picture

MOST = 10**9  # of a number of an episode or of steps
JUMP = 1.5  # periods between two rows
EPISODES = "meta/episodes.jsonl"
TASKS = "meta/tasks.parquet", "meta/tasks.jsonl"


@dataclass(frozen=True)
class Part:
    """Rows `start` to `stop` of an episode of the source; all of them unless it is split."""

    number: int
    length: int
    row: dict[str, Any]  # of the episode table
    start: int = 0
    stop: int | None = None
    name: str = ""

    @property
    def is_whole(self) -> bool:
        return self.start == 0 and self.stop is None


@dataclass
class Rows:
    """Numbers of one episode."""

    vectors: dict[str, np.ndarray]  # (T, D) float32
    stamps: np.ndarray  # (T,) seconds
    tasks: np.ndarray  # (T,) numbers of instructions, -1 where there is none


@dataclass
class Source:
    """A dataset of version 2.0, 2.1 or 3 as it lies there. Nothing is converted or copied."""

    root: Path
    info: dict[str, Any]
    parts: list[Part] = field(default_factory=list)
    texts: dict[int, str] = field(default_factory=dict)  # instructions by number
    tables: dict[int, Path] = field(default_factory=dict)  # version 2: rows by episode
    videos: dict[tuple[str, int], Path] = field(default_factory=dict)  # version 2: by camera and episode

    def __post_init__(self) -> None:
        self._video: Any = lru_cache(maxsize=4)(Video)  # several episodes of version 3 share a file
        self._table: Any = lru_cache(maxsize=2)(_table)

    @property
    def is_v3(self) -> bool:
        return str(self.info["codebase_version"]).startswith("v3")

    def table(self, part: Part) -> Path:
        """The file with the rows of an episode. Raises UserError if the episode table does not tell."""
        if not self.is_v3:
            number = part.number
            return self.tables.get(number, self.root / f"data/chunk-{number // 1000:03d}/episode_{number:06d}.parquet")
        chunk, file = (int(self._place(part, f"data/{name}_index")) for name in ("chunk", "file"))
        return data_file(self.root, self.info, chunk, file)

    def _place(self, part: Part, key: str) -> float:
        try:
            return float(part.row[key])
        except (KeyError, TypeError, ValueError) as error:
            text = f"'{key}' of episode {part.number} in meta/episodes is missing or damaged"
            raise UserError(f"{self.root}: {text}") from error

    def rows(self, part: Part, vectors: list[str]) -> Rows:
        """Raises UserError that names the file for rows that are missing, damaged or not finite."""
        where = f"{self.root}: episode {part.number}"
        table = self.table(part)
        frame, places = self._table(table, tuple(vectors), self.info["total_frames"])
        if self.is_v3 and places is not None:
            frame = frame.iloc[places.get(part.number, [])]
        frame = frame.sort_values("frame_index" if "frame_index" in frame else "index")
        if len(frame) != part.length:
            raise UserError(f"{where}: {len(frame)} rows in {table}; the episode table says {part.length}")
        found = {}
        for key in vectors:
            try:
                with np.errstate(over="ignore"):  # infinity is complained about below
                    found[key] = np.stack(frame[key].to_numpy()).astype(np.float32).reshape(len(frame), -1)
            except (TypeError, ValueError) as error:
                raise UserError(f"{where}: '{key}' in {table}: its tables are damaged ({first_line(error)})") from error
            if not np.isfinite(found[key]).all():
                step = int(np.argmax(~np.isfinite(found[key]).all(axis=1)))
                raise UserError(f"{where}: '{key}' holds NaN or infinity (step {step}); remove that episode")
        even = np.arange(len(frame)) / self.info["fps"]
        stamps = frame["timestamp"].to_numpy(np.float64) if "timestamp" in frame else even
        tasks = frame["task_index"].to_numpy(np.int64) if "task_index" in frame else np.full(len(frame), -1)
        return Rows(found, stamps if np.isfinite(stamps).all() else even, tasks)

    def jumps(self, rows: Rows) -> np.ndarray:
        """Steps before which the time stamps jump or go back."""
        steps = np.diff(rows.stamps) * self.info["fps"]
        return np.flatnonzero((steps > JUMP) | (steps <= 0)) + 1

    def instruction(self, part: Part, rows: Rows) -> str:
        """Of the first row of a part, "" if none is known. Raises UserError for one that no file can hold."""
        own = part.row.get("tasks")
        own = [str(text) for text in own] if isinstance(own, list | tuple | np.ndarray) else []
        text = self.texts.get(int(rows.tasks[part.start]), own[0] if len(own) == 1 else "").strip()
        check_instruction(text, f"{self.root}: episode {part.number}")
        return text

    def span(self, part: Part, key: str) -> Span:
        """Where the pictures of a camera are. Raises UserError if the file is missing or the episode table damaged."""
        if not self.is_v3:
            if (key, part.number) not in self.videos:
                raise UserError(f"{self.root}: videos/.../{key}/episode_{part.number:06d}.mp4 is missing")
            return Span(self.videos[key, part.number])
        chunk, file, start, stop = (
            self._place(part, f"videos/{key}/{name}")
            for name in ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
        )
        if not 0 <= start < stop < 1e9:
            raise UserError(f"{self.root}: 'videos/{key}/...' of episode {part.number} in meta/episodes is damaged")
        return Span(video_file(self.root, self.info, key, int(chunk), int(file)), start, stop)

    def video(self, part: Part, key: str, rows: Rows) -> tuple[Video, np.ndarray]:
        """The video of a camera, and the number of the picture of each row of the episode."""
        span = self.span(part, key)
        video = self._video(span.path)
        return video, video.rows(span, rows.stamps, self.info["fps"])

    def pictures(self, part: Part, key: str, rows: Rows) -> tuple[np.ndarray, Any]:
        """(T, H, W, 3) uint8 of a part, and how its video can be copied: (video, numbers of its pictures)."""
        cut = slice(part.start, part.stop)
        if self.info["features"][key]["dtype"] == "video":
            video, numbers = self.video(part, key, rows)
            return video.read(numbers[cut]), (video, numbers[cut])
        table = self.table(part)
        between = ("episode_index", part.number, part.number) if self.is_v3 else None
        cells = read_parquet(table, [key, "frame_index", "episode_index"], between)
        frames: list[np.ndarray] = []
        for cell in cells.sort_by("frame_index")[key].to_pylist()[cut]:
            try:
                frames.append(decode_picture(cell["bytes"]))
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(f"{table}: '{key}' of episode {part.number}: {first_line(error)}") from error
            if frames[-1].shape != frames[0].shape or frames[0].nbytes * part.length > MAX_EPISODE_BYTES:
                raise UserError(f"{table}: pictures of episode {part.number} differ in size, or take over 4 GiB")
        return np.stack(frames), None

    def metadata(self, part: Part, rows: Rows, notes: Any) -> dict[str, Any]:
        """What the source notes of an episode."""
        own = lerobot_read.provenance(part.row)
        if notes is None:
            return own
        name = episode_id(rows.vectors["observation.state"], rows.vectors["action"])
        found = notes.rows.get(name, [])
        return (
            {**own, **(found[0] if len(found) == 1 or all(row == found[0] for row in found) else {})} if found else own
        )


def _table(path: Path, vectors: tuple[str, ...], total: int) -> tuple[Any, Any]:
    """The numbers of a file of rows, and the rows of each episode."""
    there = column_names(path)
    wanted = [key for key in ("frame_index", "index", "episode_index", "timestamp", "task_index") if key in there]
    if not {"frame_index", "index"} & {*wanted}:
        raise UserError(f"{path}: has neither 'frame_index' nor 'index'; its rows have no order")
    frame = read_data_frame(path, [*dict.fromkeys([*vectors, *wanted])], only=True, most_rows=plausible_rows(total))
    return frame, frame.groupby("episode_index").indices if "episode_index" in wanted else None


def open_version(root: Path, info: dict[str, Any]) -> Source:
    """The episodes that a dataset lists. Raises UserError that names a file which is missing or damaged."""
    source = Source(root, info)
    (_list_v3 if source.is_v3 else _list_v2)(source)
    numbers = [part.number for part in source.parts]
    if not numbers:
        raise UserError(f"{root}: its episode table has no rows")
    if len(set(numbers)) < len(numbers):
        raise UserError(f"{root}: its episode table names an episode twice")
    if numbers != list(range(len(numbers))):
        warn(f"{root}: episodes are numbered with gaps, up to {numbers[-1]}; episodes= counts those that are there")
    if not source.texts:
        missing = root / TASKS[not source.is_v3]
        warn(f"{missing}: is missing or empty; instructions come from the episode table, where it names one")
    return source


def _list_v3(source: Source) -> None:
    root, most = source.root, plausible_rows(source.info["total_episodes"])
    paths = sorted((root / "meta/episodes").rglob("*.parquet"))
    if not paths:
        raise UserError(f"{root / 'meta/episodes'}: no file '*.parquet'; the dataset is incomplete")
    for path in paths:
        check_inside(root, path.relative_to(root))
        columns = [name for name in column_names(path) if not name.startswith("stats/")]
        frame = read_data_frame(
            path, [*dict.fromkeys([*columns, "episode_index", "length"])], only=True, most_rows=most
        )
        for row in frame.to_dict("records"):
            source.parts.append(Part(_count(row, "episode_index", path), _count(row, "length", path), row))
    source.parts.sort(key=lambda part: part.number)
    if (root / TASKS[0]).is_file():
        tasks = read_data_frame(root / TASKS[0], ["task_index"], most_rows=plausible_rows(source.info["total_frames"]))
        try:
            source.texts = lerobot_read.task_names(root, tasks)
        except (TypeError, ValueError) as error:
            raise UserError(f"{root / TASKS[0]}: its tables are damaged ({first_line(error)})") from error


def _list_v2(source: Source) -> None:
    root = source.root
    source.tables = {_last_number(path): path for path in (root / "data").rglob("episode_*.parquet")}
    for key, feature in source.info["features"].items():
        if feature["dtype"] == "video":
            found = (path for path in (root / "videos").glob(f"**/{key}/episode_*.mp4"))
            source.videos |= {(key, _last_number(path)): path for path in found}
    for row in _lines(root / EPISODES):
        number, length = (_count(row, key, root / EPISODES) for key in ("episode_index", "length"))
        source.parts.append(Part(number, length, row))
    source.parts.sort(key=lambda part: part.number)
    if (root / TASKS[1]).is_file():
        path = root / TASKS[1]
        source.texts = {_count(row, "task_index", path): str(row.get("task") or "") for row in _lines(path)}


def _count(row: dict[str, Any], key: str, path: Path) -> int:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < MOST:
        raise UserError(f"{path}: '{key}' is {value!r:.100}; expected a whole number")
    return int(value)


def _last_number(path: Path) -> int:
    digits = path.stem.removeprefix("episode_")
    return int(digits) if digits.isdigit() else -1


def _lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    if not path.is_file():
        raise UserError(f"{path}: is missing; the dataset is incomplete")
    lines = read_bytes(path, MOST_JSON_BYTES).splitlines()
    return [parse_json(line, f"{path}: line {number}") for number, line in enumerate(lines, 1) if line.strip()]
