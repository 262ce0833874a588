"""`vag synthesize`: one picture, one state and an instruction in; video, actions and states out, as a dataset.

The scenes are made in shards (`recipes/sharding.py`), each a dataset of its own, which are joined in the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recipes.common import canvas_of, check_unseen, load_generator, pick_device, weights_id
from recipes.episode_ends import episode_ends
from recipes.photographs import photographed_scenes
from recipes.plans import PLANS, Plans, check_draws, solved_plans
from recipes.samples import Findings, Samples
from recipes.schema import CODECS, SynthesizeConfig
from recipes.sharding import run_in_shards
from recipes.start_scenes import Scenes, recorded_scenes, samples_of, scene_seeds, simulated_scenes
from recipes.video_model import is_pretrained, prepare_text, text_reader
from toolkit.base.errors import UserError, warn
from toolkit.base.run import Run
from toolkit.data.canvas import Canvas
from toolkit.data.conventions import Conventions
from toolkit.data.formats.lerobot_merge import merge_datasets
from toolkit.data.formats.lerobot_write import EpisodeWriter
from toolkit.data.formats.scene_table import find_table
from toolkit.data.seen_scenes import read_scenes, scenes_of, write_scenes
from toolkit.evaluation.clip_drift import mean_drift
from toolkit.reporting.generator_results import DriftOfClip, Media, SamplesDiffer, SynthesizeResult
from toolkit.reporting.media import grid, write_video
from toolkit.training.runtime import set_threads
from vag_core import Generator

GOOD_H264 = 2  # crf: see EpisodeWriter
DATASET = "dataset"


def run(config: SynthesizeConfig, run: Run) -> SynthesizeResult:
    """Generate one episode per scene and write `dataset`, with a note of where each comes from."""
    made: SynthesizeResult = run_in_shards(prepare, config, run)
    return made


def prepare(config: SynthesizeConfig, run: Run) -> Synthesis:
    """Generator and scenes, checked; what is read is entered in the run."""
    return Synthesis(config, run)


class Synthesis:
    """The episodes of all scenes, in batches by their numbers; see `sharding.Work`."""

    description = "synthesize"

    def __init__(self, config: SynthesizeConfig, run: Run) -> None:
        set_threads(config.runtime)
        table = None if config.scenes_from is None else find_table(config.scenes_from)
        check_scenes(config, table)
        generator = load_generator(config.checkpoint, pick_device(config.runtime), config.max_parameters, config.base)
        trained = Conventions.of(config.checkpoint)
        self.config, self.generator = config, generator
        self.encode = text_reader(generator, config, trained.views)
        self.identity = weights_id(config.checkpoint)
        run.add_data(config.checkpoint, self.identity)
        if not generator.config.action.makes_video:
            raise UserError(f"{config.checkpoint}: it makes actions alone, which is no dataset; use another generator")
        self.order = config.sampler.order or generator.order
        if config.draws > 1:
            check_draws(config, self.order if generator.order == "actions_first" else generator.order)
        self.canvas = canvas_of(generator, trained)
        scenes = self.scenes = scenes_for(config, run, generator, self.canvas, table)
        prepare_text(self.encode, generator, scenes.instructions, config.sampler)
        from_scenes, allow_seen = scenes_of(scenes.metadata), config.scenes_from is not None
        self.seen = check_unseen("synthesize", config.checkpoint, from_scenes, config.allow_seen or allow_seen)
        seeds = scene_seeds(config.seed, scenes.metadata)
        steps, self.ends = episode_ends(config, scenes.rows, seeds, generator.config.action_horizon)
        self.starts = range(0, len(scenes), config.batch_size)
        self.sizes = [min(config.batch_size, len(scenes) - start) for start in self.starts]
        origin = {
            "source": "synthetic",
            "generator_id": self.identity,
            "sampler": sampler_name(config, generator, self.order),
            "sample_seed": config.seed,
            "ends": self.ends.rule,
        }
        layout = {**scenes.layout, **encoding(config, trained.codec)}
        self.samples = Samples(
            *(config, generator, self.encode, self.canvas, scenes, seeds, steps),
            order=self.order,
            origin=origin,
            dataset=layout,
        )
        self.warn_of_one_plan()
        self.plans: Plans | None = None
        self.planning = 0.0

    def begin(self, folder: Path) -> None:
        """Plans of all scenes; of a run that was cut, they are gone on with."""
        began = time.perf_counter()
        if self.config.draws > 1:
            self.plans = solved_plans(
                self.config, folder / PLANS, self.generator, self.encode, self.scenes, self.identity
            )
        self.planning = time.perf_counter() - began

    def make(self, batches: range, folder: Path, advance: Callable[[int], Any]) -> None:
        """A dataset of some batches, and what is measured of it."""
        starts = self.starts[batches.start : batches.stop]
        with EpisodeWriter(folder / DATASET, **self.samples.dataset) as writer:
            found = self.samples.write(writer, starts, self.plans, advance)
            if (learned := read_scenes(self.config.checkpoint)) is not None:  # who trains on this has seen them too
                write_scenes(writer.temporary / "meta", learned)
        found.write(folder)

    def warn_of_one_plan(self) -> None:
        """Say before anything is sampled that the samples of a scene will differ in their pictures alone."""
        several, clips = self.config.samples_per_scene > 1, self.config.clips  # later clips start from other pictures
        if several and clips == 1 and self.order == "actions_first" and self.config.draws == 1:
            warn(
                f"all samples of a scene have the same actions: with sampler.order={self.order} they are planned "
                "first, as a mean. sampler.order=synchronised draws actions and video together, if the generator was "
                "trained for it"
            )

    def free(self) -> None:
        """Leave the GPU to other processes."""
        self.generator.to("cpu")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def merge(self, folders: Sequence[Path], run: Run) -> SynthesizeResult:
        """One dataset of all, its video as it was coded; a film of the first dozen, and means."""
        found = Findings()
        for folder in folders:
            found.extend(Findings.read(folder))
        if not (run.directory / DATASET).is_dir():
            merge_datasets([folder / DATASET for folder in folders], run.directory / DATASET)
        alone = found.shown[0].shape[1:3] == self.canvas.size
        caption = "generated" if alone else "recorded (above) and generated (below), same first frame"
        write_video(run.directory / "media/generated.mp4", grid(found.shown, columns=6), fps=20)
        solved_by_draw, planning_seconds = None, None
        if (plans := self.plans) is not None:
            first = np.where(plans.solved, plans.draw, self.config.draws)
            solved_by_draw = [int((first <= draw).sum()) for draw in range(self.config.draws)]
            planning_seconds = round(self.planning, 1)  # and executing; of a run that was cut, since it went on
        return SynthesizeResult(
            episodes=found.episodes,
            seconds_per_episode=round(found.seconds / found.episodes, 3),
            function_evaluations=found.function_evaluations,
            generator_id=self.identity,
            seen_scenes=self.seen,
            dataset=DATASET,
            media=[Media(path="media/generated.mp4", caption=caption)],
            solved_by_draw=solved_by_draw,
            planning_seconds=planning_seconds,
            metrics=means(found.metrics),
            still=means({name: values for name, values in found.still.items() if name != "jerk_ratio"}),
            samples_differ=self.samples_differ(found),
            ends=self.ends,
            drift=[DriftOfClip(**clip) for clip in mean_drift(found.drift)] or None,
        )

    def samples_differ(self, found: Findings) -> SamplesDiffer | None:
        """How much samples of a scene differ, where there are several."""
        distances = found.spread.result()
        return None if distances is None else SamplesDiffer(**distances)


def sampler_name(config: SynthesizeConfig, generator: Generator, order: str) -> str:
    """How the samples are drawn, as it is noted of each."""
    sampler = config.sampler
    solver = sampler.method or ("own" if is_pretrained(generator.config) else "euler")
    name = f"{solver}-{sampler.num_inference_steps}-guidance-{sampler.guidance_scale}-{order}"
    name += f"-negative-{sampler.negative_prompt}" if sampler.negative_prompt is not None else ""
    return name + (f"-draws-{config.draws}-shift-{config.draw_shift}" if config.draws > 1 else "")


def scenes_for(config: SynthesizeConfig, run: Run, generator: Generator, canvas: Canvas, table: Path | None) -> Scenes:
    """What episodes start from, each as often as asked for, and what the dataset says of itself."""
    if table is not None:
        scenes = photographed_scenes(config, run, generator, canvas, table)
    elif config.scenes_from is not None:
        scenes = recorded_scenes(config, run, generator, canvas)
    else:
        scenes = simulated_scenes(config, canvas)
    return samples_of(scenes, config)


def check_scenes(config: SynthesizeConfig, table: Path | None) -> None:
    """Raise UserError for options that contradict what the scenes come from, or each other."""
    if config.notes and (config.scenes_from is None or table is not None):
        raise UserError("synthesize: notes are about recorded episodes; give scenes_from=DATASET too, or no notes")
    if config.states_from is not None and table is None:
        raise UserError("synthesize: states_from is for photographs; other scenes have states. Leave it out")
    if config.draws > 1 and config.clips > 1:
        raise UserError("synthesize: draws are plans of one window; leave out draws, or clips")


def encoding(config: SynthesizeConfig, source: str) -> dict[str, Any]:
    """Codec and quality of the videos, by default that of the `source` where it can be written. None is LeRobot's."""
    codec = config.codec or (source if source in CODECS else "h264")
    return {"codec": codec, "crf": GOOD_H264 if config.crf is None and codec == "h264" else config.crf}


