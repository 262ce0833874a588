"""Video files of a source: pictures by their time, and parts of a file copied without decoding them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.base.errors import UserError, first_line
from toolkit.data.formats.hdf5 import MAX_EPISODE_BYTES
from toolkit.data.pictures import open_video

SLACK = 0.02  # of a period: stamps are rounded


@dataclass(frozen=True)
class Span:
    """Part of a video, in seconds; `stop` may lie behind its end."""

    path: Path
    start: float = 0.0
    stop: float = float("inf")


class Video:
    """The pictures of one file: when each is shown, and which can be decoded alone. Raises UserError for damage."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with _readable(path), open_video(path) as container:
            stream = container.streams.video[0]
            if stream.codec_context is None:  # PyAV would crash while decoding
                raise ValueError("unknown codec")
            packets = [(p.pts, p.is_keyframe) for p in container.demux(stream) if p.pts is not None and p.size]
            self.base: Any = stream.time_base
            self.kind = (stream.codec_context.name, stream.width, stream.height, stream.pix_fmt)
            self.codec = stream.codec.canonical_name
        if not packets:
            raise UserError(f"{path}: holds no picture")
        self.stamps, self.is_key = zip(*sorted(packets), strict=True)
        self.times = np.array(self.stamps) * float(self.base)  # (N,) seconds

    @property
    def period(self) -> float:
        """Seconds from one picture to the next, in the middle."""
        return float(np.median(np.diff(self.times))) if len(self.times) > 1 else 1.0

    def rows(self, span: Span, stamps: np.ndarray, fps: float) -> np.ndarray:
        """The number of the picture of each row (T,): by the rows' own stamps [s], else at k / fps, else by order.

        Raises UserError that names the file where none of these finds a picture for every row.
        """
        half = self.period / 2
        inside = np.flatnonzero((self.times > span.start - half) & (self.times < span.stop - half))
        even = np.arange(len(stamps)) / fps
        for wanted in (stamps, even, stamps - stamps[0]) if len(inside) else ():
            seconds, times = span.start + wanted, self.times[inside]
            after = np.clip(np.searchsorted(times, seconds), 1, max(len(times) - 1, 1)) % len(times)
            nearest = np.where(np.abs(times[after] - seconds) < np.abs(times[after - 1] - seconds), after, after - 1)
            near = np.abs(times[nearest] - seconds) <= half * (1 + SLACK)
            if near.all() and len(np.unique(nearest)) == len(nearest):
                return inside[nearest]
        if len(inside) == len(stamps):
            return inside
        raise UserError(
            f"{self.path}: {len(inside)} pictures, {1 / self.period:.4g} a second, for {len(stamps)} rows at {fps:g} "
            f"a second from {span.start:.2f} s on; pictures were dropped when it was recorded. Leave the episode out"
        )

    def read(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """(T, H, W, 3) uint8 of pictures in rising order. Raises UserError if one cannot be decoded."""
        wanted = {self.stamps[number]: place for place, number in enumerate(numbers)}
        frames: Any = None
        with _readable(self.path), open_video(self.path) as container:
            stream = container.streams.video[0]
            container.seek(min(wanted), stream=stream)
            for frame in container.decode(stream):
                if (place := wanted.pop(frame.pts, None)) is not None:
                    picture = frame.to_ndarray(format="rgb24")
                    if frames is None and picture.nbytes * len(numbers) > MAX_EPISODE_BYTES:
                        raise UserError(f"{self.path}: an episode of it takes more than 4 GiB in memory; split it")
                    frames = np.empty((len(numbers), *picture.shape), np.uint8) if frames is None else frames
                    frames[place] = picture
                if not wanted:
                    return frames
        raise UserError(f"{self.path}: {len(wanted)} pictures cannot be decoded; leave the episode out")

    def can_copy(self, numbers: np.ndarray, fps: float) -> bool:
        """True for neighbouring pictures at a rate that start with one that can be decoded alone."""
        neighbours = len(numbers) < 2 or bool((np.diff(numbers) == 1).all())
        last = int(numbers[-1]) + 1
        alone = last == len(self.stamps) or self.is_key[last]
        return neighbours and alone and self.is_key[int(numbers[0])] and abs(self.period * fps - 1) < SLACK

    def copy(self, numbers: np.ndarray, target: Path) -> None:
        """Write pictures for which `can_copy` is true as a file that starts at 0 s; nothing is encoded."""
        self.copy_parts([numbers], target)

    def copy_parts(self, parts: Sequence[np.ndarray], target: Path) -> list[float]:
        """Write several parts, for each of which `can_copy` is true, one after the other; nothing is encoded.

        Returns the second at which each starts in the new file.
        """
        count = sum(map(len, parts))
        if count == len(self.stamps) and self.stamps[0] == 0 and self.path.suffix == ".mp4" and in_order(parts):
            shutil.copyfile(self.path, target)
            return [float(self.times[part[0]]) for part in parts]
        import av

        starts, begin = [], 0  # in units of the time base
        tick = round(self.period / float(self.base))
        with _readable(self.path), open_video(self.path) as source, av.open(str(target), "w") as copy:
            stream = source.streams.video[0]
            out: Any = copy.add_stream_from_template(stream, opaque=True)
            out.time_base = stream.time_base
            for part in parts:
                first, last = (self.stamps[int(part[end])] for end in (0, -1))
                source.seek(first, stream=stream)
                left = len(part)
                for packet in source.demux(stream):
                    if packet.pts is None or packet.dts is None or not first <= packet.pts <= last:
                        continue
                    packet.pts, packet.dts = packet.pts - first + begin, packet.dts - first + begin
                    packet.stream = out
                    copy.mux(packet)
                    left -= 1
                    if not left:
                        break
                starts.append(float(begin * self.base))
                begin += last - first + tick
        return starts


def in_order(parts: Sequence[np.ndarray]) -> bool:
    """True where the parts together are the pictures of a file in their order."""
    return all(part[0] == stop for part, stop in zip(parts, np.cumsum([0, *map(len, parts[:-1])]), strict=True))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Errors of decoders, which are of every class, as one line that names the file."""
    try:
        yield
    except (UserError, MemoryError, GeneratorExit):
        raise
    except Exception as error:
        raise UserError(f"{path}: not readable as video ({first_line(error)})") from error
