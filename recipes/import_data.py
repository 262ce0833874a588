"""`vag import`: recordings of other projects become a LeRobotDataset v3, one episode in memory at a time."""

from __future__ import annotations

from recipes.schema import ImportConfig
from toolkit.base.files import scratch_folder
from toolkit.base.progress import progress
from toolkit.base.run import Run
from toolkit.data.formats.importers import ImportOptions, open_source
from toolkit.data.formats.lerobot_write import EpisodeWriter
from toolkit.data.seen_scenes import write_scenes
from toolkit.reporting.results import ImportResult

LOSSLESS = 0  # H.264 without loss in yuv444p, since frames are to come back at 45 dB whatever they show


def run(config: ImportConfig, run: Run) -> ImportResult:
    """Read `source` and write `dataset`; actions and states stay as they are, frames keep at least 45 dB."""
    options = ImportOptions(
        task=config.task,
        episodes=config.episodes,
        image_keys=dict(config.image_keys),
        state_keys=tuple(config.state_keys),
        action_key=config.action_key,
        state_names=tuple(config.state_names),
        action_names=tuple(config.action_names),
        image_size=config.image_size,
        flip_vertical=config.flip_vertical,
        fps=config.fps,
        robot_type=None if config.robot_type == "unknown" else config.robot_type,
    )
    frames, tasks = 0, set()
    with scratch_folder(run.directory / "source") as workspace:  # for what LeRobot and the hub's client write
        source = open_source(config.source, config.layout, options, workspace)
        run.add_data(config.source, source.identity(), source.num_episodes)
        target = run.directory / "dataset"
        with EpisodeWriter(
            target, source.fps, source.state_names, source.action_names, source.robot_type, crf=LOSSLESS
        ) as writer:
            for episode in progress(source, description="import", total=source.num_episodes, unit="ep"):
                writer.add(episode)
                frames += len(episode)
                tasks.add(episode.task)
            if source.seen_scenes is not None:
                write_scenes(writer.temporary / "meta", source.seen_scenes)
    return ImportResult(
        layout=source.layout,
        episodes=source.num_episodes,
        frames=frames,
        tasks=len(tasks),
        fps=source.fps,
        fps_from=source.fps_from,
        cameras=source.cameras,
        state_keys=source.state_keys,
        state_names=source.state_names,
        action_key=source.action_key,
        action_names=source.action_names,
        robot_type=source.robot_type,
        dataset="dataset",
    )


def summary(result: ImportResult) -> str:
    return (
        f"{result.episodes} episodes, {result.frames} frames at {result.fps}/s ({result.fps_from}), "
        f"{result.layout} layout, {len(result.cameras)} cameras"
    )
