"""LeRobotDataset v3 on disk: write episodes atomically, read them back in order, add episode columns.

Writing goes through LeRobot itself. Reading a whole dataset goes through Parquet and one sequential video
decode, which is far faster than LeRobot's random access and gives the same frames.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from toolkit.data.schema import ACTION, IMAGE, STATE, Episode
from toolkit.errors import UserError

INFO = "meta/info.json"
VIDEO_FILE_MB = 8


class EpisodeWriter:
    """Context manager that writes a LeRobotDataset v3 under a temporary name and renames it when complete.

    Video is H.264 in yuv444p: 47 dB and 2.8 kB a picture on 64x64 renderings, at a tenth of a millisecond each;
    "superfast" and "veryfast" give smaller files of worse pictures, and the usual yuv420p stops at 35 dB.
    Leaving the block with an exception removes what was written.
    """

    def __init__(
        self,
        directory: Path,
        fps: int,
        state_names: list[str],
        action_names: list[str],
        robot_type: str = "sawyer",
    ) -> None:
        self.directory, self.fps, self.robot_type = Path(directory), fps, robot_type
        self.state_names, self.action_names = state_names, action_names
        self.temporary = self.directory.with_name(f".{self.directory.name}.partial")
        self.metadata: list[dict[str, Any]] = []
        self._dataset: Any = None
        self._values: dict[str, list[np.ndarray]] = {STATE: [], ACTION: []}

    def __enter__(self) -> Self:
        shutil.rmtree(self.temporary, ignore_errors=True)
        shutil.rmtree(self.directory, ignore_errors=True)  # of an earlier, unfinished run
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        return self

    def add(self, episode: Episode) -> None:
        """Append one episode. Raises UserError if a value is not finite or a shape differs from the first."""
        for key, values in ((STATE, episode.states), (ACTION, episode.actions)):
            if not np.isfinite(values).all():
                raise UserError(f"episode {len(self.metadata)}: '{key}' holds NaN or infinity; it was not written")
        shapes = episode.images.shape[1:], episode.states.shape[1:], episode.actions.shape[1:]
        if self._dataset is None:
            self._dataset, self._shapes = self._create(episode.images.shape[1:]), shapes
        if shapes != self._shapes:
            raise UserError(f"episode {len(self.metadata)}: shapes {shapes}; the first episode has {self._shapes}")
        with _two_shortcuts():
            for image, state, action in zip(episode.images, episode.states, episode.actions, strict=True):
                frame = {IMAGE: image, STATE: np.float32(state), ACTION: np.float32(action), "task": episode.task}
                self._dataset.add_frame(frame)
            self._dataset.save_episode()
        self.metadata.append(episode.metadata)
        self._values[STATE].append(episode.states)
        self._values[ACTION].append(episode.actions)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if self._dataset is not None:
                self._dataset.finalize()
            if kind is None:
                self._complete()
        except Exception:
            if kind is None:  # else the first error is the one to tell
                raise
        finally:
            shutil.rmtree(self.temporary, ignore_errors=True)

    def _complete(self) -> None:
        if self._dataset is None:
            raise UserError(f"{self.directory}: no episode to write; the dataset would be empty")
        keys = sorted({key for row in self.metadata for key in row})
        add_episode_columns(self.temporary, {key: [row.get(key) for row in self.metadata] for key in keys})
        self._write_global_statistics()
        shutil.rmtree(self.temporary / "images", ignore_errors=True)
        os.replace(self.temporary, self.directory)

    def _create(self, image_shape: tuple[int, ...]) -> Any:
        import av
        import datasets
        from lerobot.configs.video import RGBEncoderConfig
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        datasets.disable_progress_bars()  # one bar of ours instead of one per episode
        av.logging.set_libav_level(av.logging.ERROR)  # the encoder tells its statistics per episode
        vector = {"dtype": "float32"}
        features = {
            IMAGE: {"dtype": "video", "shape": image_shape, "names": ["height", "width", "channels"]},
            STATE: {**vector, "shape": (len(self.state_names),), "names": self.state_names},
            ACTION: {**vector, "shape": (len(self.action_names),), "names": self.action_names},
        }
        dataset = LeRobotDataset.create(
            f"local/{self.directory.name}",
            fps=self.fps,
            features=features,
            root=self.temporary,
            robot_type=self.robot_type,
            rgb_encoder=RGBEncoderConfig(vcodec="h264", crf=2, pix_fmt="yuv444p", preset="ultrafast"),
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
        statistics = json.loads(path.read_text())
        for key, parts in self._values.items():
            values = np.concatenate(parts)
            for name in [name for name in statistics[key] if name[0] == "q"]:
                statistics[key][name] = np.quantile(values, int(name[1:]) / 100, axis=0).tolist()
        path.write_text(json.dumps(statistics, indent=4))


@contextmanager
def _two_shortcuts() -> Iterator[None]:
    """Spare LeRobot 0.6.1 two thirds of `save_episode`; what it writes stays the same.

    A pass over all rows that embeds pictures into them is skipped: ours hold none, they are in the video. And the
    statistics of uint8 pictures come from a count of the 256 levels, instead of 5,000-bin histograms in float that
    are rebuilt whenever a frame is brighter than those before: faster, and exact.
    """
    from lerobot.datasets import compute_stats, dataset_writer

    class LevelStatistics(compute_stats.RunningQuantileStats):
        levels: Any = 0  # (C, 256) pixels of each level

        def update(self, batch: np.ndarray) -> None:
            if batch.dtype == np.uint8:
                channels = batch.reshape(-1, batch.shape[-1]).T
                self.levels = self.levels + np.stack([np.bincount(channel, minlength=256) for channel in channels])
                self._count += channels.shape[1]
            else:
                super().update(batch)

        def get_statistics(self) -> dict[str, np.ndarray]:
            if self._count < 2 or self._mean is not None:  # vectors, or LeRobot's own complaint
                return super().get_statistics()
            return level_statistics(self.levels, dict(zip(self._quantile_keys, self._quantile_list, strict=True)))

    originals = dataset_writer.embed_images, compute_stats.RunningQuantileStats
    dataset_writer.embed_images, compute_stats.RunningQuantileStats = (lambda rows: rows), LevelStatistics
    try:
        yield
    finally:
        dataset_writer.embed_images, compute_stats.RunningQuantileStats = originals


def level_statistics(counts: np.ndarray, quantiles: dict[str, float]) -> dict[str, np.ndarray]:
    """LeRobot's statistics of pixels, exact, from how often each level occurs: (C, 256) counts, in [0, 255]."""
    levels = np.arange(256.0)
    n = counts.sum(1)
    mean = counts @ levels / n
    cumulative = counts.cumsum(1)
    found = {name: (cumulative < q * n[:, None]).sum(1).astype(float) for name, q in quantiles.items()}
    return {
        "min": (counts > 0).argmax(1).astype(float),
        "max": 255.0 - (counts[:, ::-1] > 0).argmax(1),
        "mean": mean,
        "std": np.sqrt(np.maximum(counts @ levels**2 / n - mean**2, 0)),
        "count": n[:1],
        **found,
    }


