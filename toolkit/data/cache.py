"""From a dataset to its clip file, decoded once per content, picture size and way of storing.

Frames are stored raw or as JPEG files. What a clip file will take is printed before it is built.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.base.engine import LocalEngine
from toolkit.base.errors import UserError
from toolkit.base.progress import progress
from toolkit.data.cached_files import GIGABYTE, cache_directory, cache_limit, cached_file, fingerprint, remembered_id
from toolkit.data.canvas import Canvas, Size, choose_cameras, describe_cameras
from toolkit.data.clips import ClipStore, ClipTable, create_clips, create_jpeg_clips, write_frames
from toolkit.data.conventions import check_dimensions
from toolkit.data.episode import ACTION, STATE
from toolkit.data.formats import lerobot_layout, lerobot_read
from toolkit.data.formats.lerobot_layout import camera_keys, dimension_names, picture_bytes, picture_size
from toolkit.data.frames import CODING, JpegFrames, encoded_frames
from toolkit.data.images import as_size
from toolkit.data.pictures import TOGETHER, check_video_lengths, read_pictures

FORMAT = 4  # part of the names of cached files; another number when the same dataset would give another file
GROUP_VALUES = 8_000_000  # at least so many pixel values are decoded together: a group costs opening a file
PARALLEL_VALUES = 300_000_000  # pixel values of a dataset, above which it pays to start other processes
PART_VALUES = 4_000_000  # at most so many of one camera are in memory at once: it costs less to take the same again
SMALL_PIXELS = 128 * 128  # of one camera: pictures up to this size stay raw, which is read fastest
SMALL_BYTES = GIGABYTE  # of raw frames, which as JPEG would save too little to matter
MOST_TIMES = 5  # that raw frames of larger pictures may take of the dataset's own files
SAMPLED = 5  # episodes of which a picture is encoded, to tell the size of all


def open_clips(
    source: str | Path,
    image_size: int | Sequence[int] | Mapping[str, Size] | None,
    cameras: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    workers: int | None = None,
    storage: str = "auto",
) -> ClipStore:
    """The clips of a LeRobotDataset v3 directory (through the cache) or of a clip file.

    image_size: (height, width) that each camera gets on the canvas, one number for both, or by camera; None = as
    recorded. cameras: whose pictures, by
    feature key, all of the dataset where none is named; rename: other keys for cameras of the dataset. workers:
    processes that decode; None starts one per core where that saves time, 1 stays in this process. storage: raw,
    jpeg or auto, how a file that is built keeps frames, see `stored_as_jpeg`.
    Raises UserError if the source is missing or damaged, a camera is not there, or a clip file has pictures of another
    size.
    """
    source, rename = Path(source), rename or {}
    size = image_size if image_size is None or isinstance(image_size, Mapping) else as_size(image_size, "image_size")
    if source.is_file():
        store = ClipStore.open(source)
        store = replace(store, canvas=store.canvas.renamed(rename))
        if cameras and list(choose_cameras([*store.canvas.cameras], cameras, {}, str(source))) != [
            *store.canvas.cameras
        ]:
            has = ", ".join(store.canvas.cameras)
            raise UserError(f"{source}: a clip file of the cameras {has}, in this order; expected {', '.join(cameras)}")
    elif source.is_dir():
        content = fingerprint(source)  # before all else that is read: a build may begin long after, behind a lock
        info = lerobot_layout.read_info(source)
        lerobot_layout.check_features(source, info, None)
        chosen = choose_cameras(camera_keys(info), cameras, rename, str(source))
        sizes = {chosen[key]: own for key, own in size.items() if key in chosen} if isinstance(size, Mapping) else size
        canvas = Canvas.sized({key: picture_size(info, key) for key in chosen.values()}, sizes)
        identity = remembered_id(source)
        keys = hashlib.sha256("\0".join(canvas.cameras).encode()).hexdigest()[:8]
        jpeg = stored_as_jpeg(storage, source, info, canvas)
        name = f"{identity}-{keys}-{_size_name(canvas)}-{FORMAT}{f'-{CODING}' * jpeg}.h5"
        build = partial(build_clips, source, canvas, identity, content, workers, jpeg)
        store = open_cached(name, build, ClipStore.open)
        store = replace(store, state_names=dimension_names(info, STATE), action_names=dimension_names(info, ACTION))
        store = replace(store, canvas=canvas.renamed(rename), robot_type=str(info.get("robot_type") or ""))
        store = replace(store, codec=lerobot_layout.video_codec(info, next(iter(canvas.cameras))))
    else:
        raise UserError(f"{source}: not found; expected a LeRobotDataset directory or a clip file (.h5)")
    for camera, (height, width) in store.canvas.sizes.items():
        wanted = size.get(camera) if isinstance(size, Mapping) else size
        if wanted is not None and wanted != (height, width):
            raise UserError(
                f"{source}: pictures are {height}x{width} (height x width); expected {wanted[0]}x{wanted[1]}"
            )
    return store


def _size_name(canvas: Canvas) -> str:
    """Of the sizes on a canvas, in the name of a cached file."""
    height, width = canvas.cell
    own = hashlib.sha256(repr(list(canvas.own.values())).encode()).hexdigest()[:8]
    return f"{height}x{width}" + (f"-{own}" if canvas.own else "")


def stored_as_jpeg(storage: str, source: Path, info: dict[str, Any], canvas: Canvas) -> bool:
    """Whether frames are stored as JPEG. auto: where raw ones would take more than $VAG_CACHE_GB; or, of pictures
    larger than 128x128, more than five times the dataset's own and more than a gigabyte."""
    if storage != "auto":
        return storage == "jpeg"
    size = info["total_frames"] * math.prod(canvas.size) * 3
    if math.prod(canvas.cell) > SMALL_PIXELS and size > SMALL_BYTES:
        return size > MOST_TIMES * picture_bytes(source, info, list(canvas.cameras)) or size > cache_limit()
    return size > cache_limit()


