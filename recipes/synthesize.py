"""`vag synthesize`: one picture, one state and an instruction in; video, actions and states out, as a dataset."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recipes.common import (
    check_unseen,
    distinct_tasks,
    instruction_encoder,
    load_clips,
    load_generator,
    load_notes,
    pick_device,
    user_errors,
    weights_id,
)
from recipes.schema import SynthesizeConfig
from toolkit.base.errors import UserError
from toolkit.base.files import atomic_file, discard
from toolkit.base.progress import progress
from toolkit.base.run import Run
from toolkit.data.episode import ACTION, PICTURE_EVERY, STATE, Episode
from toolkit.data.episode_notes import check_used
from toolkit.data.formats.lerobot_layout import feature_names, read_info
from toolkit.data.formats.lerobot_write import EpisodeWriter
from toolkit.data.images import moved
from toolkit.data.seen_scenes import read_scenes, scenes_of, write_scenes
from toolkit.evaluation.action_metrics import action_distance, jerk_ratio
from toolkit.evaluation.replay import replay_episodes
from toolkit.evaluation.video_metrics import psnr, ssim
from toolkit.reporting.media import grid, write_video
from toolkit.reporting.results import Media, SynthesizeResult
from toolkit.training.runtime import set_threads
from vag_core import Generator

PLANS = "plans.npz"


@dataclass
class Scene:
    """What one episode starts from; `reference` holds the recorded episode where there is one."""

    image: np.ndarray
    state: np.ndarray
    instruction: str
    metadata: dict[str, Any]
    reference: dict[str, np.ndarray] | None = None


def run(config: SynthesizeConfig, run: Run) -> SynthesizeResult:
    """Generate one episode per scene and write `dataset`, with a note of where each comes from."""
    set_threads(config.runtime)
    if config.notes and config.scenes_from is None:
        raise UserError("synthesize: notes are about recorded episodes; give scenes_from=DATASET too, or no notes")
    generator = load_generator(config.checkpoint, pick_device(config.runtime), config.max_parameters)
    encode = instruction_encoder(config.instruction_encoder, config.max_parameters)
    identity = weights_id(config.checkpoint)
    run.add_data(config.checkpoint, identity)
    sampler = config.sampler
    if not generator.config.action.makes_video:
        raise UserError(f"{config.checkpoint}: it makes actions alone, which is no dataset; use another generator")
    stride = generator.config.frame_stride
    description = f"{sampler.method}-{sampler.num_inference_steps}-guidance-{sampler.guidance_scale}"
    order = sampler.order or generator.order
    description += f"-{order}"
    if config.draws > 1:
        check_draws(config, order if generator.order == "actions_first" else generator.order)
        description += f"-draws-{config.draws}-shift-{config.draw_shift}"
    scenes, layout = (
        simulated_scenes(config, generator) if config.scenes_from is None else recorded_scenes(config, run, generator)
    )
    from_scenes = scenes_of(scene.metadata for scene in scenes)
    recorded = config.scenes_from is not None
    seen = check_unseen("synthesize", config.checkpoint, from_scenes, config.allow_seen or recorded)
    began = time.perf_counter()
    plans = (
        solved_plans(config, run.directory / PLANS, generator, encode, scenes, identity) if config.draws > 1 else None
    )
    planning = time.perf_counter() - began
    metrics: dict[str, list[float]] = {}
    shown: list[np.ndarray] = []
    seconds = 0.0
    target = run.directory / "dataset"
    with EpisodeWriter(target, **layout) as writer:
        bar = progress(description="synthesize", total=len(scenes), unit="ep")
        for start in range(0, len(scenes), config.batch_size):
            part = scenes[start : start + config.batch_size]
            known = {} if plans is None else plans.given(slice(start, start + config.batch_size))
            began = time.perf_counter()
            rng = [torch.Generator().manual_seed(config.seed * 1_000_003 + start + i) for i in range(len(part))]
            with user_errors():
                sample = generator.sample(
                    torch.from_numpy(np.stack([scene.image for scene in part])),
                    torch.from_numpy(np.stack([scene.state for scene in part])),
                    encode([scene.instruction for scene in part]),
                    num_inference_steps=sampler.num_inference_steps,
                    guidance_scale=sampler.guidance_scale,
                    method=sampler.method,
                    order=order,
                    rng=rng,
                    score=True,
                    **known,
                )
            seconds += time.perf_counter() - began
            assert sample.loss is not None
            frames, actions, states, loss = (
                x.cpu().numpy() for x in (sample.frames, sample.actions, sample.states, sample.loss)
            )
            for i, scene in enumerate(part):
                writer.add(
                    Episode(
                        images=frames[i, :-1].repeat(stride, axis=0),  # a camera slower than the robot
                        states=states[i, :-1],
                        actions=actions[i],
                        task=scene.instruction,
                        metadata={
                            **scene.metadata,
                            "source": "synthetic",
                            "generator_id": identity,
                            "sampler": description,
                            "sample_seed": config.seed,
                            PICTURE_EVERY: stride,
                            "score_flow_loss": float(loss[i]),
                            **({} if plans is None else plans.metadata(start + i)),
                        },
                    )
                )
                shown_frames = frames[i]
                if scene.reference is not None:
                    for name, value in compare(actions[i], frames[i], scene.reference).items():
                        metrics.setdefault(name, []).append(value)
                    shown_frames = np.concatenate([_fit(scene.reference["frames"], len(frames[i])), frames[i]], axis=1)
                if len(shown) < 12:
                    shown.append(shown_frames)
            bar.update(len(part))
        bar.close()
        if (learned := read_scenes(config.checkpoint)) is not None:  # who trains on this data has seen them too
            write_scenes(writer.temporary / "meta", learned)
    caption = "recorded (above) and generated (below), same first frame" if recorded else "generated"
    write_video(run.directory / "media/generated.mp4", grid(shown, columns=6), fps=20)
    solved_by_draw, planning_seconds = None, None
    if plans is not None:
        first = np.where(plans.solved, plans.draw, config.draws)
        solved_by_draw = [int((first <= draw).sum()) for draw in range(config.draws)]
        planning_seconds = round(planning, 1)  # and executing; of a run that was cut, since it went on
        discard(run.directory / PLANS)
    return SynthesizeResult(
        episodes=len(scenes),
        seconds_per_episode=round(seconds / len(scenes), 3),
        function_evaluations=sample.function_evaluations,
        generator_id=identity,
        seen_scenes=seen,
        dataset="dataset",
        media=[Media(path="media/generated.mp4", caption=caption)],
        solved_by_draw=solved_by_draw,
        planning_seconds=planning_seconds,
        metrics={name: round(float(np.mean(values)), 4) for name, values in metrics.items()} or None,
    )


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


def check_draws(config: SynthesizeConfig, order: str) -> None:
    """Raise UserError for too many draws, recorded scenes, and an order that does not begin with a plan."""
    places = (2 * config.draw_shift + 1) ** 2
    if config.draws > places:
        raise UserError(
            f"synthesize: draws={config.draws}: with draw_shift={config.draw_shift} there are {places} different ones"
        )
    if config.scenes_from is not None:
        raise UserError("synthesize: draws are tried in the simulator; scenes_from has none to try them in")
    if order != "actions_first":
        raise UserError(f"synthesize: draws are plans; a sample of order {order} does not begin with one")


def solved_plans(
    config: SynthesizeConfig, path: Path, generator: Generator, encode: Any, scenes: list[Scene], identity: str
) -> Plans:
    """For each scene the first of several plans that the simulator solves; if it solves none, the first of all.

    That one is for the picture as it is, the others for the picture moved by some pixels: where things are is what a
    plan misjudges. What was found is kept at `path` after every draw, so a killed run goes on from there, unless the
    generator has another `identity` by then.
    """
    side = 2 * config.draw_shift + 1
    offsets = [np.random.default_rng((config.seed, 6, i)).permutation(side**2 - 1) for i in range(len(scenes))]

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


def simulated_scenes(config: SynthesizeConfig, generator: Any) -> tuple[list[Scene], dict[str, Any]]:
    """Reset the simulator to unused seeds and take one picture each: no teleoperation."""
    from toolkit.envs.metaworld import cached_env, initial_scene

    tasks = distinct_tasks("synthesize", config.tasks)
    size = generator.config.image_size
    envs = {task: cached_env(task, size) for task in tasks}
    seeds = [
        (task, seed)
        for seed in range(config.first_seed, config.first_seed + config.episodes_per_task)
        for task in tasks
    ]
    scenes = []
    for task, seed in progress(seeds, description="initial scenes", total=len(seeds)):
        image, state = initial_scene(envs[task], seed)
        metadata = {"seed": seed, "task_name": task}
        scenes.append(Scene(image, state, envs[task].instruction, metadata))
    env = next(iter(envs.values()))
    return scenes, {"fps": env.fps, "state_names": env.state_names, "action_names": env.action_names}


def recorded_scenes(config: SynthesizeConfig, run: Run, generator: Any) -> tuple[list[Scene], dict[str, Any]]:
    """First pictures, states and instructions of a dataset; its recorded actions become the reference."""
    assert config.scenes_from is not None
    shape = generator.config
    notes = load_notes(run, config.notes)
    store = load_clips(run, config.scenes_from, shape.image_size, config.image_key, notes)
    check_used(notes)
    for name, values, expected in (
        ("state", store.states, shape.state_dim),
        ("action", store.actions, shape.action_dim),
    ):
        if values.shape[1] != expected:
            raise UserError(f"{config.scenes_from}: {name} width {values.shape[1]}; the generator has {expected}")
    scenes = []
    for episode in range(store.num_episodes):
        window = store.generator_batch(np.array([episode]), np.array([0]), shape.num_frames, shape.frame_stride)
        length = int((~window["is_pad"][0]).sum())
        frames = window["frames"][0, : length // shape.frame_stride + 1]
        reference = {"frames": frames, "actions": window["actions"][0, :length]}
        comparable = length > max(3, shape.frame_stride)  # jerk is a third difference, and a frame follows the first
        keep = {k: v for k, v in store.metadata[episode].items() if k in ("seed", "task_name")}
        scenes.append(
            Scene(
                window["frames"][0, 0],
                window["states"][0, 0],
                store.instruction(episode),
                keep,
                reference if comparable else None,
            )
        )
    info: dict[str, Any] = {
        "features": {key: {"shape": [width]} for key, width in ((STATE, shape.state_dim), (ACTION, shape.action_dim))}
    }
    if Path(config.scenes_from).is_dir():
        info = read_info(Path(config.scenes_from))
    names = {"state_names": feature_names(info, STATE), "action_names": feature_names(info, ACTION)}
    return scenes, {"fps": round(store.fps), "robot_type": info.get("robot_type") or "unknown", **names}


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
    return text
