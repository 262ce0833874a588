"""`vag synthesize`: one picture, one state and an instruction in; video, actions and states out, as a dataset."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recipes.common import (
    canvas_of,
    check_unseen,
    load_generator,
    pick_device,
    sampling_errors,
    weights_id,
)
from recipes.episode_ends import episode_ends
from recipes.photographs import photographed_scenes
from recipes.plans import PLANS, Plans, check_draws, solved_plans
from recipes.schema import CODECS, SynthesizeConfig
from recipes.start_scenes import InitialScene, recorded_scenes, samples_of, scene_seeds, simulated_scenes
from recipes.video_model import is_pretrained, prepare_text, sampling, text_reader
from toolkit.base.errors import UserError, warn
from toolkit.base.files import discard
from toolkit.base.progress import progress
from toolkit.base.randomness import stream_seed
from toolkit.base.run import Run
from toolkit.data.canvas import Canvas
from toolkit.data.conventions import Conventions
from toolkit.data.episode import PICTURE_EVERY, Episode
from toolkit.data.formats.lerobot_write import EpisodeWriter
from toolkit.data.formats.scene_table import find_table
from toolkit.data.seen_scenes import read_scenes, scenes_of, write_scenes
from toolkit.evaluation.action_metrics import action_distance, jerk_ratio
from toolkit.evaluation.clip_drift import ClipDrift
from toolkit.evaluation.sample_spread import SampleSpread
from toolkit.evaluation.video_metrics import psnr, ssim
from toolkit.reporting.generator_results import DriftOfClip, Media, SamplesDiffer, SynthesizeResult
from toolkit.reporting.media import grid, write_video
from toolkit.training.runtime import set_threads
from vag_core import GeneratedBatch, Generator

GOOD_H264 = 2  # crf: see EpisodeWriter


def run(config: SynthesizeConfig, run: Run) -> SynthesizeResult:
    """Generate one episode per scene and write `dataset`, with a note of where each comes from."""
    set_threads(config.runtime)
    table = None if config.scenes_from is None else find_table(config.scenes_from)
    check_scenes(config, table)
    generator = load_generator(config.checkpoint, pick_device(config.runtime), config.max_parameters, config.base)
    trained = Conventions.of(config.checkpoint)
    encode = text_reader(generator, config, trained.views)
    identity = weights_id(config.checkpoint)
    run.add_data(config.checkpoint, identity)
    if not generator.config.action.makes_video:
        raise UserError(f"{config.checkpoint}: it makes actions alone, which is no dataset; use another generator")
    order = config.sampler.order or generator.order
    if config.draws > 1:
        check_draws(config, order if generator.order == "actions_first" else generator.order)
    canvas = canvas_of(generator, trained)
    scenes, layout = scenes_for(config, run, generator, canvas, table)
    prepare_text(encode, generator, [scene.instruction for scene in scenes], config.sampler)
    from_scenes, allow_seen = scenes_of(scene.metadata for scene in scenes), config.scenes_from is not None
    seen = check_unseen("synthesize", config.checkpoint, from_scenes, config.allow_seen or allow_seen)
    seeds = scene_seeds(config.seed, [scene.metadata for scene in scenes])
    steps, ends = episode_ends(config, scenes, seeds, generator.config.action_horizon)
    began, plans = time.perf_counter(), None
    if config.draws > 1:
        plans = solved_plans(config, run.directory / PLANS, generator, encode, scenes, identity)
    planning = time.perf_counter() - began
    with EpisodeWriter(run.directory / "dataset", **layout, **encoding(config, trained.codec)) as writer:
        made = Samples(config, generator, encode, identity, order, plans, canvas)
        made.write(writer, scenes, seeds, steps, ends.rule)
        if (learned := read_scenes(config.checkpoint)) is not None:  # who trains on this data has seen them too
            write_scenes(writer.temporary / "meta", learned)
    alone = made.shown[0].shape[1:3] == canvas.size
    caption = "generated" if alone else "recorded (above) and generated (below), same first frame"
    write_video(run.directory / "media/generated.mp4", grid(made.shown, columns=6), fps=20)
    solved_by_draw, planning_seconds = None, None
    if plans is not None:
        first = np.where(plans.solved, plans.draw, config.draws)
        solved_by_draw = [int((first <= draw).sum()) for draw in range(config.draws)]
        planning_seconds = round(planning, 1)  # and executing; of a run that was cut, since it went on
        discard(run.directory / PLANS)
    return SynthesizeResult(
        episodes=len(scenes),
        seconds_per_episode=round(made.seconds / len(scenes), 3),
        function_evaluations=made.function_evaluations,
        generator_id=identity,
        seen_scenes=seen,
        dataset="dataset",
        media=[Media(path="media/generated.mp4", caption=caption)],
        solved_by_draw=solved_by_draw,
        planning_seconds=planning_seconds,
        metrics=means(made.metrics),
        still=means({name: values for name, values in made.still.items() if name != "jerk_ratio"}),
        samples_differ=made.samples_differ(),
        ends=ends,
        drift=[DriftOfClip(**clip) for clip in made.drift.result()] or None,
    )


def scenes_for(
    config: SynthesizeConfig, run: Run, generator: Generator, canvas: Canvas, table: Path | None
) -> tuple[list[InitialScene], dict[str, Any]]:
    """What episodes start from, each as often as asked for, and what the dataset says of itself."""
    if table is not None:
        scenes, layout = photographed_scenes(config, run, generator, canvas, table)
    elif config.scenes_from is not None:
        scenes, layout = recorded_scenes(config, run, generator, canvas)
    else:
        scenes, layout = simulated_scenes(config, canvas)
    return samples_of(scenes, config), layout


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


class Samples:
    """Pairs of all scenes, batch by batch, as episodes. Afterwards: metrics of those that have a reference, the first
    videos to look at, seconds of sampling, and passes through the generator for one pair."""

    def __init__(
        self,
        config: SynthesizeConfig,
        generator: Generator,
        encode: Any,
        identity: str,
        order: str,
        plans: Plans | None,
        canvas: Canvas,
    ) -> None:
        self.config, self.generator, self.encode, self.plans, self.canvas = config, generator, encode, plans, canvas
        self.order, self.stride = order, generator.config.frame_stride
        sampler = config.sampler
        self.sampling = {**sampling(encode, sampler), "order": order}
        self.scores = config.score if config.score is not None else not is_pretrained(generator.config)
        solver = sampler.method or ("own" if is_pretrained(generator.config) else "euler")
        name = f"{solver}-{sampler.num_inference_steps}-guidance-{sampler.guidance_scale}-{order}"
        name += f"-negative-{sampler.negative_prompt}" if sampler.negative_prompt is not None else ""
        name += f"-draws-{config.draws}-shift-{config.draw_shift}" if config.draws > 1 else ""
        self.origin: dict[str, Any] = {
            "source": "synthetic",
            "generator_id": identity,
            "sampler": name,
            "sample_seed": config.seed,
        }
        self.metrics: dict[str, list[float]] = {}
        self.still: dict[str, list[float]] = {}  # of the first picture, which stays, under the recordings' mean action
        self.shown: list[np.ndarray] = []
        self.seconds, self.function_evaluations = 0.0, 0
        self.spread = SampleSpread()

    def write(
        self,
        writer: EpisodeWriter,
        scenes: Sequence[InitialScene],
        seeds: Sequence[int],
        steps: Sequence[int],
        ends: str,
    ) -> None:
        """Add an episode for each scene, with the noise of its seed, of so many steps; ends: how these were chosen."""
        units, recorded = self.generator.trajectory, [s.reference["actions"] for s in scenes if s.reference is not None]
        low, high = (value.cpu().numpy()[units.action_dim :] for value in (units.low, units.high))
        self.mean_action = np.concatenate(recorded).mean(axis=0) if recorded else np.zeros(units.action_dim)
        self.drift = ClipDrift(self.generator.config.action_horizon, self.stride, low, high, self.mean_action)
        self.warn_of_one_plan()
        bar = progress(description="synthesize", total=len(scenes), unit="ep")
        for start in range(0, len(scenes), self.config.batch_size):
            part = slice(start, start + self.config.batch_size)
            clips = self.clips_of(scenes[part], seeds[part], start, max(steps[part]))
            for index, (scene, frames, actions, states, loss) in enumerate(
                zip(scenes[part], *joined(clips), strict=True), start
            ):
                own: dict[str, Any] = {PICTURE_EVERY: self.stride, "ends": ends}
                own |= {"score_flow_loss": float(loss)} if self.scores else {}
                own |= {} if self.plans is None else self.plans.metadata(index)
                length = steps[index]
                shown = frames[: length // self.stride + 1]  # the last is what the last action leads to
                pictures = self.canvas.take_apart(frames[: -(-length // self.stride)])
                cameras = {camera: view.repeat(self.stride, axis=0)[:length] for camera, view in pictures.items()}
                writer.add(
                    Episode(
                        images=None,  # below, each repeated: a camera slower than the robot
                        cameras=cameras,
                        states=states[:length],
                        actions=actions[:length],
                        task=scene.instruction,
                        metadata={**scene.metadata, **self.origin, **own},
                    )
                )
                self.look_at(scene, frames, actions, shown)
                self.spread.add(index // self.config.samples_per_scene, frames, actions)
                if self.config.clips > 1:
                    self.drift.add(shown, actions[:length], states[: length + 1], scene.reference)
            bar.update(len(scenes[part]))
        bar.close()

    def warn_of_one_plan(self) -> None:
        """Say before anything is sampled that the samples of a scene will differ in their pictures alone."""
        several, clips = self.config.samples_per_scene > 1, self.config.clips  # later clips start from other pictures
        if several and clips == 1 and self.order == "actions_first" and self.plans is None:
            warn(
                f"all samples of a scene have the same actions: with sampler.order={self.order} they are planned "
                "first, as a mean. sampler.order=synchronised draws actions and video together, if the generator was "
                "trained for it"
            )

    def samples_differ(self) -> SamplesDiffer | None:
        """How much samples of a scene differ, where there are several."""
        distances = self.spread.result()
        return None if distances is None else SamplesDiffer(**distances)

    def clips_of(
        self, scenes: Sequence[InitialScene], seeds: Sequence[int], start: int, steps: int
    ) -> list[GeneratedBatch]:
        """Pairs of the scenes from number `start` on, and those that go on from their last pictures and states, until
        there are so many steps; each has noise of its own."""
        image = torch.from_numpy(np.stack([scene.image for scene in scenes]))
        state = torch.from_numpy(np.stack([scene.state for scene in scenes]))
        instructions = self.encode([scene.instruction for scene in scenes])
        given: dict[str, Any] = (
            {} if self.plans is None else self.plans.given(slice(start, start + self.config.batch_size))
        )
        made = list[GeneratedBatch]()
        for clip in range(-(-steps // self.generator.config.action_horizon)):
            own = [stream_seed(seed, "clip", clip) if clip else seed for seed in seeds]
            began = time.perf_counter()
            with sampling_errors(self.generator, len(scenes)):
                sample = self.generator.sample(
                    image,
                    state,
                    instructions,
                    **self.sampling,
                    rng=[torch.Generator().manual_seed(seed) for seed in own],
                    score=self.scores,
                    **given,
                )
            self.seconds += time.perf_counter() - began
            self.function_evaluations = sample.function_evaluations
            image, state = sample.frames[:, -1], sample.states[:, -1]
            made.append(sample)
        return made

    def look_at(self, scene: InitialScene, frames: np.ndarray, actions: np.ndarray, shown: np.ndarray) -> None:
        """Compare a pair with its reference, and keep what is shown of a dozen that all have one, or none."""
        if scene.reference is not None:
            still = np.broadcast_to(self.mean_action, actions.shape), np.broadcast_to(frames[:1], frames.shape)
            for kept, (acted, shows) in ((self.metrics, (actions, frames)), (self.still, still)):
                for name, value in compare(acted, shows, scene.reference).items():
                    kept.setdefault(name, []).append(value)
            length = len(frames)
            shown = np.concatenate([_fit(scene.reference["frames"], length), _fit(shown, length)], axis=1)
        if len(self.shown) < 12 and (not self.shown or self.shown[0].shape[1:] == shown.shape[1:]):
            self.shown.append(shown)


def joined(clips: Sequence[GeneratedBatch]) -> list[np.ndarray]:
    """frames, actions, states and mean loss (NaN for none) of clips of which each goes on from the one before.

    Where two meet, the picture and state are of the later one alone.
    """
    last = clips[-1]
    parts: list[list[torch.Tensor]] = [
        [*(clip.frames[:, :-1] for clip in clips), last.frames[:, -1:]],
        [clip.actions for clip in clips],
        [*(clip.states[:, :-1] for clip in clips), last.states[:, -1:]],
    ]
    losses = [clip.loss for clip in clips if clip.loss is not None]
    loss = torch.stack(losses).mean(0) if losses else torch.full((len(last.actions),), torch.nan)
    return [*(torch.cat(part, dim=1).cpu().numpy() for part in parts), loss.cpu().numpy()]


def compare(actions: np.ndarray, frames: np.ndarray, reference: dict[str, np.ndarray]) -> dict[str, float]:
    """Metrics of one generated pair against the recorded episode of the same scene, as far as both go."""
    length, shown = min(len(reference["actions"]), len(actions)), min(len(reference["frames"]), len(frames))
    recorded, pictures = reference["actions"][:length], reference["frames"][1:shown]
    return {
        "action_distance": float(action_distance(actions[:length], recorded)),
        "jerk_ratio": float(jerk_ratio(actions[:length], recorded)),
        "psnr": float(psnr(frames[1:shown], pictures)),
        "ssim": float(ssim(frames[1:shown], pictures)),
    }


def means(metrics: dict[str, list[float]]) -> dict[str, float] | None:
    return {name: round(float(np.mean(values)), 4) for name, values in metrics.items()} or None


def _fit(frames: np.ndarray, length: int) -> np.ndarray:
    return frames[np.minimum(np.arange(length), len(frames) - 1)]


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