def open_merged(stores: Sequence[ClipStore]) -> ClipStore:
    """Several clip stores as one, through the cache; a single one stays as it is.

    Raises UserError if their cameras, states or actions differ in size or in names, or their rates.
    """
    first = stores[0]
    if len(stores) == 1:
        return first
    for store in stores[1:]:
        for what in ("frames", "states", "actions"):
            ours, theirs = getattr(store, what).shape[1:], getattr(first, what).shape[1:]
            if ours != theirs:
                raise UserError(f"{store.name}: {what} are {ours}; {first.name} has {theirs}: they cannot be joined")
        if store.canvas.places != first.canvas.places:
            raise UserError(
                f"{store.name}: pictures of {describe_cameras(store.canvas)}; {first.name} has "
                f"{describe_cameras(first.canvas)}: they cannot be joined"
            )
        if store.fps != first.fps:
            raise UserError(
                f"{store.name}: {store.fps} fps; {first.name} has {first.fps}. resample_fps= lowers all to one"
            )
    check_dimensions(stores)
    key = hashlib.sha256(" ".join([str(FORMAT), *map(clip_id, stores)]).encode()).hexdigest()[:16]
    name = f"{key}-joined-{'x'.join(map(str, first.canvas.cell))}.h5"
    joined = open_cached(name, partial(_join, stores, key), ClipStore.open)
    # Notes may have come since the file was made.
    return replace(
        joined,
        metadata=[row for store in stores for row in store.metadata],
        state_names=next((store.state_names for store in stores if store.state_names), ()),
        action_names=next((store.action_names for store in stores if store.action_names), ()),
        canvas=first.canvas,
    )


def _join(stores: Sequence[ClipStore], source_id: str, path: Path) -> None:
    episodes = [(store, episode) for store in stores for episode in range(store.num_episodes)]
    rows = [store.rows_of(np.array([episode])) for store, episode in episodes]
    table = ClipTable(
        np.concatenate([store.states[part] for (store, _), part in zip(episodes, rows, strict=True)]),
        np.concatenate([store.actions[part] for (store, _), part in zip(episodes, rows, strict=True)]),
        np.array([len(part) for part in rows]),
        [store.instruction(episode) for store, episode in episodes],
        [store.metadata[episode] for store, episode in episodes],
        stores[0].fps,
        source_id,
        stores[0].canvas,
    )
    parts = progress(zip(episodes, rows, strict=True), description="join", total=len(rows), unit="ep")
    if any(isinstance(store.frames, JpegFrames) for store in stores):
        sizes = [_bytes_of(store) for store in stores]
        _announce(path, table, sum(sizes), jpeg=True)
        with create_jpeg_clips(path, table) as add:
            for (store, _), part in parts:
                files = encoded_frames(store.frames, part)
                add(np.array([len(file) for file in files]), np.concatenate(files))
        return
    _announce(path, table, len(table.states) * math.prod(stores[0].canvas.size) * 3, jpeg=False)
    offset = create_clips(path, table)
    reserve(path)
    first = 0
    for (store, _), part in parts:
        write_frames(path, offset, first, store.frames[part])
        first += len(part)