def read_info(directory: Path) -> dict[str, Any]:
    """`meta/info.json` of a LeRobotDataset v3. Raises UserError that names the file and what was expected."""
    path = Path(directory) / INFO
    if not path.is_file():
        raise UserError(f"{directory}: not a LeRobotDataset (no {INFO})")
    try:
        info = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error})") from error
    version = str(info.get("codebase_version", "unknown"))
    if not version.startswith("v3"):
        raise UserError(f"{path}: LeRobotDataset {version}; expected v3.x. Convert it with LeRobot's own script")
    return info


def check_features(directory: Path, info: dict[str, Any], image_key: str = IMAGE) -> None:
    """Raise UserError for a missing feature key, listing the keys that exist."""
    for key in (image_key, STATE, ACTION):
        if key not in info["features"]:
            names = ", ".join(k for k in info["features"] if k.startswith(("observation", "action")))
            raise UserError(f"{directory}: no feature '{key}'; the dataset has: {names}")
    if (kind := info["features"][image_key]["dtype"]) not in ("video", "image"):
        raise UserError(f"{directory}: image_key={image_key} holds {kind}, not pictures")


def add_episode_columns(directory: Path, columns: dict[str, list[Any]]) -> None:
    """Add or replace columns of the episode table; each file is rewritten under a temporary name, then renamed."""
    import pandas as pd

    for path in sorted((Path(directory) / "meta/episodes").rglob("*.parquet")):
        table = pd.read_parquet(path)
        for name, values in columns.items():
            table[name] = [values[int(i)] for i in table["episode_index"]]
        temporary = path.with_suffix(".partial")
        table.to_parquet(temporary, index=False)
        os.replace(temporary, path)


