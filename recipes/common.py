"""Steps that several commands share."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from toolkit.base.errors import UserError
from toolkit.base.processes import processes
from toolkit.base.run import Run
from toolkit.data.actions import Convert
from toolkit.data.cache import open_clips
from toolkit.data.cached_files import remembered_id
from toolkit.data.canvas import Canvas, Size
from toolkit.data.clips import ClipStore
from toolkit.data.conventions import Conventions
from toolkit.data.episode_notes import Notes, add_notes
from toolkit.data.formats.lerobot_read import open_notes
from toolkit.data.resampling import resampled
from toolkit.data.seen_scenes import UNKNOWN, SeenScenes, merge, read_scenes
from toolkit.reporting.generator_results import Throughput
from toolkit.training.out_of_memory import one_line_if_full, sampling_advice
from toolkit.training.runtime import RuntimeConfig, check_runtime
from vag_core import Generator
from vag_core.checkpoint import MOST_PARAMETERS, read_config
from vag_core.config import PretrainedConfig
from vag_core.representation import convert


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn the ValueErrors of `vag_core`, which knows no command line, into one-line errors."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from error


@contextmanager
def sampling_errors(generator: Generator, size: int) -> Iterator[None]:
    """The same around `size` samples at once, whose number is the option `batch_size`; also for a GPU that is full."""
    with user_errors(), one_line_if_full(generator.device, partial(sampling_advice, size=size)):
        yield


@dataclass(frozen=True)
class Pictures:
    """Which cameras of datasets are read, at which (height, width), one for all, by camera, or (None) as recorded, what
    other names they have there, and how a clip file keeps them: raw, jpeg or auto."""

    size: Size | Mapping[str, Size] | None
    cameras: Sequence[str] = ()
    rename: Mapping[str, str] = field(default_factory=dict)
    storage: str = "auto"

    @classmethod
    def trained_on(cls, canvas: Canvas, config: Any, trained: Conventions) -> Pictures:
        """Those of a checkpoint; the config may name the same cameras, and give other names."""
        return cls(canvas.cell, trained.cameras_of(config.cameras), config.rename, config.frame_storage)

    def as_in(self, store: ClipStore) -> Pictures:
        """Of the further datasets: the cameras of the first one, at its sizes."""
        size = store.canvas.sizes if self.size is None else self.size
        return replace(self, cameras=list(store.canvas.cameras), size=size)


def load_clips(run: Run, source: str | Path, pictures: Pictures, notes: Sequence[Notes] = ()) -> ClipStore:
    """Clips of a dataset with what is noted of its episodes, entered in the run record."""
    store = open_clips(source, pictures.size, pictures.cameras, pictures.rename, storage=pictures.storage)
    run.add_data(source, store.source_id, store.num_episodes)
    ids = store.episode_ids if notes else []
    return replace(
        store,
        source=str(source),
        metadata=add_notes(store.metadata, ids, notes),
        seen_scenes=scenes_told(source, ids, notes),
    )


def scenes_told(source: str | Path, ids: Sequence[str], notes: Sequence[Notes]) -> SeenScenes | None:
    """What the generator behind a dataset has seen, as the dataset or notes of its episodes say; None if none does."""
    scenes = [read_scenes(Path(source) / "meta"), *(note.seen_scenes for note in notes if note.of(ids) is not None)]
    told = [part for part in scenes if part is not None]
    return merge(*told) if told else None


def load_all(run: Run, sources: Sequence[str], pictures: Pictures, notes: Sequence[Notes] = ()) -> list[ClipStore]:
    """Clips of several datasets, all of the same cameras: those of the first, where none is named."""
    stores = list[ClipStore]()
    for source in sources:
        stores.append(load_clips(run, source, pictures, notes))
        if not pictures.cameras and len(seen := stores[0].canvas.cameras) > 1 and processes().is_main:
            print(f"all cameras of {source} are seen, since cameras=[] names none: {', '.join(seen)}", flush=True)
        pictures = pictures.as_in(stores[0])
    return stores


def resample_all(stores: Sequence[ClipStore], config: Any) -> list[ClipStore]:
    """All at the rate that the config asks for, if any; which were at another one is said."""
    held = getattr(config, "absolute_dimensions", None)
    found = [resampled(store, config.resample_fps, config.action_kind, held) for store in stores]
    for store, now in zip(stores, found, strict=True):
        if now is not store and processes().is_main:
            print(f"{store.name}: {store.fps:g} steps a second, resampled to {now.fps:g}", flush=True)
    return found


def seen_behind(store: ClipStore) -> SeenScenes:
    """What the generator of synthetic episodes has seen, UNKNOWN where nobody says."""
    return {UNKNOWN: []} if store.seen_scenes is None else store.seen_scenes


def load_notes(run: Run, paths: Sequence[str]) -> list[Notes]:
    """What replays, scores or other datasets note of episodes, entered in the run record."""
    notes = [open_notes(path) for path in paths]
    for note in notes:
        run.add_data(note.path, remembered_id(note.path) if note.path.is_dir() else file_id(note.path))
    return notes


def weights_id(directory: str | Path) -> str:
    """SHA-256 of a checkpoint's weights, first 16 hex digits; of a generator on a pretrained video model also that of
    the model. Raises UserError if there are none."""
    path = Path(directory) / "model.safetensors"
    if not path.is_file():
        raise UserError(f"{path}: not found; expected a checkpoint directory")
    own = file_id(path)
    with suppress(ValueError):  # of a policy, or damaged, which its loader says
        config = read_config(path.with_name("config.json"))
        own_config = config.get("generator")  # of one that was written as a policy
        video = (own_config if isinstance(own_config, dict) else config).get("video")
        if isinstance(video, dict) and video.get("kind") == PretrainedConfig().kind:
            return hashlib.sha256(f"{own} {video.get('base_id')}".encode()).hexdigest()[:16]
    return own


def file_id(path: Path) -> str:
    """SHA-256 of a file, first 16 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def check_unseen(command: str, checkpoint: str, scenes: SeenScenes, allow_seen: bool) -> int | None:
    """How many of the scenes the checkpoint was trained on, None if none is known but it may have been.

    Raises UserError for any, unless `allow_seen`.
    """
    seen = read_scenes(checkpoint)
    if seen is None:
        return None
    known = {task: sorted(set(seeds) & set(seen.get(task, []))) for task, seeds in scenes.items()}
    count = sum(map(len, known.values()))
    if count and not allow_seen:
        named = ", ".join(f"{task} {_listed(seeds)}" for task, seeds in known.items() if seeds)
        raise UserError(
            f"{command}: {checkpoint} was trained on {count} of these scenes (seeds: {named}); choose another "
            "first_seed, or allow_seen=true if you mean to"
        )
    return None if not count and UNKNOWN in {*seen, *scenes} else count