def _bytes_of(store: ClipStore) -> int:
    """What the frames of a store take as JPEG, about."""
    if isinstance(store.frames, JpegFrames):
        return int(store.frames.lengths.sum())
    some = np.linspace(0, len(store.frames) - 1, SAMPLED).astype(int)
    return round(len(store.frames) * np.mean([len(file) for file in encoded_frames(store.frames, some)]))


def _announce(path: Path, table: ClipTable, size: int, jpeg: bool, why: str = "") -> None:
    """Print what a clip file will take. Raises OSError if the disk has too little room."""
    rows, columns = table.canvas.grid
    shape = "x".join(map(str, (*((rows, columns) if rows * columns > 1 else ()), *table.canvas.cell)))
    limit = cache_limit() / GIGABYTE
    print(
        f"clip file: {len(table.states):,} pictures of {shape} {'as JPEG, about' if jpeg else 'raw,'} "
        f"{size_text(size)}{why}; $VAG_CACHE_GB is {limit:g}"
        + ", so all else in the cache will be deleted"
        * (size > limit * GIGABYTE),
        flush=True,
    )
    if shutil.disk_usage(path.parent).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path.parent))


def size_text(size: float) -> str:
    """Bytes in words, with three digits."""
    return f"{size / GIGABYTE:.3g} GB" if size >= GIGABYTE else f"{size / 1e6:.3g} MB"


def open_cached[Opened](name: str, build: Callable[[Path], None], opened: Callable[[Path], Opened]) -> Opened:
    """What `opened` makes of a file of the cache, which `build` writes if it is not there."""
    while True:
        path = cached_file(name, build)
        try:
            return opened(path)
        except (UserError, OSError):
            if path.exists():
                raise  # else another process needed the room between the two lines


def clip_id(store: ClipStore) -> str:
    """Names the content of a store: its file, in the cache by name, any other by place, size and time; and its part."""
    path = store.path.resolve()
    if path.parent == cache_directory().resolve():
        return f"{path.name} {store.source_id}"
    status = path.stat()
    return f"{path} {store.source_id} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


@dataclass
class _Group:
    """Consecutive episodes for one worker, and where their frames belong."""

    directory: Path
    canvas: Canvas
    episodes: list[dict[str, Any]]  # rows of the episode table
    first: int  # row of the first frame
    clip_file: Path

    @property
    def part(self) -> Path:
        """The file of its JPEG files, until the clip file has taken them in."""
        return self.clip_file.with_name(f"{self.clip_file.name}.{self.first}")


def build_clips(
    source: Path,
    canvas: Canvas,
    source_id: str,
    content: tuple[str, float],
    workers: int | None,
    jpeg: bool,
    path: Path,
) -> None:
    """Decode a LeRobotDataset into the clip file `path`, and print before what it will take.

    Every worker writes raw rows straight into the file, or JPEG files into a part beside it, that is then taken in.
    content: `fingerprint` of the dataset, taken before `source_id` was.
    Raises UserError as `read_table`, for pictures that are missing or unreadable, and if the dataset
    has changed since then or changes meanwhile; OSError if the disk has no room.
    """
    _check_unchanged(source, content)
    table = lerobot_read.read_table(source)
    info = lerobot_layout.read_info(source)
    for camera in canvas.cameras:
        check_video_lengths(source, info, table.episodes, camera)
    clips = ClipTable(
        table.states,
        table.actions,
        table.lengths,
        table.tasks,
        table.metadata,
        info["fps"],
        source_id,
        canvas,
    )
    values = sum(3 * math.prod(size) for size in canvas.cameras.values())  # of the pictures of a step
    groups = [
        _Group(source, canvas, table.episodes[a:b], int(table.lengths[:a].sum()), path)
        for a, b in _ranges(table.lengths, GROUP_VALUES / values)
    ]
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if len(table.states) * values > PARALLEL_VALUES else 1
    raw_size, own_size = len(table.states) * math.prod(canvas.size) * 3, picture_bytes(source, info, [*canvas.cameras])
    if jpeg:
        some = np.unique(np.linspace(0, len(table.lengths) - 1, SAMPLED).astype(int))
        files = [next(_files(_Group(source, canvas, [table.episodes[k]], 0, path))) for k in some]
        size = round(len(table.states) * np.mean([len(file) for file in files]))
        _announce(path, clips, size, jpeg, f" (raw {size_text(raw_size)}, in the dataset {size_text(own_size)})")
        with create_jpeg_clips(path, clips) as add:
            for group, lengths in _decode(_encode_group, groups, workers, clips):
                add(lengths, np.memmap(group.part, np.uint8, "r"))
                group.part.unlink()
    else:
        _announce(path, clips, raw_size, jpeg, f" (in the dataset {size_text(own_size)})")
        offset = create_clips(path, clips)
        reserve(path)
        for _ in _decode(partial(_decode_group, offset=offset), groups, workers, clips):
            pass
    _check_unchanged(source, content)


