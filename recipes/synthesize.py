"""`vag synthesize`: one picture, one state and an instruction in; video, actions and states out, as a dataset."""

from __future__ import annotations

import time
from dataclasses import dataclass
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
    pick_device,
    user_errors,
    weights_id,
)
from recipes.schema import SynthesizeConfig
from toolkit.data.lerobot_io import EpisodeWriter, read_info
from toolkit.data.scenes import read_scenes, scenes_of, write_scenes
from toolkit.data.schema import ACTION, PICTURE_EVERY, STATE, Episode
from toolkit.errors import UserError
from toolkit.evaluation.action_metrics import action_distance, jerk_ratio
from toolkit.evaluation.video_metrics import psnr, ssim
from toolkit.reporting.media import grid, write_video
from toolkit.reporting.run_record import Run
from toolkit.training.logging import progress
from toolkit.training.runtime import set_threads


@dataclass
class Scene:
    """What one episode starts from; `reference` holds the recorded episode where there is one."""

    image: np.ndarray
    state: np.ndarray
    instruction: str
    metadata: dict[str, Any]
    reference: dict[str, np.ndarray] | None = None


def run(config: SynthesizeConfig, run: Run) -> None:
    """Generate one episode per scene and write `dataset`, with provenance in the episode table."""
    set_threads(config.runtime)
    generator = load_generator(config.checkpoint, pick_device(config.runtime))
    encode = instruction_encoder(config.instruction_encoder)
    identity = weights_id(config.checkpoint)
    sampler = config.sampler
    if not generator.config.makes_video:
        raise UserError(f"{config.checkpoint}: it makes actions alone, which is no dataset; use another generator")
    stride = generator.config.frame_stride
    description = f"{sampler.method}-{sampler.num_inference_steps}-guidance-{sampler.guidance_scale}"
    order = sampler.order or generator.order
    description += f"-{order}"
    scenes, layout = (
        simulated_scenes(config, generator) if config.scenes_from is None else recorded_scenes(config, run, generator)
    )
    from_scenes = scenes_of(scene.metadata for scene in scenes)
    recorded = config.scenes_from is not None
    seen = check_unseen("synthesize", config.checkpoint, from_scenes, config.allow_seen or recorded)
    metrics: dict[str, list[float]] = {}
    shown: list[np.ndarray] = []
    seconds = 0.0
    target = run.directory / "dataset"
    with EpisodeWriter(target, **layout) as writer:
        bar = progress(description="synthesize", total=len(scenes), unit="ep")
        for start in range(0, len(scenes), config.batch_size):
            part = scenes[start : start + config.batch_size]
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
        if (known := read_scenes(config.checkpoint)) is not None:  # who trains on this data has seen them too
            write_scenes(writer.temporary / "meta", known)
    caption = "recorded (above) and generated (below), same first frame" if recorded else "generated"
    (run.directory / "media").mkdir(exist_ok=True)
    write_video(run.directory / "media/generated.mp4", grid(shown, columns=6), fps=20)
    run.result.update(
        episodes=len(scenes),
        seconds_per_episode=round(seconds / len(scenes), 3),
        function_evaluations=sample.function_evaluations,
        generator_id=identity,
        seen_scenes=seen,
        dataset="dataset",
        media=[{"path": "media/generated.mp4", "caption": caption}],
    )
    if metrics:
        run.result["metrics"] = {name: round(float(np.mean(values)), 4) for name, values in metrics.items()}


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
    store = load_clips(run, config.scenes_from, shape.image_size, config.image_key)
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
    info = read_info(Path(config.scenes_from)) if Path(config.scenes_from).is_dir() else {"features": {}}
    names = {}
    for key, label, width in ((STATE, "state", shape.state_dim), (ACTION, "action", shape.action_dim)):
        given = info["features"].get(key, {}).get("names")
        known = isinstance(given, list) and len(given) == width
        names[f"{label}_names"] = given if known else [f"{label}_{i}" for i in range(width)]
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


def summary(result: dict[str, Any]) -> str:
    metrics = "".join(f", {k} {v}" for k, v in result.get("metrics", {}).items())
    return f"{result['episodes']} episodes, {result['seconds_per_episode']} s each{metrics}"