def _listed(seeds: list[int], most: int = 5) -> str:
    """Some numbers in words; of many the first and the last."""
    shown = [str(seed) for seed in seeds]
    return " ".join(shown if len(shown) <= most else [*shown[: most - 1], "...", shown[-1]])


def load_generator(
    path: str | Path, device: str, max_parameters: int = MOST_PARAMETERS, base: str | None = None
) -> Generator:
    """A trained generator. Raises UserError if the directory holds none, or one with more numbers than allowed.

    base: see `Generator.from_pretrained`.
    """
    with user_errors():
        return Generator.from_pretrained(path, device, max_parameters, base)


def canvas_of(generator: Generator, trained: Conventions) -> Canvas:
    """Cameras of a generator, and where its pictures show them; one that fills them where the checkpoint is silent."""
    return trained.canvas or Canvas.single(generator.config.image_size)


def converter(kind: str, reference: Sequence[int]) -> Convert:
    """`vag_core.representation.convert` of arrays."""
    places = torch.tensor(list(reference))

    def converted(actions: np.ndarray, state: np.ndarray) -> np.ndarray:
        return convert(torch.from_numpy(actions), torch.from_numpy(state), kind, places).numpy()

    return converted


def pick_device(runtime: RuntimeConfig) -> str:
    """'auto' resolved to what this machine has. Raises UserError for a device that is not there."""
    check_runtime(runtime)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if runtime.device == "auto" else runtime.device
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))  # each process of torchrun its own, as accelerate
    return device


def scenes_text(suites: Sequence[str], per_task: int, tasks: Sequence[str], new_tasks: Sequence[str]) -> str:
    """Which scenes the suites of a record have."""
    parts = []
    if set(suites) != {"task"}:
        where = "every suite but `task`" if "task" in suites else "every suite"
        parts.append(f"{per_task} of each of {', '.join(tasks)} in {where}")
    if "task" in suites:
        parts.append(f"{per_task} of each of {', '.join(new_tasks)} in `task`")
    return "; ".join(parts)


def spread(size: int, most: int) -> np.ndarray:
    """Up to `most` of so many episodes, evenly spread: the first ones alone may all be of one task."""
    return np.unique(np.linspace(0, size - 1, min(most, size)).round().astype(int))


def speed(throughput: Throughput) -> str:
    """A training's throughput in words, to follow its other numbers; nothing if no step was made."""
    samples, flop = throughput.samples_per_second, throughput.flop_per_second
    text = "" if samples is None or flop is None else f", {samples:.1f} samples/s, {flop / 1e9:.3g} GFLOP/s"
    if throughput.bf16_peak_share is not None:
        text += f" ({throughput.bf16_peak_share:.0%} of the measured bf16 peak)"
    return text