def means(metrics: dict[str, list[float]]) -> dict[str, float] | None:
    return {name: round(float(np.mean(values)), 4) for name, values in metrics.items()} or None


def summary(result: SynthesizeResult) -> str:
    beside = {name: f" (held still {value})" for name, value in (result.still or {}).items()}
    metrics = "".join(f", {k} {v}{beside.get(k, '')}" for k, v in (result.metrics or {}).items())
    text = f"{result.episodes} episodes, {result.seconds_per_episode} s each{metrics}"
    if solved := result.solved_by_draw:
        text += f"; {solved[0]} scenes solved by the first plan, {solved[-1]} by one of {len(solved)}"
    if spread := result.samples_differ:
        text += (
            f"; samples of a scene differ by {spread.actions:.3g} in actions, {spread.pictures:.3g} of 255 in pictures"
        )
        if spread.actions_of_scenes is not None:
            text += f", those of other scenes by {spread.actions_of_scenes:.3g} and {spread.pictures_of_scenes:.3g}"
    if (ends := result.ends) is not None and ends.cut:
        text += f"; {ends.shortest} to {ends.longest} steps, drawn from {ends.recorded_lengths} recorded lengths"
        if ends.off is not None:
            text += f" ({ends.off:.3g} off those of the same scenes, whole windows {ends.off_of_window:.3g})"
    for part in result.drift or ():
        text += (
            f"\nclip {part.clip}: {part.at_limits:.1%} of states at the limits of the data, sharpness "
            f"{part.sharpness:.3g} (first picture {part.sharpness_of_first_picture:.3g}), mean colour "
            f"{part.colour_shift:.3g} of 255 from it"
        )
        if part.psnr is not None:
            text += (
                f", {part.psnr:.2f} dB (first picture {part.psnr_of_first_picture:.2f}), action distance "
                f"{part.action_distance:.3g} (mean action {part.action_distance_of_mean:.3g})"
            )
    return text
