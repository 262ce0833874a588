"""What can be wrong with the pictures of a dataset; every one is decoded, a sample of them is looked at."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.base.errors import UserError
from toolkit.base.progress import progress
from toolkit.data.episode import ACTION, STATE
from toolkit.data.formats.looks import Looks, Moves
from toolkit.data.inspection.contents import MAX_LINES, Contents, Findings
from toolkit.data.inspection.picture_spans import Span, cell_picture, planes, video_frames, video_span
from toolkit.data.inspection.row_checks import LEAVE_OUT

SHOWN = 8  # episodes on a contact sheet
MOST_FRAMES = 10  # of a video for each row; spans of damaged tables are endless
SAMPLED = 2000  # pictures of a camera that statistics come from
SAMPLED_SIDE = 64  # of a sampled picture about so many pixels a side count


@dataclass
class CameraSample:
    """levels: (3, 256), how often each brightness occurs. shown: pictures (H, W, 3) by episode and frame."""

    levels: np.ndarray = field(default_factory=lambda: np.zeros((3, 256), np.int64))
    shown: dict[int, dict[int, np.ndarray]] = field(default_factory=dict)
    sizes: set[tuple[int, int]] = field(default_factory=set)
    looks: dict[int, Looks] = field(default_factory=lambda: defaultdict(Looks))  # by episode

    def count(self, picture: np.ndarray) -> None:
        self.sizes.add(picture.shape[:2])
        step = max(1, min(picture.shape[:2]) // SAMPLED_SIDE)
        for channel, pixels in enumerate(picture[::step, ::step].reshape(-1, 3).T):
            self.levels[channel] += np.bincount(pixels, minlength=256)


def check_pictures(contents: Contents, findings: Findings) -> dict[str, CameraSample]:
    """Decode the pictures of all cameras, add what is wrong to the findings, and return samples by camera."""
    if not contents.cameras:
        findings.add("rewrite", "no feature of dtype video or image, which training needs; import pictures too")
    total = len(contents.cameras) * sum(len(rows) for rows in contents.rows)
    bar = progress(description="decode", total=total, unit="frame")
    samples = {}
    for camera in contents.cameras:
        sample = samples[camera] = CameraSample()
        wanted = _wanted(contents)
        if contents.features[camera]["dtype"] == "video":
            _check_videos(contents, findings, camera, sample, wanted, bar)
        else:
            _check_images(contents, findings, camera, sample, wanted, bar)
        _check_size(contents, findings, camera, sample)
        _check_looks(contents, findings, camera, sample)
    bar.close()
    return samples


def _wanted(contents: Contents) -> dict[int, set[int]]:
    """First, middle and last frame of some episodes, evenly spread."""
    episodes = [episode for episode, rows in enumerate(contents.rows) if len(rows)]
    chosen = {episodes[int(i)] for i in np.linspace(0, len(episodes) - 1, SHOWN).round()} if episodes else set()
    lengths = {episode: len(contents.rows[episode]) for episode in sorted(chosen)}
    return {episode: {0, length // 2, length - 1} for episode, length in lengths.items()}


def _check_videos(
    contents: Contents, findings: Findings, camera: str, sample: CameraSample, wanted: dict[int, set[int]], bar: Any
) -> None:
    files: dict[Path, list[tuple[Span, int]]] = {}
    found: list[tuple[int, str]] = []
    for episode, rows in enumerate(contents.rows):
        if not len(rows):
            continue
        span = video_span(contents, episode, camera)
        if span is None:
            text = f"the episode table names no usable place in the video; {LEAVE_OUT}"
            found.append((episode, f"{camera}: {contents.name(episode)}: {text}"))
            continue
        if span.stop - span.start != len(rows):
            text = f"{span.stop - span.start} video frames and {len(rows)} rows; {LEAVE_OUT}"
            found.append((episode, f"{camera}: {contents.name(episode)}: {text}"))
        files.setdefault(span.path, []).append((span, episode))
    findings.each("drop", camera, found)
    stride = max(1, len(contents.frames) // SAMPLED)
    for path, spans in files.items():
        spans.sort(key=lambda pair: pair[0].start)
        _check_video(
            contents,
            findings,
            camera,
            path,
            spans,
            _look(sample, spans, wanted, stride, MOST_FRAMES * len(contents.frames)),
            bar,
        )


def _look(
    sample: CameraSample, spans: list[tuple[Span, int]], wanted: dict[int, set[int]], stride: int, most: int
) -> Any:
    """A function that takes a frame at a place of a file, counts a sample and keeps what is to be shown."""
    kept = {
        span.start + frame: (episode, frame)
        for span, episode in spans
        for frame in wanted.get(episode, ())
        if frame < span.stop - span.start
    }

    owners = np.full(min(max(span.stop for span, _ in spans), most), -1)
    for span, episode in spans:
        owners[span.start : span.stop] = episode

    def look(place: int, frame: Any) -> None:
        if not 0 <= place < len(owners) or owners[place] < 0:  # of no episode, as in a file that could not be cut
            return
        sample.looks[int(owners[place])].add(planes(frame))
        if place in kept or place % stride == 0:
            picture = frame.to_ndarray(format="rgb24")
            sample.count(picture)
            if place in kept:
                episode, number = kept[place]
                sample.shown.setdefault(episode, {})[number] = picture

    return look


def _check_video(
    contents: Contents,
    findings: Findings,
    camera: str,
    path: Path,
    spans: list[tuple[Span, int]],
    look: Any,
    bar: Any,
) -> None:
    """Decode one file; an episode is lost if any frame of its span is missing."""
    name = path.relative_to(contents.directory)
    claimed = sum(span.stop - span.start for span, _ in spans)
    seen = np.zeros(min(max(span.stop for span, _ in spans), MOST_FRAMES * len(contents.frames)), bool)
    beyond = 0
    try:
        for place, frame in video_frames(path, contents.fps):
            if 0 <= place < len(seen):
                seen[place] = True
                look(place, frame)
            else:
                beyond += 1
            bar.update()
    except UserError as error:
        episodes = [episode for _, episode in spans]
        text = f"{camera}: {error}; leave out {_listed(contents, episodes)} or bring the file back"
        findings.add("drop", text, episodes)
        return
    found = []
    previous = 0
    for span, episode in spans:
        there = seen[span.start : span.stop]
        if missing := span.stop - span.start - int(there.sum()):
            first = int(np.argmin(there)) if len(there) and not there.all() else len(there)
            text = f"{missing} of {span.stop - span.start} video frames are missing or damaged, first frame {first}"
            found.append((episode, f"{camera}: {contents.name(episode)}: {text} ({name}); {LEAVE_OUT}"))
        elif span.start < previous:
            text = f"shares video frames with the episode before it ({name}); {LEAVE_OUT}"
            found.append((episode, f"{camera}: {contents.name(episode)}: {text}"))
        previous = max(previous, span.stop)
    findings.each("drop", camera, found)
    if (extra := beyond + int(seen.sum()) - claimed) > 0:
        text = f"{name} holds {extra} frames that belong to no episode, so what follows is read shifted"
        findings.add("rewrite", f"{camera}: {text}; write the video again")


def _check_images(
    contents: Contents, findings: Findings, camera: str, sample: CameraSample, wanted: dict[int, set[int]], bar: Any
) -> None:
    if camera not in contents.frames:
        everything = range(len(contents.rows))
        findings.add("drop", f"{camera}: is a feature in info.json and no column of the data; import again", everything)
        return
    cells = contents.frames[camera].to_numpy()
    stride = max(1, len(cells) // SAMPLED)
    found = []
    for episode, rows in enumerate(contents.rows):
        broken: list[int] = []
        for number, row in enumerate(rows):
            bar.update()
            try:
                picture = cell_picture(cells[row])
            except UserError:
                broken.append(number)
                continue
            sample.looks[episode].add(picture.transpose(2, 0, 1))
            if row % stride == 0:
                sample.count(picture)
            if number in wanted.get(episode, ()):
                sample.shown.setdefault(episode, {})[number] = picture
        if broken:
            text = f"{len(broken)} pictures are not readable, first at frame {broken[0]}; {LEAVE_OUT}"
            found.append((episode, f"{camera}: {contents.name(episode)}: {text}"))
    findings.each("drop", camera, found)


def _check_size(contents: Contents, findings: Findings, camera: str, sample: CameraSample) -> None:
    feature = contents.features[camera]
    names = feature.get("names")
    first = isinstance(names, list) and len(names) == 3 and str(names[0]).startswith("channel")
    declared = tuple(feature["shape"][1:] if first else feature["shape"][:2])
    if sizes := sorted(size for size in sample.sizes if size != declared):
        text = f"pictures are {sizes[0][0]}x{sizes[0][1]}, info.json says {'x'.join(map(str, declared))}"
        findings.add("rewrite", f"{camera}: {text}; correct the shape")


def _check_looks(contents: Contents, findings: Findings, camera: str, sample: CameraSample) -> None:
    """Warn of episodes whose pictures show nothing, or stand still while the robot moves."""
    keys = [key for key in (STATE, ACTION) if key in contents.values]
    found = []
    for episode, looks in sorted(sample.looks.items()):
        rows = contents.rows[episode]
        moves = Moves(np.concatenate([contents.values[key][rows] for key in keys], axis=1) if keys else rows[:, None])
        found += [f"{camera}: {contents.name(episode)}: {text}" for text in looks.doubts(moves)]
    for text in found[:MAX_LINES]:
        findings.warn(text)
    if len(found) > MAX_LINES:
        findings.warn(f"{camera}: {len(found) - MAX_LINES} further episodes look like these")


def _listed(contents: Contents, episodes: list[int]) -> str:
    ids = [str(contents.ids[episode]) for episode in episodes]
    shown = ", ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
    return f"episode{'s' * (len(ids) > 1)} {shown}"


def shown_pictures(samples: dict[str, CameraSample]) -> Iterator[tuple[str, int, list[np.ndarray]]]:
    """(camera, episode, pictures in order) of the contact sheets."""
    for camera, sample in samples.items():
        for episode, pictures in sorted(sample.shown.items()):
            yield camera, episode, [picture for _, picture in sorted(pictures.items())]
