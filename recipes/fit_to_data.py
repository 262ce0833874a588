"""What of a generator's config follows from the data, and what of the data its window misses; all of it is said."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from recipes.schema import TrainGeneratorConfig
from toolkit.base.errors import UserError, warn
from toolkit.base.processes import processes
from toolkit.data.canvas import Canvas
from toolkit.data.clips import ClipStore
from vag_core.config import GeneratorConfig

LEAST_COVERED = 0.9  # of the median episode, by the window; less is said
LEAST_SEEN, MOST_MISSED = 0.5, 0.1  # where the window covers less than the first of more episodes than the second
MOST_PADDED = 0.1  # of the window, past the end of episodes; more is said


def fit_pictures(shape: GeneratorConfig, canvas: Canvas) -> None:
    """Let the generator see the canvas. Raises UserError where the config asks for another size of all together."""
    if list(shape.image_size) not in (GeneratorConfig().image_size, list(canvas.size)):
        raise UserError(
            f"generator.image_size={list(shape.image_size)}: {len(canvas.cameras)} cameras of "
            f"{canvas.cell[0]}x{canvas.cell[1]} make {list(canvas.size)}; leave it out, and give image_size=[h,w]"
        )
    shape.image_size, shape.views = list(canvas.size), list(canvas.grid)


def fit_instructions(config: TrainGeneratorConfig, instructions: Iterable[str]) -> None:
    """Let the generator read as many bytes as the longest instruction has, and say so."""
    longest, instruction = max(len(text.encode()) for text in instructions), config.generator.instruction
    if longest > instruction.length:
        text = f"an instruction has {longest} bytes, more than generator.instruction.length={instruction.length}"
        warn(f"{text}; the generator is built to read {longest}")
        instruction.length = longest


def fit_window(config: TrainGeneratorConfig, store: ClipStore) -> None:
    """Frames of a window from `clip_seconds` and `frame_rate`, where these are given, and where windows begin.

    Says what it comes to. Raises UserError for pictures more often than the robot's steps.
    """
    shape, stride = config.generator, config.generator.tokenizer.temporal_stride
    if config.frame_rate is not None:
        if config.frame_rate > store.fps:
            raise UserError(f"frame_rate={config.frame_rate:g}: {config.dataset} has {store.fps:g} steps a second")
        shape.frame_stride = round(store.fps / config.frame_rate)
    if config.clip_seconds is not None:
        groups = max(1, round(config.clip_seconds * store.fps / shape.frame_stride / stride))
        shape.num_frames = 1 + groups * stride
    if processes().is_main and (config.frame_rate is not None or config.clip_seconds is not None):
        print(
            f"a window has {shape.num_frames} pictures, {shape.frame_stride} steps apart: "
            f"{shape.action_horizon} steps, {shape.action_horizon / store.fps:.3g} s"
        )
    if config.random_start is None:
        config.random_start = bool(shape.action_horizon + 1 < np.median(store.episode_lengths))


def check_window(config: TrainGeneratorConfig, store: ClipStore) -> tuple[float, float]:
    """How much of an episode the window covers, and how much of the window lies past its end, on average.

    Warns, with numbers, where much of the episodes is never seen at a time, or much of the window never counts.
    """
    shape, lengths = config.generator, store.episode_lengths
    rows, median = shape.action_horizon + 1, int(np.median(lengths))
    covered, padded = np.minimum(rows / lengths, 1).mean(), np.maximum(1 - lengths / rows, 0).mean()
    seconds, where = shape.action_horizon / store.fps, "anywhere" if config.random_start else "at its start"
    window = f"{config.dataset}: a window has {shape.action_horizon} steps ({seconds:.1f} s)"
    if rows < LEAST_COVERED * median:
        stride = math.ceil((median - 1) / (shape.num_frames - 1))
        warn(
            f"{window} and covers {covered:.0%} of an episode ({median} steps in the median), {where}: what is "
            f"generated lasts {seconds:.1f} s. generator.frame_stride={stride} covers the median episode with as many "
            f"pictures, clip_seconds={(median - 1) / store.fps:.3g} with more"
        )
    elif (missed := (rows / lengths < LEAST_SEEN).mean()) > MOST_MISSED:
        warn(
            f"{window} and covers less than half of {missed:.0%} of the episodes (of up to {lengths.max()} steps), "
            f"{where}: what is generated lasts {seconds:.1f} s. Take a larger generator.frame_stride, or leave them out"
        )
    if padded > MOST_PADDED:
        warn(
            f"{window}, an episode {median} in the median: {padded:.0%} of the window lies past the end and never "
            "counts in the loss. Choose fewer generator.num_frames, or a smaller generator.frame_stride"
        )
    return float(covered), float(padded)
