"""LeRobotDataset v3 on disk: written atomically, through LeRobot itself, with notes on its episodes in a table."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import numpy as np

from toolkit.base import files, manifest, reading
from toolkit.base.errors import UserError
from toolkit.data.episode import ACTION, STATE, Episode
from toolkit.data.episode_notes import FILE, check_row, episode_id, write_notes
from toolkit.data.formats.lerobot_copy import Copies, CopyingEncoder
from toolkit.data.formats.lerobot_layout import check_instruction
from toolkit.data.formats.lerobot_stats import two_shortcuts

VIDEO_FILE_MB = 8


class EpisodeWriter:
    """Context manager that writes a LeRobotDataset v3 under a temporary name and renames it when complete.

    Video is H.264 in yuv444p: 47 dB and 2.8 kB a picture on 64x64 renderings, at a tenth of a millisecond each;
    "superfast" and "veryfast" give smaller files of worse pictures, and the usual yuv420p stops at 35 dB.
    `crf=0` codes yuv444p without loss: 51 dB or more whatever the pictures show, since only the colour conversion
    rounds, where `crf=2` falls to 41 dB on small noisy ones. It takes 3 (noise) to 20 (camera) percent more bytes.
    Other codecs (hevc, av1) code yuv420p, at LeRobot's quality where `crf` is None. `copies` gives videos of the source
    that are taken as they are.
    Every key of `Episode.cameras` becomes a video feature of its own.
    Leaving the block with an exception removes what was written. Raises UserError on entering if something stands at
    the place that the open run has not written.
    """

    def __init__(
        self,
        directory: Path,
        fps: int,
        state_names: list[str],
        action_names: list[str],
        robot_type: str = "sawyer",
        crf: int | None = 2,
        codec: str = "h264",
        copies: Copies | None = None,
    ) -> None:
        self.directory, self.fps, self.robot_type = Path(directory), fps, robot_type
        self.state_names, self.action_names, self.crf = state_names, action_names, crf
        self.codec, self.copies = codec, copies
        self.temporary = manifest.partial_name(self.directory)
        self.metadata: list[dict[str, Any]] = []
        self.ids: list[str] = []
        self._dataset: Any = None
        self._values: dict[str, list[np.ndarray]] = {STATE: [], ACTION: []}

    def __enter__(self) -> Self:
        self._block: AbstractContextManager[None] = self._writing()
        self._block.__enter__()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._block.__exit__(kind, error, trace)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        check_writable_name(self.directory)
        with files.atomic_directory(self.directory) as temporary:
            temporary.rmdir()  # LeRobot makes it, and nothing where there is one
            try:
                yield
            except BaseException:  # the first error is the one to tell
                with suppress(Exception):
                    self._finalize()
                raise
            self._finalize()
            self._complete()

    def add(self, episode: Episode) -> None:
        """Append one episode.

        Raises UserError if a number is not finite in float32, a shape differs from the first, or the instruction is
        too long.
        """
        name = f"{self.directory}: episode {len(self.metadata)}"
        with np.errstate(over="ignore"):  # infinity is complained about below
            vectors = {STATE: episode.states.astype(np.float32), ACTION: episode.actions.astype(np.float32)}
        for key, values in vectors.items():
            if not np.isfinite(values).all():
                raise UserError(f"{name}: '{key}' holds NaN or infinity; it was not written")
        check_row(episode.metadata, name)
        check_instruction(episode.task, name)
        cameras = episode.pictures
        rows: dict[str, np.ndarray] = {**cameras, **vectors}
        lengths = {key: len(part) for key, part in rows.items()}
        if set(lengths.values()) != {len(episode)} or not len(episode):
            raise UserError(f"{name}: lengths differ or are zero: {lengths}")
        shapes = {key: part.shape[1:] for key, part in rows.items()}
        if self._dataset is None:
            self._dataset, self._shapes = self._create({key: shapes[key] for key in cameras}), shapes
        if shapes != self._shapes:
            raise UserError(f"{name}: shapes {shapes}; the first episode has {self._shapes}")
        with two_shortcuts(), temporary_files_in(self.temporary):
            for step in range(len(episode)):
                self._dataset.add_frame({**{key: part[step] for key, part in rows.items()}, "task": episode.task})
            self._dataset.save_episode()
        self.metadata.append(episode.metadata)
        self.ids.append(episode_id(vectors[STATE], vectors[ACTION]))
        self._values[STATE].append(episode.states)
        self._values[ACTION].append(episode.actions)

    def _finalize(self) -> None:
        if self._dataset is not None:
            with temporary_files_in(self.temporary):
                self._dataset.finalize()

    def _complete(self) -> None:
        if self._dataset is None:
            raise UserError(f"{self.directory}: no episode to write; the dataset would be empty")
        if any(self.metadata):
            write_notes(self.temporary / "meta" / FILE, self.ids, self.metadata)
        rows = {key: np.concatenate(parts) for key, parts in self._values.items()}
        write_quantiles(self.temporary, rows, str(self.directory))
        files.discard(self.temporary / "images", everything=True)

    def _create(self, image_shapes: dict[str, tuple[int, ...]]) -> Any:
        import av
        import datasets
        from lerobot.configs.video import RGBEncoderConfig
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        datasets.disable_progress_bars()  # one bar of ours instead of one per episode
        av.logging.set_libav_level(av.logging.PANIC)  # it tells statistics per episode, and damage, which we tell
        vector = {"dtype": "float32"}
        features = {
            **{
                key: {"dtype": "video", "shape": shape, "names": ["height", "width", "channels"]}
                for key, shape in image_shapes.items()
            },
            STATE: {**vector, "shape": (len(self.state_names),), "names": self.state_names},
            ACTION: {**vector, "shape": (len(self.action_names),), "names": self.action_names},
        }
        encoder: Any = {"vcodec": {"av1": "libsvtav1"}.get(self.codec, self.codec)}
        if self.crf is not None:
            encoder["crf"] = self.crf
        if self.codec == "h264":
            encoder |= {"pix_fmt": "yuv444p", "preset": "ultrafast"}
        dataset = LeRobotDataset.create(
            f"local/{self.directory.name}",
            fps=self.fps,
            features=features,
            root=self.temporary,
            robot_type=self.robot_type,
            rgb_encoder=RGBEncoderConfig(**encoder),
            streaming_encoding=True,
            encoder_threads=1,
            encoder_queue_maxsize=1_000_000,  # at its default LeRobot drops frames when the encoder falls behind
        )
        # LeRobot rewrites the latest video file with every episode; at its 200 MB that soon takes longest.
        dataset.meta.update_chunk_settings(video_files_size_in_mb=VIDEO_FILE_MB)
        if self.copies is not None:
            writer: Any = dataset.writer
            writer._streaming_encoder, writer._rgb_encoder = CopyingEncoder(self.copies), None
        return dataset


def write_quantiles(directory: Path, rows: dict[str, np.ndarray], shown: str) -> None:
    """Replace the averaged per-episode quantiles, which are wrong, by quantiles of all frames: rows (N, D) by key.

    Raises UserError, which calls the dataset as it is `shown`, for a statistic that is not finite.
    """
    path = directory / "meta/stats.json"
    statistics = reading.read_json(path)
    for key, values in rows.items():
        for name in [name for name in statistics[key] if name[0] == "q"]:
            statistics[key][name] = np.quantile(values, int(name[1:]) / 100, axis=0).tolist()
    check_finite(statistics, f"{shown}/meta/stats.json")
    files.write_json(path, statistics)


def check_finite(value: Any, where: str) -> None:
    """Raise UserError if a number in nested lists and mappings is not finite."""
    if isinstance(value, dict):
        for key, inner in value.items():
            check_finite(inner, f"{where}: '{key}'")
    elif isinstance(value, list):
        for inner in value:
            check_finite(inner, where)
    elif isinstance(value, float | np.floating) and not math.isfinite(value):
        raise UserError(f"{where} is {value}; expected finite numbers. It was not written")


def check_writable_name(path: Path) -> None:
    """Raise UserError for a path that LeRobot and the libraries below it cannot write to."""
    name = str(path.resolve())
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{path}: its name is no UTF-8 text, so LeRobot cannot write there; choose another") from error
    if {"'", "\n"} & set(name):  # it joins videos by a list of their names, which it does not quote
        raise UserError(f"{path}: LeRobot cannot write below a name with a quotation mark ' in it; choose another")


@contextmanager
def temporary_files_in(folder: Path) -> Iterator[None]:
    """Where LeRobot joins videos, which it does in the system's place for temporary files; a full disk leaves them."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder.absolute())
    try:
        yield
    finally:
        tempfile.tempdir = before
