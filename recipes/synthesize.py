"""`vag synthesize`: one picture, one state and an instruction in; video, actions and states out, as a dataset."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recipes.common import (
    canvas_of,
    check_unseen,
    instruction_encoder,
    load_generator,
    pick_device,
    user_errors,
    weights_id,
)
from recipes.schema import CODECS, SynthesizeConfig
from recipes.start_scenes import InitialScene, recorded_scenes, samples_of, scene_seeds, simulated_scenes
from toolkit.base.errors import UserError, warn
from toolkit.base.files import atomic_file, discard
from toolkit.base.progress import progress
from toolkit.base.run import Run
from toolkit.data.canvas import Canvas
from toolkit.data.conventions import Conventions
from toolkit.data.episode import PICTURE_EVERY, Episode
from toolkit.data.formats.lerobot_write import EpisodeWriter
from toolkit.data.images import moved
from toolkit.data.seen_scenes import read_scenes, scenes_of, write_scenes
from toolkit.evaluation.action_metrics import action_distance, jerk_ratio
from toolkit.evaluation.replay import replay_episodes
from toolkit.evaluation.sample_spread import SampleSpread
from toolkit.evaluation.video_metrics import psnr, ssim
from toolkit.reporting.media import grid, write_video
from toolkit.reporting.results import Media, SamplesDiffer, SynthesizeResult
from toolkit.training.runtime import set_threads
from vag_core import GeneratedBatch, Generator

PLANS = "plans.npz"
GOOD_H264 = 2  # crf: see EpisodeWriter


def run(config: SynthesizeConfig, run: Run) -> SynthesizeResult:
    """Generate one episode per scene and write `dataset`, with a note of where each comes from."""
    set_threads(config.runtime)
    if config.notes and config.scenes_from is None:
        raise UserError("synthesize: notes are about recorded episodes; give scenes_from=DATASET too, or no notes")
    generator = load_generator(config.checkpoint, pick_device(config.runtime), config.max_parameters)
    encode = instruction_encoder(config.instruction_encoder, config.max_parameters)
    identity = weights_id(config.checkpoint)
    run.add_data(config.checkpoint, identity)
    if not generator.config.action.makes_video:
        raise UserError(f"{config.checkpoint}: it makes actions alone, which is no dataset; use another generator")
    order = config.sampler.order or generator.order
    if config.draws > 1:
        check_draws(config, order if generator.order == "actions_first" else generator.order)
    recorded = config.scenes_from is not None
    trained = Conventions.of(config.checkpoint)
    canvas = canvas_of(generator, trained)
    scenes, layout = recorded_scenes(config, run, generator, canvas) if recorded else simulated_scenes(config, canvas)
    scenes = samples_of(scenes, config)
    from_scenes = scenes_of(scene.metadata for scene in scenes)
    seen = check_unseen("synthesize", config.checkpoint, from_scenes, config.allow_seen or recorded)
    began, plans = time.perf_counter(), None
    if config.draws > 1:
        plans = solved_plans(config, run.directory / PLANS, generator, encode, scenes, identity)
    planning = time.perf_counter() - began
    with EpisodeWriter(run.directory / "dataset", **layout, **encoding(config, trained.codec)) as writer:
        made = Samples(config, generator, encode, identity, order, plans, canvas)
        made.write(writer, scenes)
        if (learned := read_scenes(config.checkpoint)) is not None:  # who trains on this data has seen them too
            write_scenes(writer.temporary / "meta", learned)
    caption = "recorded (above) and generated (below), same first frame" if recorded else "generated"
    write_video(run.directory / "media/generated.mp4", grid(made.shown, columns=6), fps=20)
    solved_by_draw, planning_seconds = None, None
    if plans is not None:
        first = np.where(plans.solved, plans.draw, config.draws)
        solved_by_draw = [int((first <= draw).sum()) for draw in range(config.draws)]
        planning_seconds = round(planning, 1)  # and executing; of a run that was cut, since it went on
        discard(run.directory / PLANS)
    distances = made.spread.result()
    spread = None if distances is None else SamplesDiffer(**distances)
    if spread is not None and spread.actions == 0:
        warn(
            f"all samples of a scene have the same actions: with sampler.order={order} they are planned first, as a "
            "mean. sampler.order=synchronised draws actions and video together, if the generator was trained for it"
        )
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
        metrics={name: round(float(np.mean(values)), 4) for name, values in made.metrics.items()} or None,
        samples_differ=spread,
    )


def encoding(config: SynthesizeConfig, source: str) -> dict[str, Any]:
    """Codec and quality of the videos, by default that of the `source` where it can be written. None is LeRobot's."""
    codec = config.codec or (source if source in CODECS else "h264")
    return {"codec": codec, "crf": GOOD_H264 if config.crf is None and codec == "h264" else config.crf}


