"""Pictures of some episodes of a LeRobotDataset v3, without reading those before them.

A worker that decodes a part of a dataset starts here: at the episode's place in the video file, or at its row group
of the Parquet file. The frames are those that reading everything in order gives, bit for bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.base.errors import UserError, first_line
from toolkit.base.reading import check_content
from toolkit.data.formats.lerobot_layout import data_file, read_info, video_file
from toolkit.data.formats.parquet import read_parquet
from toolkit.data.images import decode_picture

# What FFmpeg may take a file for. Others, such as playlists, name files that it would open in turn, wherever they lie.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm"
TOGETHER = 64  # pictures in memory at once: recorded ones are large, and episodes long
Pictures = Iterator[np.ndarray]


def read_pictures(
    directory: Path, episodes: list[dict[str, Any]], image_key: str, together: int = TOGETHER
) -> Iterator[np.ndarray]:
    """(T, H, W, 3) uint8, T <= `together`: the pictures of `episodes`, consecutive rows of the episode table.

    No part reaches over the end of an episode. Raises UserError that names the file for pictures that are missing or
    unreadable.
    """
    info = read_info(directory)
    read = _from_videos if info["features"][image_key]["dtype"] == "video" else _from_tables
    for episode, pictures in zip(episodes, read(directory, info, episodes, image_key), strict=True):
        count, shapes = 0, set()
        while part := list(itertools.islice(pictures, together)):
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


def open_video(path: Path) -> Any:
    """A PyAV container. Raises `av.FFmpegError` or ValueError for a damaged file and one of no video format."""
    import av

    check_content(path)
    return av.open(str(path), options={"format_whitelist": CONTAINERS})


def check_video_lengths(directory: Path, info: dict[str, Any], episodes: list[dict[str, Any]], key: str) -> None:
    """Raise UserError for an episode whose video is not as long as its rows, or whose place is not told."""
    if info["features"][key]["dtype"] != "video":
        return
    for episode in episodes:
        _, _, start, stop = _video_place(directory, episode, key)
        frames = round((stop - start) * info["fps"])
        if frames != episode["length"]:
            raise UserError(
                f"{directory}: episode {episode['episode_index']} has {frames} video frames "
                f"and {episode['length']} rows; frames were dropped when it was recorded"
            )


def _from_videos(directory: Path, info: dict[str, Any], episodes: list[dict[str, Any]], key: str) -> Iterator[Pictures]:
    tolerance = 0.5 / info["fps"]
    places = [_video_place(directory, episode, key) for episode in episodes]
    for (chunk, file), run in itertools.groupby(zip(episodes, places, strict=True), lambda item: item[1][:2]):
        path = video_file(directory, info, key, chunk, file)
        with _readable(path, "video"), open_video(path) as container:
            stream = container.streams.video[0]
            if stream.codec_context is None:  # PyAV would crash while decoding
                raise ValueError("unknown codec")
            # Threads would share the work of a picture of one process; here every core has a process.
            stream.codec_context.thread_count = 1
            frames: Iterator[Any] = iter(())
            reached = float("nan")
            for episode, (_, _, start, stop) in run:
                if not abs(start - reached) < tolerance:  # else the next frame is the wanted one
                    container.seek(max(0, int((start - tolerance) / stream.time_base)), stream=stream)
                    frames = _frames_from(container.decode(stream), start - tolerance)
                yield _converted(itertools.islice(frames, episode["length"]), path, episode, start, info["fps"])
                reached = stop


def _frames_from(frames: Iterator[Any], seconds: float) -> Iterator[Any]:
    """Frames from `seconds` on, of those decoded from the key frame before it."""
    return (frame for frame in frames if frame.time >= seconds)


def _converted(frames: Iterator[Any], path: Path, episode: dict[str, Any], start: float, fps: float) -> Pictures:
    """Pictures of an episode, of which each must stand where its row does: a lost frame would shift all that follow."""
    with _readable(path, "video"):
        for number, frame in enumerate(frames):
            seconds = start + number / fps
            if not abs(frame.time - seconds) < 0.5 / fps:
                raise UserError(
                    f"{path}: frame {number} of episode {episode['episode_index']} stands at {frame.time:.4f} s "
                    f"instead of {seconds:.4f} s; a frame is missing or doubled. Leave the episode out"
                )
            yield frame.to_ndarray(format="rgb24")


def _from_tables(directory: Path, info: dict[str, Any], episodes: list[dict[str, Any]], key: str) -> Iterator[Pictures]:
    places = [_place(directory, episode, "data/") for episode in episodes]
    for place, run in itertools.groupby(zip(episodes, places, strict=True), lambda item: item[1]):
        path = data_file(directory, info, *place)
        indices = [episode["episode_index"] for episode, _ in run]
        chosen = ("episode_index", min(indices), max(indices))
        with _readable(path, "Parquet"):
            table = read_parquet(path, ["index", "episode_index", key], chosen)
            table = table.sort_by("index")
            owners, cells = table["episode_index"].to_numpy(), table[key].to_pylist()
        for index in indices:
            yield (_decoded(cells[row], path) for row in np.flatnonzero(owners == index))


def _decoded(cell: Any, path: Path) -> np.ndarray:
    with _readable(path, "pictures"):
        return decode_picture(cell["bytes"])


def _video_place(directory: Path, episode: dict[str, Any], key: str) -> tuple[int, int, float, float]:
    """Chunk, file, first and last second."""
    prefix = f"videos/{key}/"
    chunk, file = _place(directory, episode, prefix)
    try:
        start, stop = (float(episode[f"{prefix}{name}_timestamp"]) for name in ("from", "to"))
        if not 0 <= start < stop < 1e9:
            raise ValueError(f"from {start} to {stop} seconds")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(_misplaced(directory, episode, prefix, error)) from error
    return chunk, file, start, stop


def _place(directory: Path, episode: dict[str, Any], prefix: str) -> tuple[int, int]:
    """Chunk and file of an episode. Raises UserError if the episode table does not tell."""
    try:
        return int(episode[f"{prefix}chunk_index"]), int(episode[f"{prefix}file_index"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(_misplaced(directory, episode, prefix, error)) from error


def _misplaced(directory: Path, episode: dict[str, Any], prefix: str, error: Exception) -> str:
    where = f"'{prefix}...' of episode {episode['episode_index']}"
    return f"{directory}: {where} in meta/episodes is missing or damaged ({error})"


@contextmanager
def _readable(path: Path, kind: str) -> Iterator[None]:
    """Errors of decoders, which are of every class, as one line that names the file."""
    try:
        yield
    except (UserError, GeneratorExit, MemoryError):
        raise
    except Exception as error:
        line = first_line(error)
        raise UserError(f"{path}: not readable as {kind} ({line})") from error
