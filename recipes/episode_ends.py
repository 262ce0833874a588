"""How long generated episodes are: as long as recorded ones of their instruction, or as long as the window."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recipes.schema import SynthesizeConfig
from recipes.start_scenes import SceneRow
from toolkit.base.errors import UserError, warn
from toolkit.base.randomness import stream_seed
from toolkit.data.windows import Windows
from toolkit.reporting.generator_results import EpisodeEnds


def episode_ends(
    config: SynthesizeConfig, scenes: Sequence[SceneRow], seeds: Sequence[int], horizon: int
) -> tuple[list[int], EpisodeEnds]:
    """Steps of each scene's episode, at most those of `clips` windows of `horizon` steps, and how they were chosen.

    A recording of L steps trains L - 1 of a window: the last has no state after it. Raises UserError for lengths that
    the checkpoint does not hold, and for plans that would be cut short.
    """
    windows, longest = Windows.read(config.checkpoint), config.clips * horizon
    if config.clips > 1:
        warn_of_clips(config, windows)
    by_default = "window" if windows is None or config.draws > 1 else "sampled"
    if (config.episode_lengths or by_default) == "window":
        return [longest] * len(scenes), EpisodeEnds(rule="window", shortest=longest, longest=longest)
    if config.draws > 1:
        raise UserError("synthesize: draws are tried to their end; leave out episode_lengths=sampled, or draws")
    if windows is None:
        raise UserError(f"{config.checkpoint}: holds no recorded lengths, which an older train-generator did not write")
    drawn = [
        np.random.default_rng(stream_seed(seed, "length")).choice(windows.of_instruction(scene.instruction))
        for scene, seed in zip(scenes, seeds, strict=True)
    ]
    steps = [int(min(max(length - 1, 1), longest)) for length in drawn]
    unknown = sorted({scene.instruction for scene in scenes} - windows.lengths.keys())
    if unknown and min(steps) < longest:
        warn(
            f"{len(unknown)} instructions have no recording, such as '{unknown[0]:.60}': how long such episodes are is "
            "drawn from the lengths of all"
        )
    known = [(k, min(scene.recorded_length - 1, longest)) for k, scene in enumerate(scenes) if scene.recorded_length]
    if config.clips > 1 and max(steps) <= horizon:
        warn(
            f"clips={config.clips}: no recorded length that was drawn goes beyond the first clip; "
            "episode_lengths=window makes all of them"
        )
    return steps, EpisodeEnds(
        rule="sampled",
        shortest=min(steps),
        longest=max(steps),
        cut=sum(own < longest for own in steps),
        recorded_lengths=sum(map(len, windows.lengths.values())),
        off=float(np.mean([abs(steps[k] - real) for k, real in known])) if known else None,
        off_of_window=float(np.mean([longest - real for _, real in known])) if known else None,
    )


def warn_of_clips(config: SynthesizeConfig, windows: Windows | None) -> None:
    """Say where a generator never learned how to go on from the middle of an episode, or may not have."""
    if windows is None:
        warn(f"clips={config.clips}: {config.checkpoint} does not say whether it learned from the middle of episodes")
    elif not windows.random_start:
        warn(
            f"clips={config.clips}: {config.checkpoint} was trained on windows at the start of episodes alone "
            "(random_start=false), so it never saw what the clips after the first start from; train it with "
            "random_start=true"
        )