@dataclass
class Plans:
    """What the episodes of E scenes do: a draw of each, and whether the simulator says that it solves the scene."""

    actions: np.ndarray  # (E, N, A)
    states: np.ndarray  # (E, N + 1, S)
    draw: np.ndarray  # (E,)
    solved: np.ndarray  # (E,) bool

    def metadata(self, index: int) -> dict[str, int | bool]:
        """What is noted of an episode."""
        return {"draw": int(self.draw[index]), "replay_success": bool(self.solved[index])}

    def given(self, part: slice) -> dict[str, torch.Tensor]:
        """What the generator is given for some of the scenes."""
        return {"actions": torch.from_numpy(self.actions[part]), "states": torch.from_numpy(self.states[part])}


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
        name = f"{sampler.method}-{sampler.num_inference_steps}-guidance-{sampler.guidance_scale}-{order}"
        name += f"-draws-{config.draws}-shift-{config.draw_shift}" if config.draws > 1 else ""
        self.origin: dict[str, Any] = {
            "source": "synthetic",
            "generator_id": identity,
            "sampler": name,
            "sample_seed": config.seed,
        }
        self.metrics: dict[str, list[float]] = {}
        self.shown: list[np.ndarray] = []
        self.seconds, self.function_evaluations = 0.0, 0
        self.spread = SampleSpread()

    def write(self, writer: EpisodeWriter, scenes: Sequence[InitialScene]) -> None:
        noise_seeds = scene_seeds(self.config.seed, [scene.metadata for scene in scenes])
        bar = progress(description="synthesize", total=len(scenes), unit="ep")
        for start in range(0, len(scenes), self.config.batch_size):
            part = scenes[start : start + self.config.batch_size]
            sample = self.sample(part, start, noise_seeds[start : start + self.config.batch_size])
            assert sample.loss is not None
            arrays = (x.cpu().numpy() for x in (sample.frames, sample.actions, sample.states, sample.loss))
            for index, (scene, frames, actions, states, loss) in enumerate(zip(part, *arrays, strict=True), start):
                planned = {} if self.plans is None else self.plans.metadata(index)
                own = {PICTURE_EVERY: self.stride, "score_flow_loss": float(loss), **planned}
                pictures = self.canvas.take_apart(frames[:-1])
                writer.add(
                    Episode(
                        images=None,  # below, each repeated: a camera slower than the robot
                        cameras={camera: part.repeat(self.stride, axis=0) for camera, part in pictures.items()},
                        states=states[:-1],
                        actions=actions,
                        task=scene.instruction,
                        metadata={**scene.metadata, **self.origin, **own},
                    )
                )
                self.look_at(scene, frames, actions)
                self.spread.add(index // self.config.samples_per_scene, frames, actions)
            bar.update(len(part))
        bar.close()

    def sample(self, scenes: Sequence[InitialScene], start: int, noise_seeds: Sequence[int]) -> GeneratedBatch:
        """Pairs of the scenes from number `start` on; each has noise of its own."""
        given = {} if self.plans is None else self.plans.given(slice(start, start + self.config.batch_size))
        began = time.perf_counter()
        with user_errors():
            sample = self.generator.sample(
                torch.from_numpy(np.stack([scene.image for scene in scenes])),
                torch.from_numpy(np.stack([scene.state for scene in scenes])),
                self.encode([scene.instruction for scene in scenes]),
                num_inference_steps=self.config.sampler.num_inference_steps,
                guidance_scale=self.config.sampler.guidance_scale,
                method=self.config.sampler.method,
                order=self.order,
                rng=[torch.Generator().manual_seed(seed) for seed in noise_seeds],
                score=True,
                **given,
            )
        self.seconds += time.perf_counter() - began
        self.function_evaluations = sample.function_evaluations
        return sample

    def look_at(self, scene: InitialScene, frames: np.ndarray, actions: np.ndarray) -> None:
        """Compare a pair with its reference, and keep the first dozen to show."""
        if scene.reference is not None:
            for name, value in compare(actions, frames, scene.reference).items():
                self.metrics.setdefault(name, []).append(value)
            frames = np.concatenate([_fit(scene.reference["frames"], len(frames)), frames], axis=1)
        if len(self.shown) < 12:
            self.shown.append(frames)


def check_draws(config: SynthesizeConfig, order: str) -> None:
    """Raise UserError for too many draws, recorded scenes, and an order that does not begin with a plan."""
    places = (2 * config.draw_shift + 1) ** 2
    if config.draws > places:
        raise UserError(
            f"synthesize: draws={config.draws}: with draw_shift={config.draw_shift} there are {places} different ones"
        )
    if config.samples_per_scene > 1 or config.instructions:
        raise UserError("synthesize: draws are one plan of each scene for its own task; leave out draws, or the others")
    if config.scenes_from is not None:
        raise UserError("synthesize: draws are tried in the simulator; scenes_from has none to try them in")
    if order != "actions_first":
        raise UserError(f"synthesize: draws are plans; a sample of order {order} does not begin with one")


def solved_plans(
    config: SynthesizeConfig, path: Path, generator: Generator, encode: Any, scenes: list[InitialScene], identity: str
) -> Plans:
    """For each scene the first of several plans that the simulator solves; if it solves none, the first of all.

    That one is for the picture as it is, the others for the picture moved by some pixels: where things are is what a
    plan misjudges. What was found is kept at `path` after every draw, so a killed run goes on from there, unless the
    generator has another `identity` by then.
    """
    side, seeds = 2 * config.draw_shift + 1, scene_seeds(config.seed, [scene.metadata for scene in scenes])
    offsets = [np.random.default_rng(seed).permutation(side**2 - 1) for seed in seeds]

    def view(index: int, draw: int) -> np.ndarray:
        if draw == 0:
            return scenes[index].image
        place = int(offsets[index][draw - 1])
        place += place >= side**2 // 2  # the middle is the picture as it is
        return moved(scenes[index].image, place // side - config.draw_shift, place % side - config.draw_shift)

    def planned(indices: np.ndarray, draw: int) -> tuple[np.ndarray, ...]:
        found = []
        for start in range(0, len(indices), config.batch_size):
            part = indices[start : start + config.batch_size]
            pictures = torch.from_numpy(np.stack([view(index, draw) for index in part]))
            states = torch.from_numpy(np.stack([scenes[index].state for index in part]))
            with user_errors():
                found.append(generator.plan_actions(pictures, states, encode([scenes[i].instruction for i in part])))
        return tuple(torch.cat(values).cpu().numpy() for values in zip(*found, strict=True))

    begin, count, shape = 0, len(scenes), generator.config
    plans = Plans(
        np.zeros((count, shape.action_horizon, shape.action_dim), np.float32),
        np.zeros((count, shape.action_horizon + 1, shape.state_dim), np.float32),
        np.zeros(count, int),
        np.zeros(count, bool),
    )
    if path.exists():
        with np.load(path) as kept:
            if str(kept["generator"]) == identity:
                begin = int(kept["draws"])
                plans = Plans(*(kept[field.name] for field in fields(Plans)))
    for draw in range(begin, config.draws):
        todo = np.flatnonzero(~plans.solved)
        if not len(todo):
            break
        actions, states = planned(todo, draw)
        where = [scenes[index].metadata for index in todo]
        items = [(at["task_name"], at["seed"], tried) for at, tried in zip(where, actions, strict=True)]
        outcomes = replay_episodes(items, config.workers, f"draw {draw + 1} of {config.draws}")
        solved = np.array([result["success"] for result in outcomes])
        taken = solved if draw else np.ones_like(solved)
        plans.actions[todo[taken]], plans.states[todo[taken]] = actions[taken], states[taken]
        plans.draw[todo[solved]], plans.solved[todo[solved]] = draw, True
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, generator=identity, draws=draw + 1, **vars(plans))
    return plans


def compare(actions: np.ndarray, frames: np.ndarray, reference: dict[str, np.ndarray]) -> dict[str, float]:
    """Metrics of one generated pair against the recorded episode of the same scene."""
    length, shown = len(reference["actions"]), len(reference["frames"])
    return {
        "action_distance": float(action_distance(actions[:length], reference["actions"])),
        "jerk_ratio": float(jerk_ratio(actions[:length], reference["actions"])),
        "psnr": float(psnr(frames[1:shown], reference["frames"][1:])),
        "ssim": float(ssim(frames[1:shown], reference["frames"][1:])),
    }


def _fit(frames: np.ndarray, length: int) -> np.ndarray:
    return frames[np.minimum(np.arange(length), len(frames) - 1)]


def summary(result: SynthesizeResult) -> str:
    metrics = "".join(f", {k} {v}" for k, v in (result.metrics or {}).items())
    text = f"{result.episodes} episodes, {result.seconds_per_episode} s each{metrics}"
    if solved := result.solved_by_draw:
        text += f"; {solved[0]} scenes solved by the first plan, {solved[-1]} by one of {len(solved)}"
    if spread := result.samples_differ:
        text += (
            f"; samples of a scene differ by {spread.actions:.3g} in actions, {spread.pictures:.3g} of 255 in pictures"
        )
        if spread.actions_of_scenes is not None:
            text += f", those of other scenes by {spread.actions_of_scenes:.3g} and {spread.pictures_of_scenes:.3g}"
    return text
