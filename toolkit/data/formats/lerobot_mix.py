"""Episodes of several LeRobotDatasets v3 written as one: rows are numbered anew, video is copied and never encoded.

LeRobot's own tools do part of this. `delete_episodes` encodes every video file anew that holds an episode which goes,
`merge_datasets` averages quantiles and takes no part of a dataset, and neither takes videos of two codecs. Here a video
file whose episodes all take part is copied; of another the packets of its episodes are, where each begins with a
picture that can be decoded alone, as LeRobot's do. A file that cannot be cut so is copied whole.

Legend: N rows (frames), D numbers of a feature in a row, E episodes.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.base.errors import UserError
from toolkit.base.files import write_json
from toolkit.data.episode import ACTION
from toolkit.data.formats.lerobot_layout import BOOKKEEPING, INFO, data_file, video_file
from toolkit.data.formats.lerobot_read import Table, task_names
from toolkit.data.formats.lerobot_stats import level_statistics
from toolkit.data.formats.parquet import plausible_rows, read_data_frame
from toolkit.data.formats.videos import Span, Video

CHUNK = 1000  # files of a folder, LeRobot's own
EPISODES_OF_FILE = 10_000  # of the episode table
SAMPLED = 500  # pictures of a camera that the quantiles of its colours come from
REMOVE = "mend it, or leave the column out: lerobot-edit-dataset --operation.type=remove_feature"
NUMBERS = re.compile("bool|u?int[0-9]+|float[0-9]+")  # kinds of columns that have statistics
QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}


@dataclass(frozen=True)
class MixedDataset:
    """A dataset that episodes are taken from; cameras: its key of each camera of the result."""

    directory: Path
    info: dict[str, Any]
    table: Table
    cameras: dict[str, str]

    def place(self, episode: int, prefix: str) -> tuple[int, int]:
        """Chunk and file of an episode's rows or video. Raises UserError if the episode table does not say."""
        row = self.table.episodes[episode]
        try:
            return int(row[f"{prefix}chunk_index"]), int(row[f"{prefix}file_index"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f"{self.directory}: meta/episodes names no '{prefix}...' of episode {episode} ({error})"
            ) from error


@dataclass(frozen=True)
class Taken:
    """Episodes of a dataset, by rising numbers, with what is noted of each; actions: (T, A) of each in place of its
    own, None for all their own."""

    dataset: MixedDataset
    episodes: np.ndarray
    notes: list[dict[str, Any]]
    actions: list[np.ndarray] | None = None


@dataclass
class MixWriter:
    """Writes a dataset into an empty folder that is still under its temporary name.

    features: of the result, as in `meta/info.json`. uncut: video files that are copied whole, with the number of
    pictures in them that belong to episodes which were not taken.
    """

    folder: Path
    features: dict[str, dict[str, Any]]
    fps: float
    uncut: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.cameras = [key for key, feature in self.features.items() if feature["dtype"] == "video"]
        self.rows_of_table = [key for key in self.features if key not in self.cameras]
        self.numeric = [key for key in self.rows_of_table if self.features[key]["dtype"] != "string"]
        self.episodes: list[dict[str, Any]] = []
        self.tasks: dict[str, int] = {}
        self.values: dict[str, list[np.ndarray]] = {key: [] for key in self.numeric}
        self.frames = self.data_files = 0
        self.video_files = dict.fromkeys(self.cameras, 0)

    def add(self, taken: Taken, advance: Callable[[int], Any]) -> None:
        """Append episodes; `advance` is called with the number of those that were written.

        Raises UserError that names the file for what is missing or damaged.
        """
        first = len(self.episodes)
        for row, number, notes in zip(self._tables(taken, advance), taken.episodes, taken.notes, strict=True):
            own = taken.dataset.table.episodes[number]
            pictures = {
                f"stats/{key}/{name.rsplit('/', 1)[-1]}": nested(value)
                for key, source in taken.dataset.cameras.items()
                for name, value in own.items()
                if name.startswith(f"stats/{source}/")
            }
            self.episodes.append({**row, **pictures, **notes})
        for camera, source in taken.dataset.cameras.items():
            self._videos(taken, camera, source, self.episodes[first:])

    # ----------------------------------------------------------------------------------------------------- rows

    def _tables(self, taken: Taken, advance: Callable[[int], Any]) -> list[dict[str, Any]]:
        """Write the rows, a file for each of the source, and return what the episode table says of each episode."""
        import pandas as pd
        from lerobot.datasets.io_utils import to_parquet_one_row_group_per_episode

        dataset, found = taken.dataset, list[dict[str, Any]]()
        texts = self._texts(dataset)
        files: dict[tuple[int, int], list[int]] = {}
        for place, number in enumerate(taken.episodes):
            files.setdefault(dataset.place(int(number), "data/"), []).append(place)
        if [place for places in files.values() for place in places] != list(range(len(taken.episodes))):
            raise UserError(f"{dataset.directory}: episodes lie in its files in another order; import it anew")
        for (chunk, file), places in files.items():
            path = data_file(dataset.directory, dataset.info, chunk, file)
            most = plausible_rows(dataset.info["total_frames"])
            frame = read_data_frame(path, self.rows_of_table, only=True, most_rows=most)
            rows_of = frame.groupby("episode_index").indices
            parts, target = [], divmod(self.data_files, CHUNK)
            for place in places:
                number = int(taken.episodes[place])
                part = frame.iloc[rows_of.get(number, [])].sort_values("frame_index")
                if len(part) != dataset.table.lengths[number]:
                    raise UserError(f"{path}: has {len(part)} rows of episode {number}; meta/episodes says otherwise")
                parts.append(self._renumbered(part, taken, place, len(self.episodes) + len(found), texts))
                found.append(self._row(parts[-1], target, f"{path}: episode {number}"))
            to_parquet_one_row_group_per_episode(pd.concat(parts, ignore_index=True), self._file("data", target))
            self.data_files += 1
            advance(len(places))
        return found

    def _texts(self, dataset: MixedDataset) -> dict[int, str]:
        most = plausible_rows(dataset.info["total_frames"])
        table = read_data_frame(dataset.directory / "meta/tasks.parquet", ["task_index"], most_rows=most)
        return task_names(dataset.directory, table)

    def _renumbered(self, part: Any, taken: Taken, place: int, number: int, texts: dict[int, str]) -> Any:
        """Rows of an episode under its new number, with the numbers that its instructions have here."""
        try:
            numbers = [self.tasks.setdefault(texts[int(k)], len(self.tasks)) for k in part["task_index"]]
        except KeyError as error:
            raise UserError(f"{taken.dataset.directory}: meta/tasks.parquet lacks task {error}") from error
        own = {
            "episode_index": number,
            "index": np.arange(self.frames, self.frames + len(part), dtype=np.int64),
            "task_index": np.array(numbers, np.int64),
        }
        if taken.actions is not None:
            own[ACTION] = list(taken.actions[place].astype(np.float32))
        self.frames += len(part)
        return part.assign(**own)

    def _row(self, part: Any, target: tuple[int, int], where: str) -> dict[str, Any]:
        """LeRobot's columns of the episode table but those of videos; keeps the numbers for the statistics."""
        values = {key: column(part[key], self.features[key], f"{where}: '{key}'") for key in self.numeric}
        for key, numbers in values.items():
            self.values[key].append(numbers)
        names = list(self.tasks)
        stats = {
            f"stats/{key}/{name}": value.tolist()
            for key, numbers in values.items()
            for name, value in vector_statistics(numbers).items()
        }
        index = part["index"].to_numpy()
        return {
            "episode_index": int(part["episode_index"].iloc[0]),
            "tasks": [names[k] for k in dict.fromkeys(part["task_index"])],
            "length": len(part),
            "data/chunk_index": target[0],
            "data/file_index": target[1],
            "dataset_from_index": int(index[0]),
            "dataset_to_index": int(index[-1]) + 1,
            **stats,
        }

    def _file(self, folder: str, place: tuple[int, int], suffix: str = "parquet") -> Path:
        """Where a file of some chunk and number goes; its folder is there."""
        path = self.folder / folder / f"chunk-{place[0]:03d}/file-{place[1]:03d}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    # --------------------------------------------------------------------------------------------------- videos

    def _videos(self, taken: Taken, camera: str, source: str, rows: list[dict[str, Any]]) -> None:
        """Copy the videos of a camera and enter into the rows where each episode lies."""
        dataset, prefix = taken.dataset, f"videos/{source}/"
        everybody = [dataset.place(number, prefix) for number in range(len(dataset.table.lengths))]
        files: dict[tuple[int, int], list[int]] = {}
        for place, number in enumerate(taken.episodes):
            files.setdefault(everybody[number], []).append(place)
        for (chunk, file), places in files.items():
            path = video_file(dataset.directory, dataset.info, source, chunk, file)
            target = divmod(self.video_files[camera], CHUNK)
            self.video_files[camera] += 1
            numbers = [int(taken.episodes[place]) for place in places]
            spans = [self._span(dataset, number, prefix, path) for number in numbers]
            left = {number for number, at in enumerate(everybody) if at == (chunk, file)} - set(numbers)
            starts = self._copy(dataset, self._file(f"videos/{camera}", target, "mp4"), spans, numbers, left)
            for place, start, number in zip(places, starts, numbers, strict=True):
                rows[place] |= {
                    f"videos/{camera}/chunk_index": target[0],
                    f"videos/{camera}/file_index": target[1],
                    f"videos/{camera}/from_timestamp": start,
                    f"videos/{camera}/to_timestamp": start + int(dataset.table.lengths[number]) / self.fps,
                }

    def _span(self, dataset: MixedDataset, number: int, prefix: str, path: Path) -> Span:
        row = dataset.table.episodes[number]
        try:
            start, stop = (float(row[f"{prefix}{name}_timestamp"]) for name in ("from", "to"))
            if not 0 <= start < stop < 1e9:
                raise ValueError(f"from {start} to {stop} seconds")
        except (KeyError, TypeError, ValueError) as error:
            where = f"'{prefix}...' of episode {number}"
            raise UserError(f"{dataset.directory}: {where} in meta/episodes is missing or damaged ({error})") from error
        return Span(path, start, stop)

    def _copy(
        self, dataset: MixedDataset, target: Path, spans: Sequence[Span], numbers: Sequence[int], left: set[int]
    ) -> list[float]:
        """Copy a file, or cut its episodes out where some are `left`; the seconds at which they begin."""
        lengths, path = dataset.table.lengths, spans[0].path
        if left and (cut := self._cut(path, spans, [int(lengths[number]) for number in numbers], target)):
            return cut
        shutil.copyfile(path, target)
        if left:
            self.uncut[str(path)] = sum(int(lengths[number]) for number in left)
        return [span.start for span in spans]

    def _cut(self, path: Path, spans: Sequence[Span], lengths: Sequence[int], target: Path) -> list[float]:
        """Where each episode begins in a file that holds them alone; none where that takes decoding."""
        video = Video(path)
        parts = [
            video.rows(span, np.arange(length) / self.fps, self.fps)
            for span, length in zip(spans, lengths, strict=True)
        ]
        if not all(video.can_copy(part, self.fps) for part in parts):
            return []
        starts = video.copy_parts(parts, target)
        made, firsts = Video(target), np.cumsum([0, *lengths[:-1]])
        whole = len(made.stamps) == sum(lengths) and all(made.is_key[first] for first in firsts)
        return starts if whole and np.allclose(made.times[firsts], starts, atol=1e-4) else []

    # ------------------------------------------------------------------------------------------------------ end

    def finish(self, info: dict[str, Any]) -> None:
        """Write what describes the dataset; info: of `meta/info.json`, whose counts and features are replaced."""
        import pandas as pd
        import pyarrow
        import pyarrow.parquet

        for number, row in enumerate(self.episodes):
            chunk, file = divmod(number // EPISODES_OF_FILE, CHUNK)
            row |= {"meta/episodes/chunk_index": chunk, "meta/episodes/file_index": file}
        episodes = pyarrow.table(whole_columns(self.episodes))
        for first in range(0, len(self.episodes), EPISODES_OF_FILE):
            part = episodes.slice(first, EPISODES_OF_FILE)  # of which all files have the same kinds of columns
            place = divmod(first // EPISODES_OF_FILE, CHUNK)
            pyarrow.parquet.write_table(part, self._file("meta/episodes", place))
        tasks = pd.DataFrame({"task_index": list(self.tasks.values())}, index=pd.Index(list(self.tasks), name="task"))
        tasks.to_parquet(self.folder / "meta/tasks.parquet")
        write_json(
            self.folder / INFO,
            {
                **info,
                "total_episodes": len(self.episodes),
                "total_frames": self.frames,
                "total_tasks": len(self.tasks),
                "chunks_size": CHUNK,
                "splits": {"train": f"0:{len(self.episodes)}"},
                "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
                "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
                "features": self.features,
            },
        )
        stats = {key: vector_statistics(np.concatenate(parts)) for key, parts in self.values.items()}
        stats |= {camera: self._picture_statistics(camera) for camera in self.cameras}
        listed = {key: {name: value.tolist() for name, value in one.items()} for key, one in stats.items()}
        write_json(self.folder / "meta/stats.json", listed)

    def _picture_statistics(self, camera: str) -> dict[str, np.ndarray]:
        """Of colours in [0, 1], (3, 1, 1): from those of the episodes, quantiles of pictures spread over all frames."""
        from lerobot.datasets.compute_stats import aggregate_stats

        levels = self._levels(camera)
        sampled = {
            name: value if name == "count" else (value / 255).reshape(3, 1, 1)
            for name, value in level_statistics(levels, QUANTILES).items()
        }
        names = ("min", "max", "mean", "std", "count")
        if not all(f"stats/{camera}/{name}" in row for row in self.episodes for name in names):
            return sampled
        found = [
            {camera: {name: np.array(row[f"stats/{camera}/{name}"], dtype=np.float64) for name in names}}
            for row in self.episodes
        ]
        return {**sampled, **aggregate_stats(found)[camera]}

    def _levels(self, camera: str) -> np.ndarray:
        """(3, 256): how often each level occurs in pictures that are spread evenly over all frames."""
        levels: np.ndarray = np.zeros((3, 256), np.int64)
        video: Video | None = None
        ends = np.cumsum([row["length"] for row in self.episodes])
        for frame in np.unique(np.linspace(0, self.frames - 1, min(SAMPLED, self.frames)).astype(int)):
            episode = int(np.searchsorted(ends, frame, side="right"))
            row = self.episodes[episode]
            place = row[f"videos/{camera}/chunk_index"], row[f"videos/{camera}/file_index"]
            path = self.folder / f"videos/{camera}/chunk-{place[0]:03d}/file-{place[1]:03d}.mp4"
            if video is None or video.path != path:
                video = Video(path)
            second = row[f"videos/{camera}/from_timestamp"] + (frame - ends[episode] + row["length"]) / self.fps
            picture = video.read([int(np.abs(video.times - second).argmin())])[0]
            levels += np.stack([np.bincount(channel, minlength=256) for channel in picture.reshape(-1, 3).T])
        return levels


def column(cells: Any, feature: dict[str, Any], where: str) -> np.ndarray:
    """(N, D) numbers of a column of rows. Raises UserError, with `where` in front, for other widths or no numbers."""
    width = int(np.prod(feature["shape"]))
    try:
        numbers: np.ndarray = np.stack(cells.to_numpy()).reshape(len(cells), width)
        finite = bool(np.isfinite(numbers.astype(np.float64)).all())
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: expected {width} numbers in every row ({error}); {REMOVE}") from error
    if not finite:
        raise UserError(f"{where}: holds a number that is not finite; {REMOVE}")
    return numbers


def vector_statistics(values: np.ndarray) -> dict[str, np.ndarray]:
    """LeRobot's statistics of (N, D) numbers, exact, in float64."""
    numbers: np.ndarray = values.astype(np.float64)
    found = {"min": numbers.min(0), "max": numbers.max(0), "mean": numbers.mean(0), "std": numbers.std(0)}
    quantiles = dict(zip(QUANTILES, np.quantile(numbers, list(QUANTILES.values()), axis=0), strict=True))
    return {**found, "count": np.array([len(numbers)]), **quantiles}


def nested(value: Any) -> Any:
    """Arrays of arrays, as pandas reads nested lists, as lists."""
    return [nested(one) for one in value] if isinstance(value, np.ndarray | list) else value


def whole_columns(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Cells by column, None where a row has none; numbers or texts where those of a column are of several kinds."""
    columns: dict[str, list[Any]] = {}
    for name in dict.fromkeys(key for row in rows for key in row):
        cells = [row.get(name) for row in rows]
        kinds = {type(cell) for cell in cells if cell is not None}
        if len(kinds) > 1:
            kind: Any = (float if float in kinds else int) if kinds <= {bool, int, float} else str
            cells = [None if cell is None else kind(cell) for cell in cells]
        columns[name] = cells
    return columns


def common_features(datasets: Sequence[MixedDataset]) -> tuple[dict[str, Any], list[str]]:
    """Features that all datasets have alike, with the cameras of the result, and the keys that are left out."""
    first = datasets[0]
    features, left = dict[str, Any](), list[str]()
    for key, feature in first.info["features"].items():
        camera = next((one for one, source in first.cameras.items() if source == key), None)
        others = [d.info["features"].get(key if camera is None else d.cameras[camera], {}) for d in datasets[1:]]
        if camera is not None:
            told = [one.get("info") or {} for one in (feature, *others)]
            kept = {k: v for k, v in told[0].items() if all(k in one and one[k] == v for one in told)}
            features[camera] = {**feature, "info": kept}
        elif key in BOOKKEEPING or (
            all(_alike(feature, other) for other in others)
            and len(feature["shape"]) == 1
            and (feature["dtype"] == "string" or NUMBERS.fullmatch(str(feature["dtype"])))
        ):
            features[key] = feature
        else:
            left.append(key)
    taken = {source for dataset in datasets for source in dataset.cameras.values()}
    left += [k for d in datasets[1:] for k in d.info["features"] if k not in features and k not in taken]
    return features, sorted(set(left))


def _alike(feature: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(feature.get(key) == other.get(key) for key in ("dtype", "shape"))