@dataclass
class Table:
    """Everything but the pictures: the episode table and the rows of all frames, in order."""

    episodes: list[dict[str, Any]]  # columns of the episode table
    lengths: np.ndarray  # (E,)
    states: np.ndarray  # (N, S) float32
    actions: np.ndarray  # (N, A) float32
    tasks: list[str]  # (E,) instructions
    frames: Any  # the pandas table of all rows

    def metadata(self, episode: int) -> dict[str, Any]:
        """Provenance columns of one episode, LeRobot's own bookkeeping left out."""
        own = ("stats/", "meta/", "videos/", "data/", "dataset_", "episode_index", "tasks", "length")
        return {key: value for key, value in self.episodes[episode].items() if not key.startswith(own)}


def read_table(directory: Path, pictures: bool = True) -> Table:
    """States, actions, tasks and episode columns. Raises UserError for missing keys, damaged files, NaN.

    pictures: read those that lie in the rows too; they take most of the memory.
    """
    directory = Path(directory)
    info = read_info(directory)
    check_features(directory, info)
    kept = [key for key, feature in info["features"].items() if feature["dtype"] not in ("image", "video")]
    episodes = _read_parquet(directory, "meta/episodes").sort_values("episode_index")
    frames = _read_parquet(directory, "data", columns=None if pictures else kept).sort_values("index")
    names = {int(row["task_index"]): name for name, row in _read_parquet(directory, "meta", "tasks").iterrows()}
    states, actions = (_columns(frames[key]) for key in (STATE, ACTION))
    lengths = episodes["length"].to_numpy(np.int64)
    if lengths.sum() != len(frames):
        raise UserError(f"{directory}: {len(frames)} rows of data; the episode table says {lengths.sum()}")
    for key, values in ((STATE, states), (ACTION, actions)):
        if not np.isfinite(values).all():
            episode = int(frames["episode_index"].iloc[int(np.argmax(~np.isfinite(values).all(axis=1)))])
            raise UserError(f"{directory}: '{key}' holds NaN or infinity (episode {episode}); remove that episode")
    tasks = [names[int(i)] for i in frames["task_index"].to_numpy()[np.cumsum(lengths) - lengths]]
    return Table(episodes.to_dict("records"), lengths, states, actions, tasks, frames)


def _columns(cells: Any) -> np.ndarray:
    """(N, D) float32 from cells that hold vectors, or numbers where D = 1."""
    return np.stack(cells.to_numpy()).astype(np.float32).reshape(len(cells), -1)


def read_actions(directory: Path) -> list[tuple[dict[str, Any], np.ndarray]]:
    """Metadata and actions (T, A) of each episode, without decoding a picture."""
    table = read_table(directory)
    parts = np.split(table.actions, np.cumsum(table.lengths)[:-1])
    return [(table.metadata(i), part) for i, part in enumerate(parts)]


