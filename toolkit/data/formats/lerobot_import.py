"""LeRobotDatasets as a source of episodes: v3, v2.1 and v2.0 as they are, by name from the hub."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.base.errors import UserError, warn
from toolkit.data.episode import ACTION, IMAGE, STATE, Episode
from toolkit.data.episode_notes import read_notes
from toolkit.data.formats.lerobot_layout import (
    BOOKKEEPING,
    INFO,
    camera_keys,
    check_features,
    check_inside,
    check_links,
    feature_names,
    read_info,
)
from toolkit.data.formats.lerobot_read import OWN_NOTES
from toolkit.data.formats.lerobot_source import Part, Rows, Source, open_version
from toolkit.data.formats.parquet import plausible_rows
from toolkit.data.formats.recording import (
    ImportOptions,
    Recording,
    check_cameras,
    chosen,
    default_cameras,
    is_text,
    provenance,
    vector_names,
    whole_fps,
)
from toolkit.data.seen_scenes import read_scenes

VERSIONS = ("v3", "v2.1", "v2.0")
NAMED = 3  # episodes in a warning


def open_lerobot(source: str, options: ImportOptions, workspace: Path) -> Recording:
    """A LeRobotDataset directory, v3 or v2, or `owner/name` on the hub, downloaded into `workspace`.

    Raises UserError for one that is missing, damaged, of another version or not reachable.
    """
    root = Path(source)
    if not root.exists():
        root = _download(source, workspace)
    if not (root / INFO).is_file():
        raise UserError(f"{source}: not a LeRobotDataset (no {INFO})")
    check_links(root)
    info = read_info(root, VERSIONS)
    found = camera_keys(info)
    cameras = check_cameras(options.image_keys or default_cameras(found, source), found, source)
    state_keys, action_key = list(options.state_keys) or [STATE], options.action_key or ACTION
    for key in cameras.values():
        check_features(root, info, key, (*state_keys, action_key))
    fps = whole_fps(info["fps"], f"{source}: fps")
    if options.fps not in (None, fps):
        raise UserError(
            f"fps={options.fps}: {source} is recorded at {fps}; leave fps= out. resample_fps= lowers the rate"
        )
    dataset = open_version(root, info)
    parts = chosen(dataset.parts, options.episodes, source)
    reader = _Reader(dataset, cameras, state_keys, action_key, options, Path(source).resolve().name)
    parts = [one for part in parts for one in reader.split(part)]
    reader.tell_times()
    names = {key: feature_names(info, key) for key in (*state_keys, action_key)}
    version = str(info["codebase_version"])
    taken = {*cameras.values(), *state_keys, action_key, *BOOKKEEPING}
    return Recording(
        layout="lerobot" if dataset.is_v3 else f"lerobot {version}",
        fps=fps,
        fps_from=INFO,
        cameras=cameras,
        state_keys=state_keys,
        action_key=action_key,
        state_names=vector_names("state_names", options.state_names, None, _distinct(names, state_keys)),
        action_names=vector_names("action_names", options.action_names, None, names[action_key]),
        robot_type=options.robot_type or (str(robot) if is_text(robot := info.get("robot_type")) else "unknown"),
        files=reader.files(parts),
        root=root,
        options=options,
        items=parts,
        load=reader.episode,
        seen_scenes=read_scenes(root / "meta"),
        left_out=[
            f"{key} {'x'.join(map(str, feature['shape']))} {feature['dtype']}"
            for key, feature in info["features"].items()
            if key not in taken
        ],
        copies=reader.copy if reader.can_copy(parts) else None,
    )


def _distinct(names: dict[str, list[str]], keys: Sequence[str]) -> list[str]:
    """Names of several vectors side by side, with their keys in front where two would be the same."""
    joined = [name for key in keys for name in names[key]]
    if len(set(joined)) == len(joined):
        return joined
    return [f"{key.rsplit('.', 1)[-1]}_{name}" for key in keys for name in names[key]]


class _Reader:
    """Episodes of a dataset, each read when it is asked for."""

    def __init__(
        self,
        dataset: Source,
        cameras: dict[str, str],
        state_keys: list[str],
        action_key: str,
        options: ImportOptions,
        name: str,
    ) -> None:
        self.dataset, self.cameras, self.options, self.name = dataset, cameras, options, name
        self.state_keys, self.action_key = state_keys, action_key
        self.notes = None
        vectors = [*state_keys, action_key]
        if os.path.lexists(dataset.root / OWN_NOTES):
            self.notes = read_notes(
                check_inside(dataset.root, OWN_NOTES), plausible_rows(dataset.info["total_episodes"])
            )
            vectors += [STATE, ACTION]
        self.vectors = list(dict.fromkeys(vectors))
        self.jumping: list[str] = []
        self.changing: list[int] = []
        self.rates: list[float] = []
        self.latest: dict[str, Any] = {}  # of each camera how its video of the latest episode can be copied

    def split(self, part: Part) -> list[Part]:
        """A part for each piece that `split_at` asks for; notes what the time stamps and instructions do."""
        try:
            rows = self.dataset.rows(part, self.vectors)
        except UserError:
            return [part]  # told when it is read
        jumps = self.dataset.jumps(rows)
        changes = np.flatnonzero(np.diff(rows.tasks)) + 1
        if len(jumps):
            step = int(jumps[0])
            seconds = rows.stamps[step] - rows.stamps[step - 1]
            self.jumping.append(f"episode {part.number} by {seconds:.2f} s at step {step}")
        if len(changes):
            self.changing.append(part.number)
        if len(rows.stamps) > 2 and (period := float(np.median(np.diff(rows.stamps)))) > 0:
            self.rates.append(1 / period)
        cuts = {
            int(k)
            for what, found in (("jumps", jumps), ("instructions", changes))
            if what in self.options.split_at
            for k in found
        }
        if not cuts:
            return [part]
        ends = [0, *sorted(cuts), part.length]
        return [
            replace(part, start=start, stop=stop, name=f" part {k}") for k, (start, stop) in enumerate(pairwise(ends))
        ]

    def tell_times(self) -> None:
        """Warnings about time stamps that jump or disagree with the rate, and about instructions that change."""
        root, split = self.dataset.root, self.options.split_at
        if self.jumping:
            then = (
                "are split there" if "jumps" in split else "go on as if nothing happened; split_at=[jumps] splits them"
            )
            listed = ", ".join(self.jumping[:NAMED])
            warn(f"{root}: time stamps jump in {len(self.jumping)} episodes ({listed}); they {then}")
        if self.changing:
            then = (
                "are split there" if "instructions" in split else "keep the first; split_at=[instructions] splits them"
            )
            listed = ", ".join(map(str, self.changing[:NAMED]))
            warn(f"{root}: the instruction changes inside {len(self.changing)} episodes ({listed}); they {then}")
        if self.rates and abs((rate := float(np.median(self.rates))) / self.dataset.info["fps"] - 1) > 0.05:
            warn(f"{root}: time stamps say {rate:.4g} steps a second, {INFO} {self.dataset.info['fps']}")

    def files(self, parts: list[Part]) -> list[Path]:
        """What is read of the dataset: its tables, and the rows and videos of these episodes."""
        root, found = self.dataset.root, set()
        meta = [path for path in (root / "meta").rglob("*") if path.is_file()]
        for part in parts:
            try:
                found.add(self.dataset.table(part))
                for key in self.cameras.values():
                    if self.dataset.info["features"][key]["dtype"] == "video":
                        found.add(self.dataset.span(part, key).path)
            except UserError:
                continue  # told when it is read
        return sorted({*meta, *(path for path in found if path.is_file())})

    def can_copy(self, parts: list[Part]) -> bool:
        """True where every video can be taken as it is."""
        options = self.options
        kinds: dict[str, Any] = {}
        same = options.image_size is None and not options.flip_vertical and options.colour_order != "bgr"
        if not same or not all(part.is_whole for part in parts):
            return False
        for part in parts:
            for key in self.cameras.values():
                if self.dataset.info["features"][key]["dtype"] != "video":
                    return False
                try:
                    video, numbers = self.dataset.video(part, key, self.dataset.rows(part, self.vectors))
                except UserError:
                    continue  # told when it is read
                if (
                    not video.can_copy(numbers, self.dataset.info["fps"])
                    or kinds.setdefault(key, video.kind) != video.kind
                ):
                    return False
        return bool(kinds)

    def copy(self, feature: str) -> Callable[[Path], None]:
        """Writes the video of the latest episode to a file."""
        video, numbers = self.latest[self.cameras[feature]]
        return lambda target: video.copy(numbers, target)

    def episode(self, part: Part) -> Episode:
        """Raises UserError that names the dataset or its file for what is missing or damaged."""
        dataset, root = self.dataset, self.dataset.root
        rows: Rows = dataset.rows(part, self.vectors)
        task = dataset.instruction(part, rows) or self.options.task
        if not task:
            lacking = "" if dataset.texts else f" (meta/tasks.{'parquet' if dataset.is_v3 else 'jsonl'} is missing)"
            raise UserError(f"{root}: episode {part.number} has no instruction{lacking}; give one with task='...'")
        cut = slice(part.start, part.stop)
        pictures = {}
        for key in dict.fromkeys(self.cameras.values()):
            pictures[key], self.latest[key] = dataset.pictures(part, key, rows)
        metadata = dataset.metadata(part, rows, self.notes)
        named = {feature: pictures[key] for feature, key in self.cameras.items()}
        return Episode(
            images=named.pop(IMAGE, None),
            states=np.concatenate([rows.vectors[key][cut] for key in self.state_keys], axis=1),
            actions=rows.vectors[self.action_key][cut],
            task=task,
            metadata=provenance(metadata, f"episode_{part.number}{part.name}", self.name, str(root)),
            cameras=named,
        )


def _download(name: str, workspace: Path) -> Path:
    """A dataset of the Hugging Face hub."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"{name}: not found; expected a LeRobotDataset directory or owner/name on the hub")
    from huggingface_hub import snapshot_download

    try:
        target: Any = workspace / "downloaded"
        return Path(snapshot_download(name, repo_type="dataset", local_dir=target))
    except Exception as error:  # offline, not there, not allowed: the hub client has a class for each
        text = " ".join((str(error) or type(error).__name__).split())[:160]
        raise UserError(
            f"{name}: no such path here, and the Hugging Face hub does not give it ({type(error).__name__}: {text})"
        ) from error
