"""What of a generator's config follows from the data, and what of the data its window misses; all of it is said."""

from __future__ import annotations

import math

import numpy as np

from recipes.schema import TrainGeneratorConfig
from toolkit.base.errors import UserError, warn
from toolkit.data.canvas import Canvas
from toolkit.data.clips import ClipStore
from vag_core.config import GeneratorConfig

LEAST_COVERED = 0.5  # of an episode, by the window; less is said
MOST_MISSED = 0.1  # of the episodes, of which the window covers less than that; more is said
MOST_PADDED = 0.25  # of the window, past the end of episodes; more is said


def fit_pictures(shape: GeneratorConfig, canvas: Canvas) -> None:
    """Let the generator see the canvas. Raises UserError where the config asks for another size of all together."""
    if list(shape.image_size) not in (GeneratorConfig().image_size, list(canvas.size)):
        raise UserError(
            f"generator.image_size={list(shape.image_size)}: {len(canvas.cameras)} cameras of "
            f"{canvas.cell[0]}x{canvas.cell[1]} make {list(canvas.size)}; leave it out, and give image_size=[h,w]"
        )
    shape.image_size, shape.views = list(canvas.size), list(canvas.grid)


def fit_instructions(config: TrainGeneratorConfig, store: ClipStore) -> None:
    """Let the generator read as many bytes as the longest instruction has, and say so."""
    longest, instruction = max(len(task.encode()) for task in store.tasks), config.generator.instruction
    if longest > instruction.length:
        text = f"an instruction has {longest} bytes, more than generator.instruction.length={instruction.length}"
        warn(f"{text}; the generator is built to read {longest}")
        instruction.length = longest


def check_window(config: TrainGeneratorConfig, store: ClipStore) -> tuple[float, float]:
    """How much of an episode the window covers, and how much of the window lies past its end, on average.

    Warns, with numbers, where much of the episodes is never seen at a time, or much of the window never counts.
    """
    shape, lengths = config.generator, store.episode_lengths
    rows, median = shape.action_horizon + 1, int(np.median(lengths))
    covered, padded = np.minimum(rows / lengths, 1).mean(), np.maximum(1 - lengths / rows, 0).mean()
    seconds, where = shape.action_horizon / store.fps, "anywhere" if config.random_start else "at its start"
    window = f"{config.dataset}: a window has {shape.action_horizon} steps ({seconds:.1f} s)"
    if covered < LEAST_COVERED:
        stride = math.ceil((median - 1) / (shape.num_frames - 1))
        warn(
            f"{window} and covers {covered:.0%} of an episode ({median} steps in the median), {where}: what is "
            f"generated lasts {seconds:.1f} s. generator.frame_stride={stride} covers all of it with as many pictures"
        )
    elif (missed := (rows / lengths < LEAST_COVERED).mean()) > MOST_MISSED:
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
