"""Where the pictures of each episode are, and decoding them from files that may be damaged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.base.errors import UserError
from toolkit.data.formats import videos
from toolkit.data.formats.lerobot_layout import video_place
from toolkit.data.formats.videos import Video
from toolkit.data.images import decode_picture
from toolkit.data.inspection.contents import Contents
from toolkit.data.pictures import open_video


@dataclass(frozen=True)
class Span:
    """Frames `start` to `stop` (exclusive) of a video file."""

    path: Path
    start: int
    stop: int


def video_span(contents: Contents, episode: int, camera: str) -> Span | None:
    """The place of an episode's pictures; None if the episode table or info.json does not say."""
    row = contents.episodes[episode]
    names = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
    try:
        chunk, file, first, last = (float(row[f"videos/{camera}/{name}"]) for name in names)
        start, stop = round(first * contents.fps), round(last * contents.fps)
        place = camera, int(chunk), int(file)
        if place not in contents.videos:
            contents.videos[place] = video_place(contents.directory, contents.info, *place)
    except (KeyError, TypeError, ValueError, OverflowError, UserError):
        return None
    return Span(contents.videos[place], start, stop) if 0 <= start < stop else None


def video_frames(path: Path, fps: float) -> Iterator[tuple[int, Any]]:
    """(place, PyAV frame) of what can be decoded; the place follows from the time stamp, so gaps keep their width.

    A frame between two places, or a second one at the same place, has the place -1.
    Packets that are damaged are passed over. Raises UserError if the file holds no readable video at all.
    """
    import av

    av.logging.set_libav_level(av.logging.PANIC)  # damage is told by us, in one line
    if not path.is_file():
        raise UserError(f"{path}: video file is missing")
    try:
        container = open_video(path)
    except (av.FFmpegError, ValueError) as error:
        raise UserError(f"{path}: not readable as video ({error})") from error
    with container:
        if not container.streams.video or container.streams.video[0].codec_context is None:
            raise UserError(f"{path}: not readable as video (it holds none, or its codec is unknown)")
        stream = container.streams.video[0]
        stream.codec_context.options = {"err_detect": "explode"}  # else it invents pictures in place of damaged ones
        count, latest = 0, -1
        for packet in _packets(container, stream):
            try:
                frames: list[Any] = packet.decode()
            except av.FFmpegError:
                continue
            for frame in frames:
                exact = count if frame.time is None else frame.time * fps
                count += 1
                if frame.is_corrupt:
                    continue
                if abs(exact - round(exact)) < 0.25 and round(exact) != latest:
                    latest = round(exact)
                    yield latest, frame
                else:
                    yield -1, frame


def planes(frame: Any) -> list[np.ndarray]:
    """The colours of a decoded picture, each (h, w) uint8, as its format keeps them: nothing is converted."""
    if frame.format.name not in ("yuv420p", "yuv422p", "yuv444p"):
        return list(frame.to_ndarray(format="rgb24").transpose(2, 0, 1))
    return [
        np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]
        for plane in frame.planes
    ]


def cell_picture(cell: Any) -> np.ndarray:
    """(H, W, 3) uint8 from a cell {"bytes": ...} of the rows. Raises UserError if it holds no picture."""
    try:
        return decode_picture(cell["bytes"])
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"a picture in the data is not readable ({error})") from error


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    """Packets up to the end of the file, or to where it is cut off."""
    import av

    try:
        yield from container.demux(stream)
    except av.FFmpegError:
        return


class EpisodePictures:
    """Pictures of one camera, episode by episode in any order."""

    def __init__(self, contents: Contents, camera: str) -> None:
        self.contents, self.camera = contents, camera
        self.video: Video | None = None

    def read(self, episode: int) -> np.ndarray:
        """(T, H, W, 3) uint8. Raises UserError if they are not all there."""
        contents, rows = self.contents, self.contents.rows[episode]
        if contents.features[self.camera]["dtype"] == "image":
            cells = contents.frames[self.camera]
            pictures = [cell_picture(cells.iloc[row]) for row in rows]
            if len({picture.shape for picture in pictures}) > 1:
                raise UserError(f"{contents.directory}: pictures of {contents.name(episode)} differ in size")
            return np.stack(pictures)
        span = video_span(contents, episode, self.camera)
        if span is None:
            raise UserError(f"{contents.directory}: {contents.name(episode)} has no place in the video")
        if self.video is None or self.video.path != span.path:
            self.video = Video(span.path)
        seconds = videos.Span(span.path, span.start / contents.fps, span.stop / contents.fps)
        return self.video.read(self.video.rows(seconds, np.arange(len(rows)) / contents.fps, contents.fps))