def _decode(
    function: Callable[[_Group], np.ndarray], groups: list[_Group], workers: int, table: ClipTable
) -> Iterator[tuple[_Group, np.ndarray]]:
    """What `function` gives of each group, in order, an entry a frame."""
    description, queue = f"decode {groups[0].directory.name}", iter(groups)
    bar = progress(description=description, total=len(table.states), unit="frame")
    try:
        engine = LocalEngine(min(workers, len(groups)))
        for group, lengths in engine.feed(function, lambda: next(queue, None), description=description):
            yield group, lengths
            bar.update(len(lengths))
    finally:
        bar.close()


def _check_unchanged(source: Path, content: tuple[str, float]) -> None:
    if fingerprint(source) != content:
        raise UserError(f"{source}: changed while it was read; run the command again when nothing writes to it")


def reserve(path: Path) -> None:
    """Take the room on the disk now, not after hours of decoding. Raises OSError if there is too little."""
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise OSError(error.errno, os.strerror(error.errno), str(path.parent)) from error
            # Any other: the file system cannot reserve, and the room is taken as the frames arrive.


def _ranges(lengths: np.ndarray, least: float) -> Iterator[tuple[int, int]]:
    """(first, end) of consecutive episodes with at least `least` frames each, but for the last."""
    first, frames = 0, 0
    for episode, length in enumerate(lengths):
        frames += int(length)
        if frames >= least or episode + 1 == len(lengths):
            yield first, episode + 1
            first, frames = episode + 1, 0


def _decode_group(group: _Group, offset: int) -> np.ndarray:
    """Runs in a worker: decode the pictures of a group into the clip file; returns bytes a frame."""
    row = group.first
    for canvases in _canvases(group):
        write_frames(group.clip_file, offset, row, canvases)
        row += len(canvases)
    return np.full(row - group.first, math.prod(group.canvas.size) * 3)


def _encode_group(group: _Group) -> np.ndarray:
    """Runs in a worker: the pictures of a group as JPEG files, one after the other in its part; returns their bytes."""
    with group.part.open("wb") as part:
        return np.array([part.write(file) for file in _files(group)])


def _files(group: _Group) -> Iterator[np.ndarray]:
    return (file for canvases in _canvases(group) for file in encoded_frames(canvases, range(len(canvases))))


def _canvases(group: _Group) -> Iterator[np.ndarray]:
    """The pictures of a group as canvases (T, H, W, 3), a few at a time. Raises UserError for those of another size."""
    most = max(3 * math.prod(size) for size in group.canvas.cameras.values())
    together = max(1, min(TOGETHER, PART_VALUES // most))  # for all cameras, so that they are cut at the same steps
    cameras = [read_pictures(group.directory, group.episodes, camera, together) for camera in group.canvas.cameras]
    for parts in zip(*cameras, strict=True):
        for (camera, size), part in zip(group.canvas.cameras.items(), parts, strict=True):
            if part.shape[1:3] != size:
                raise UserError(
                    f"{group.directory}: pictures of '{camera}' are {part.shape[1]}x{part.shape[2]}; meta/info.json "
                    f"says {size[0]}x{size[1]}"
                )
        yield group.canvas.compose(dict(zip(group.canvas.cameras, parts, strict=True)))
