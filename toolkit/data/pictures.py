"""Pictures of some episodes of a LeRobotDataset v3, without reading those before them.

A worker that decodes a part of a dataset starts here: at the episode's place in the video file, or at its row group
of the Parquet file. The frames are those that reading everything in order gives, bit for bit.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.data.lerobot_io import read_info
from toolkit.errors import UserError

TOGETHER = 64  # pictures in memory at once: recorded ones are large, and episodes long


def read_pictures(directory: Path, episodes: list[dict[str, Any]], image_key: str) -> Iterator[np.ndarray]:
    """(T, H, W, 3) uint8, T <= `TOGETHER`: the pictures of `episodes`, consecutive rows of the episode table.

    Raises UserError that names the file for pictures that are missing or unreadable.
    """
    info = read_info(directory)
    read = _from_videos if info["features"][image_key]["dtype"] == "video" else _from_tables
    for episode, pictures in zip(episodes, read(directory, info, episodes, image_key), strict=True):
        count, shapes = 0, set()
        while part := list(itertools.islice(pictures, TOGETHER)):
            count += len(part)
            shapes |= {picture.shape for picture in part}
            if len(shapes) > 1:
                raise UserError(f"{directory}: pictures of episode {episode['episode_index']} differ in size: {shapes}")
            yield np.stack(part)
        if count != episode["length"]:
            raise UserError(
                f"{directory}: episode {episode['episode_index']} has {count} pictures and {episode['length']} rows; "
                "it is truncated"
            )


def check_video_lengths(directory: Path, info: dict[str, Any], episodes: list[dict[str, Any]], key: str) -> None:
    """Raise UserError for an episode whose video is not as long as its rows."""
    for episode in episodes:
        seconds = episode[f"videos/{key}/to_timestamp"] - episode[f"videos/{key}/from_timestamp"]
        if round(seconds * info["fps"]) != episode["length"]:
            raise UserError(
                f"{directory}: episode {episode['episode_index']} has {round(seconds * info['fps'])} video frames "
                f"and {episode['length']} rows; frames were dropped when it was recorded"
            )


def _from_videos(
    directory: Path, info: dict[str, Any], episodes: list[dict[str, Any]], key: str
) -> Iterator[Iterator[np.ndarray]]:
    import av

    tolerance = 0.5 / info["fps"]
    for path, part in _by_file(directory, info["video_path"], f"videos/{key}/", episodes, video_key=key):
        try:
            with av.open(str(path)) as container:
                stream = container.streams.video[0]
                # Threads would share the work of a picture of one process; here every core has a process.
                stream.codec_context.thread_count = 1
                frames: Iterator[Any] = iter(())
                reached = float("nan")
                for episode in part:
                    start = episode[f"videos/{key}/from_timestamp"]
                    if not abs(start - reached) < tolerance:  # else the next frame is the wanted one
                        frames = _frames_from(container, stream, start - tolerance, path)
                    yield (frame.to_ndarray(format="rgb24") for frame in itertools.islice(frames, episode["length"]))
                    reached = episode[f"videos/{key}/to_timestamp"]
        except (av.FFmpegError, IndexError, ValueError) as error:
            raise UserError(f"{path}: not readable as video ({error})") from error


def _frames_from(container: Any, stream: Any, seconds: float, path: Path) -> Iterator[Any]:
    """Frames from `seconds` on, decoded from the key frame before it."""
    import av

    try:
        container.seek(max(0, int(seconds / stream.time_base)), stream=stream)
        yield from (frame for frame in container.decode(stream) if frame.time >= seconds)
    except av.FFmpegError as error:
        raise UserError(f"{path}: not readable as video ({error})") from error


def _from_tables(
    directory: Path, info: dict[str, Any], episodes: list[dict[str, Any]], key: str
) -> Iterator[Iterator[np.ndarray]]:
    import pyarrow
    import pyarrow.parquet

    for path, part in _by_file(directory, info["data_path"], "data/", episodes):
        indices = [episode["episode_index"] for episode in part]
        chosen = [("episode_index", ">=", min(indices)), ("episode_index", "<=", max(indices))]
        try:
            table = pyarrow.parquet.read_table(path, columns=["index", "episode_index", key], filters=chosen)
            table = table.sort_by("index")
            owners, cells = table["episode_index"].to_numpy(), table[key].to_pylist()
        except (OSError, pyarrow.ArrowException, KeyError) as error:
            raise UserError(f"{path}: not readable as Parquet ({str(error).splitlines()[0]})") from error
        for index in indices:
            yield (_decode(cells[row], path) for row in np.flatnonzero(owners == index))


def _decode(cell: Any, path: Path) -> np.ndarray:
    from PIL import Image

    try:
        return np.asarray(Image.open(io.BytesIO(cell["bytes"]), formats=("PNG", "JPEG")).convert("RGB"))
    except Exception as error:  # Pillow raises SyntaxError, struct.error, zlib.error and more
        raise UserError(f"{path}: a picture in the data table is not readable ({error})") from error


def _by_file(
    directory: Path, template: str, prefix: str, episodes: list[dict[str, Any]], **names: str
) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
    """Runs of episodes that lie in one file. Raises UserError if it is missing."""
    runs: list[tuple[tuple[int, int], list[dict[str, Any]]]] = []
    for episode in episodes:
        place = int(episode[f"{prefix}chunk_index"]), int(episode[f"{prefix}file_index"])
        if not runs or runs[-1][0] != place:
            runs.append((place, []))
        runs[-1][1].append(episode)
    for (chunk, file), run in runs:
        path = directory / template.format(**names, chunk_index=chunk, file_index=file)
        if not path.is_file():
            raise UserError(f"{path}: is missing; the dataset is incomplete")
        yield path, run
