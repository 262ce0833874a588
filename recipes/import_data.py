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
    """Read `source` and write `dataset`; actions and states stay as they are, and video where it can be copied."""
    episodes, frames, tasks = 0, 0, set()
    with scratch_folder(run.directory / "source") as workspace:  # for what LeRobot and the hub's client write
        source = open_source(config.source, config.layout, _options(config), workspace)
        run.add_data(config.source, source.identity(), source.num_episodes)
        if source.left_out:
            print(f"left out: {', '.join(source.left_out)}")
        names = source.state_names, source.action_names, source.robot_type
        copies = source.copies if config.codec is None and config.crf is None else None
        codec = config.codec or "h264"
        crf = LOSSLESS if config.crf is None and codec == "h264" else config.crf
        with EpisodeWriter(
            run.directory / "dataset", source.fps, *names, crf=crf, codec=codec, copies=copies
        ) as writer:
            for episode in progress(source, description="import", total=source.num_episodes, unit="ep"):
                writer.add(episode)
                episodes += 1
                frames += len(episode)
                tasks.add(episode.task)
            if source.seen_scenes is not None:
                write_scenes(writer.temporary / "meta", source.seen_scenes)
    for line in source.skipped:
        print(f"skipped {line}")
    return ImportResult(
        layout=source.layout,
        episodes=episodes,
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
        left_out=source.left_out,
        skipped=source.skipped,
        video="copied" if copies else f"encoded as {codec}",
        colour_order=config.colour_order or "rgb",
        dataset="dataset",
    )


def _options(config: ImportConfig) -> ImportOptions:
    return ImportOptions(
        task=config.task,
        task_key=config.task_key,
        episodes=config.episodes,
        filter_key=config.filter_key,
        skip_bad=config.skip_bad,
        split_at=tuple(config.split_at),
        colour_order=config.colour_order,
        image_keys=dict(config.image_keys),
        state_keys=tuple(config.state_keys),
        action_key=config.action_key,
        state_names=tuple(config.state_names),
        action_names=tuple(config.action_names),
        image_size=config.image_size,
        flip_vertical=config.flip_vertical,
        fps=config.fps,
        resample_fps=config.resample_fps,
        action_kind=config.action_kind,
        absolute_dimensions=None if config.absolute_dimensions is None else tuple(config.absolute_dimensions),
        robot_type=None if config.robot_type == "unknown" else config.robot_type,
    )


def summary(result: ImportResult) -> str:
    skipped = f", {len(result.skipped)} skipped" if result.skipped else ""
    return (
        f"{result.episodes} episodes, {result.frames} frames at {result.fps}/s ({result.fps_from}), "
        f"{result.layout} layout, {len(result.cameras)} cameras in {result.colour_order}, "
        f"state {'+'.join(result.state_keys)}, action {result.action_key}, video {result.video}{skipped}"
    )
