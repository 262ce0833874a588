"""LeRobotDatasets as a source of episodes: v3 as it is, v2.1 through LeRobot's own converter, by name from the hub."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from toolkit.base.errors import UserError
from toolkit.base.reading import read_json
from toolkit.data.episode import ACTION, IMAGE, STATE, Episode
from toolkit.data.formats import lerobot_read
from toolkit.data.formats.lerobot_layout import (
    INFO,
    camera_keys,
    check_features,
    check_links,
    copy_files,
    data_files,
    feature_names,
    read_info,
)
from toolkit.data.formats.parquet import check_parquet
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
from toolkit.data.pictures import check_videos
from toolkit.data.seen_scenes import read_scenes


def open_lerobot(source: str, options: ImportOptions, workspace: Path) -> Recording:
    """A LeRobotDataset directory, v3 or v2.1, or `owner/name` on the hub, downloaded into `workspace`.

    Raises UserError for one that is missing, damaged, of another version or not reachable.
    """
    root = Path(source)
    if not root.exists():
        root = _download(source, workspace)
    if not (root / INFO).is_file():
        raise UserError(f"{source}: not a LeRobotDataset (no {INFO})")
    check_links(root)
    version = str(read_json(root / INFO).get("codebase_version"))
    layout = "lerobot" if version.startswith("v3") else f"lerobot {version}"
    if version == "v2.1":
        root = _converted(root, workspace)
    info = read_info(root)
    found = camera_keys(info)
    cameras = check_cameras(options.image_keys or default_cameras(found, source), found, source)
    state_keys, action_key = list(options.state_keys) or [STATE], options.action_key or ACTION
    for key in cameras.values():
        check_features(root, info, key, (*state_keys, action_key))
    fps = whole_fps(info["fps"], f"{source}: fps")
    if options.fps not in (None, fps):
        raise UserError(f"fps={options.fps}: {source} is recorded at {fps}; import does not resample. Leave fps= out")
    table = lerobot_read.read_table(root, state_keys, action_key)
    indices = chosen(list(range(len(table.lengths))), options.episodes, source)
    if (len(table.lengths), len(table.states)) != (info["total_episodes"], info["total_frames"]):
        raise UserError(
            f"{source}: {INFO} says {info['total_episodes']} episodes of {info['total_frames']} frames; the tables "
            f"hold {len(table.lengths)} of {len(table.states)}"
        )
    name = Path(source).resolve().name
    names = {key: feature_names(info, key) for key in (*state_keys, action_key)}
    return Recording(
        layout=layout,
        fps=fps,
        fps_from=INFO,
        cameras=cameras,
        state_keys=state_keys,
        action_key=action_key,
        state_names=vector_names("state_names", options.state_names, None, _distinct(names, state_keys)),
        action_names=vector_names("action_names", options.action_names, None, names[action_key]),
        num_episodes=len(indices),
        robot_type=options.robot_type or (str(robot) if is_text(robot := info.get("robot_type")) else "unknown"),
        files=sorted(path for path in root.rglob("*") if path.is_file()),
        root=root,
        options=options,
        read=lambda: _episodes(root, name, cameras, state_keys, action_key, indices, options.task),
        seen_scenes=read_scenes(root / "meta"),
    )


def _distinct(names: dict[str, list[str]], keys: Sequence[str]) -> list[str]:
    """Names of several vectors side by side, with their keys in front where two would be the same."""
    joined = [name for key in keys for name in names[key]]
    if len(set(joined)) == len(joined):
        return joined
    return [f"{key.rsplit('.', 1)[-1]}_{name}" for key in keys for name in names[key]]


def _episodes(
    root: Path,
    name: str,
    cameras: dict[str, str],
    state_keys: Sequence[str],
    action_key: str,
    indices: list[int],
    task: str | None,
) -> Iterator[Episode]:
    main, *others = cameras.values()
    further = tuple(dict.fromkeys(key for key in others if key != main))
    episodes = lerobot_read.read_episodes(root, main, cameras=further, state_keys=state_keys, action_key=action_key)
    for index, episode in islice(enumerate(episodes), indices[0], indices[-1] + 1):
        if not (instruction := episode.task.strip() or task):
            raise UserError(f"{root}: episode {index} has no instruction; give one with task='...'")
        pictures = {main: episode.images, **episode.cameras}
        yield Episode(
            images=episode.images,
            states=episode.states,
            actions=episode.actions,
            task=instruction,
            metadata=provenance(episode.metadata, f"episode_{index}", name, str(root)),
            cameras={feature: pictures[key] for feature, key in cameras.items() if feature != IMAGE},
        )


def _converted(root: Path, workspace: Path) -> Path:
    """A v3 copy of a v2.1 dataset, made by LeRobot."""
    from lerobot.scripts.convert_dataset_v21_to_v30 import convert_dataset

    check_videos(sorted((root / "videos").rglob("*.mp4")))  # the converter would follow a playlist of that name
    for path in data_files(root):  # and unpack any table whole
        if path.suffix == ".parquet":
            check_parquet(path)
    workspace.mkdir(parents=True, exist_ok=True)
    copy = Path(tempfile.mkdtemp(dir=workspace)) / "dataset"  # the converter goes on with what lies beside it
    copy_files(root, copy)
    try:
        convert_dataset("local/dataset", root=copy, push_to_hub=False)
    except Exception as error:  # it expects an undamaged dataset, and fails in every way on others
        text = " ".join((str(error) or type(error).__name__).split())[:200]
        raise UserError(f"{root}: LeRobot's converter from v2.1 fails ({type(error).__name__}: {text})") from error
    return copy


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
