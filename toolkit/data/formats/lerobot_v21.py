"""A LeRobotDataset v3 written once more as v2.1, a table and a video for each episode: openpi's LeRobot reads that.

Rows and pictures are the same, bit for bit; video is cut at key frames and never encoded.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.base.errors import UserError
from toolkit.base.files import write_json
from toolkit.data.episode_notes import FILE, ID, filled, write_notes
from toolkit.data.formats.lerobot_layout import INFO, data_file, read_info, video_file
from toolkit.data.formats.lerobot_read import read_table
from toolkit.data.formats.parquet import plausible_rows, read_data_frame
from toolkit.data.formats.videos import Span, Video

CHUNK = 1000  # episodes of a folder, LeRobot's own
DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
STATISTICS = ("min", "max", "mean", "std", "count")


def write_v21(source: Path, folder: Path, advance: Callable[[int], Any]) -> None:
    """Write into an empty folder that is still under its temporary name; `advance` is called for each episode.

    What is noted of the episodes lies in `meta/vag_episodes.parquet`. Raises UserError for a video that cannot be cut.
    """
    info, table = read_info(source), read_table(source)
    cameras = [key for key, feature in info["features"].items() if feature["dtype"] == "video"]
    lines: dict[str, list[dict[str, Any]]] = {"episodes": [], "episodes_stats": []}
    place: tuple[int, int] | None = None
    frame: Any = None
    rows_of: Any = {}
    videos: dict[str, Video] = {}
    for number, row in enumerate(table.episodes):
        names: dict[str, Any] = {"episode_chunk": number // CHUNK, "episode_index": number}
        if place != (at := (int(row["data/chunk_index"]), int(row["data/file_index"]))):
            path = data_file(source, info, *at)
            frame = read_data_frame(path, ["episode_index"], most_rows=plausible_rows(info["total_frames"]))
            place, rows_of = at, frame.groupby("episode_index").indices
        target = folder / DATA.format(**names)
        target.parent.mkdir(parents=True, exist_ok=True)
        frame.iloc[rows_of[number]].sort_values("frame_index").to_parquet(target, index=False)
        for camera in cameras:
            target = folder / VIDEO.format(video_key=camera, **names)
            target.parent.mkdir(parents=True, exist_ok=True)
            _cut(source, info, row, camera, videos, target)
        lines["episodes"].append(
            {"episode_index": number, "tasks": [str(t) for t in row["tasks"]], "length": int(row["length"])}
        )
        lines["episodes_stats"].append({"episode_index": number, "stats": _statistics(row, info)})
        advance(1)
    tasks = read_data_frame(source / "meta/tasks.parquet", ["task_index"], most_rows=plausible_rows(len(table.states)))
    lines["tasks"] = [{"task_index": int(k), "task": str(text)} for text, k in tasks["task_index"].items()]
    (folder / "meta").mkdir(exist_ok=True)
    for name, told in lines.items():
        text = "".join(json.dumps(line) + "\n" for line in told)
        (folder / f"meta/{name}.jsonl").write_text(text, encoding="utf-8")
    write_notes(
        folder / "meta" / FILE, table.ids, [{k: v for k, v in filled(m).items() if k != ID} for m in table.metadata]
    )
    write_json(
        folder / INFO,
        {
            **info,
            "codebase_version": "v2.1",
            "total_videos": len(cameras) * len(table.lengths),
            "total_chunks": -(-len(table.lengths) // CHUNK),
            "chunks_size": CHUNK,
            "data_path": DATA,
            "video_path": VIDEO,
        },
    )


def _cut(
    source: Path, info: dict[str, Any], row: dict[str, Any], camera: str, videos: dict[str, Video], target: Path
) -> None:
    """Write the video of an episode; `videos` keeps the file that was read last of each camera."""
    told = [row[f"videos/{camera}/{name}"] for name in ("chunk_index", "file_index", "from_timestamp", "to_timestamp")]
    path = video_file(source, info, camera, int(told[0]), int(told[1]))
    if camera not in videos or videos[camera].path != path:
        videos[camera] = Video(path)
    video, length = videos[camera], int(row["length"])
    numbers = video.rows(Span(path, *told[2:]), np.arange(length) / info["fps"], info["fps"])
    if not video.can_copy(numbers, info["fps"]):
        raise UserError(
            f"{path}: episode {row['episode_index']} does not begin with a key frame, so v21=true cannot cut it out; "
            "vag import codec=h264 encodes the dataset anew"
        )
    video.copy(numbers, target)


def _statistics(row: dict[str, Any], info: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Those of v2.1 out of a row of the episode table."""
    return {
        key: {name: _nested(row[f"stats/{key}/{name}"]) for name in STATISTICS}
        for key in info["features"]
        if all(row.get(f"stats/{key}/{name}") is not None for name in STATISTICS)
    }


def _nested(value: Any) -> Any:
    if isinstance(value, np.ndarray | list):
        return [_nested(one) for one in value]
    return value.item() if isinstance(value, np.generic) else value