def read_episodes(directory: Path, image_key: str = IMAGE) -> Iterator[Episode]:
    """All episodes in order. Raises UserError as `read_table`, and for too few or unreadable pictures."""
    directory = Path(directory)
    info = read_info(directory)
    check_features(directory, info, image_key)
    table = read_table(directory)
    if info["features"][image_key]["dtype"] == "video":
        pictures = _video_frames(directory, info, table.episodes, image_key)
    else:
        pictures = (_decode_picture(cell, directory) for cell in table.frames[image_key])
    start = 0
    for index, length in enumerate(table.lengths):
        stop = start + int(length)
        images = np.stack([_next_picture(pictures, directory, index) for _ in range(start, stop)])
        yield Episode(
            images,
            table.states[start:stop],
            table.actions[start:stop],
            table.tasks[index],
            table.metadata(index),
        )
        start = stop


def dataset_id(directory: Path) -> str:
    """SHA-256 over names and contents of all files, first 16 hex digits; what `vag replay` noted does not count."""
    import pyarrow
    import pyarrow.parquet

    digest = hashlib.sha256()
    for path in sorted(p for p in Path(directory).rglob("*") if p.is_file() and p.suffix != ".partial"):
        name = str(path.relative_to(directory))
        digest.update(name.encode())
        if name.startswith("meta/episodes/"):
            try:
                table = pyarrow.parquet.read_table(path).replace_schema_metadata(None)
            except (OSError, pyarrow.ArrowException) as error:
                raise UserError(f"{path}: not readable as Parquet ({str(error).splitlines()[0]})") from error
            for column in sorted(c for c in table.column_names if not c.startswith("replay_")):
                digest.update(f"{column}={table[column].to_pylist()}".encode())
        else:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _read_parquet(directory: Path, folder: str, stem: str = "*", columns: list[str] | None = None) -> Any:
    import pandas as pd

    paths = sorted((directory / folder).rglob(f"{stem}.parquet"))
    if not paths:
        raise UserError(f"{directory / folder}: no Parquet file; the dataset is incomplete")
    tables = []
    for path in paths:
        try:
            tables.append(pd.read_parquet(path, columns=columns))
        except Exception as error:  # pyarrow raises several classes for a damaged file
            raise UserError(f"{path}: not readable as Parquet ({str(error).splitlines()[0]})") from error
    return pd.concat(tables)


def _video_frames(directory: Path, info: dict, episodes: list[dict], key: str) -> Iterator[np.ndarray]:
    import av

    files = dict.fromkeys((int(e[f"videos/{key}/chunk_index"]), int(e[f"videos/{key}/file_index"])) for e in episodes)
    for episode in episodes:
        seconds = episode[f"videos/{key}/to_timestamp"] - episode[f"videos/{key}/from_timestamp"]
        if round(seconds * info["fps"]) != episode["length"]:
            raise UserError(
                f"{directory}: episode {episode['episode_index']} has {round(seconds * info['fps'])} video frames "
                f"and {episode['length']} rows; frames were dropped when it was recorded"
            )
    for chunk, file in files:
        path = directory / info["video_path"].format(video_key=key, chunk_index=chunk, file_index=file)
        if not path.is_file():
            raise UserError(f"{path}: video file is missing")
        try:
            with av.open(str(path)) as container:
                for frame in container.decode(video=0):
                    yield frame.to_ndarray(format="rgb24")
        except av.FFmpegError as error:
            raise UserError(f"{path}: not readable as video ({error})") from error


def _next_picture(pictures: Iterator[np.ndarray], directory: Path, episode: int) -> np.ndarray:
    picture = next(pictures, None)
    if picture is None:
        raise UserError(f"{directory}: the video ends inside episode {episode}; it is truncated")
    return picture


def _decode_picture(cell: Any, directory: Path) -> np.ndarray:
    import io

    from PIL import Image, UnidentifiedImageError

    try:
        return np.asarray(Image.open(io.BytesIO(cell["bytes"])).convert("RGB"))
    except (UnidentifiedImageError, TypeError, KeyError) as error:
        raise UserError(f"{directory}: a picture in the data table is not readable ({error})") from error
