"""Where generated episodes start: scenes of the simulator, or first pictures of recordings; photographs have a room."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from recipes.common import Pictures, load_clips, load_notes
from recipes.schema import SynthesizeConfig
from recipes.worlds import cameras_for, check_simulated, spec_of, tasks_in, world_of
from toolkit.base.errors import UserError
from toolkit.base.progress import progress
from toolkit.base.randomness import stream_seed
from toolkit.base.run import Run
from toolkit.data.canvas import Canvas
from toolkit.data.clips import ClipStore
from toolkit.data.conventions import RETRAIN, Conventions
from toolkit.data.episode import ACTION, STATE
from toolkit.data.episode_notes import check_used
from toolkit.data.formats.lerobot_layout import feature_names, read_info
from toolkit.data.seen_scenes import scene_of
from toolkit.evaluation.rollout import drawn_size
from vag_core.config import GeneratorConfig

FIRST_PICTURE = "first_picture_of"  # noted of an episode: the number of the recorded one in scenes_from
SCENE_NOTES = ("seed", "task_name", "world", "world_settings")
PHOTOGRAPHS = "photographs"  # noted of an episode: the file of each camera


@dataclass(frozen=True)
class InitialScene:
    """What one episode starts from; `reference` holds frames and actions of the recorded episode where there is one, as
    far as the window reaches, and `recorded_length` all its steps."""

    image: np.ndarray
    state: np.ndarray
    instruction: str
    metadata: dict[str, Any]
    reference: dict[str, np.ndarray] | None = None
    recorded_length: int | None = None


def scene_seeds(seed: int, metadata: Sequence[dict[str, Any]]) -> list[int]:
    """A seed for each scene, by what is noted of the episode, that does not depend on the others, nor on their order.

    Episodes that start from one scene are told apart by which of them it is; scenes without a name by the number of the
    episode that the first picture is of, or by their photographs.
    """
    before: Counter[tuple[str | int, ...]] = Counter()
    seeds = []
    for index, row in enumerate(metadata):
        name = scene_of(row, f"episode {index}") or (row.get(FIRST_PICTURE, row.get(PHOTOGRAPHS, index)),)
        seeds.append(stream_seed(seed, *name, before[name]))
        before[name] += 1
    return seeds


def samples_of(scenes: Sequence[InitialScene], config: SynthesizeConfig) -> list[InitialScene]:
    """Each scene with each instruction, so many times; those of one scene and instruction stand together.

    A recorded episode is no reference for another instruction than its own.
    """
    asked = []
    for scene in scenes:
        for instruction in config.instructions or [scene.instruction]:
            own = instruction == scene.instruction
            noted = {} if own else {"recorded_instruction": scene.instruction}
            one = replace(
                scene,
                instruction=instruction,
                reference=scene.reference if own else None,
                recorded_length=scene.recorded_length if own else None,
                metadata={**scene.metadata, **noted},
            )
            asked += [one] * config.samples_per_scene
    return asked


def simulated_scenes(config: SynthesizeConfig, canvas: Canvas) -> tuple[list[InitialScene], dict[str, Any]]:
    """Reset the world to unused seeds and take one picture of each camera: no teleoperation.

    Raises UserError for a camera that the world does not show, another rate or other dimensions.
    """
    world, noted = world_of(config), spec_of(config).metadata
    tasks = tasks_in("synthesize", config.tasks, world)
    envs = {task: world.shared(task, drawn_size(canvas.cameras)) for task in tasks}
    env = envs[tasks[0]]
    check_simulated(config.checkpoint, env, world.name, remedy=RETRAIN)
    cameras = cameras_for(list(canvas.cameras), env, config.rename, world.name, config.checkpoint)
    seeds = [
        (task, seed)
        for seed in range(config.first_seed, config.first_seed + config.episodes_per_task)
        for task in tasks
    ]
    scenes = []
    for task, seed in progress(seeds, description="initial scenes", total=len(seeds)):
        state = envs[task].reset(seed)
        seen = envs[task].render()
        metadata = {"seed": seed, "task_name": task, **noted}
        picture = canvas.compose({camera: seen[own][None] for camera, own in cameras.items()})[0]
        scenes.append(InitialScene(picture, state, envs[task].instruction, metadata))
    layout = {"fps": env.fps, "state_names": list(env.state_names), "action_names": list(env.action_names)}
    return scenes, {**layout, "robot_type": world.robot_type}


def recorded_scenes(
    config: SynthesizeConfig, run: Run, generator: Any, canvas: Canvas
) -> tuple[list[InitialScene], dict[str, Any]]:
    """First pictures, states and instructions of a dataset; its recorded actions become the reference."""
    assert config.scenes_from is not None
    shape = generator.config
    notes = load_notes(run, config.notes)
    trained = Conventions.of(config.checkpoint)
    store = load_clips(run, config.scenes_from, Pictures.trained_on(canvas, config, trained), notes)
    check_used(notes)
    trained.check(store, remedy=RETRAIN)
    check_widths(config.scenes_from, store, shape)
    num_frames, scenes = 1 + config.clips * (shape.num_frames - 1), []
    for episode in range(store.num_episodes):
        window = store.generator_batch(np.array([episode]), np.array([0]), num_frames, shape.frame_stride)
        length = int((~window["is_pad"][0]).sum())
        frames = window["frames"][0, : length // shape.frame_stride + 1]
        reference = {"frames": frames, "actions": window["actions"][0, :length]}
        comparable = length > max(3, shape.frame_stride)  # jerk is a third difference, and a frame follows the first
        keep = {k: v for k, v in store.metadata[episode].items() if k in SCENE_NOTES}
        keep[FIRST_PICTURE] = episode
        scenes.append(
            InitialScene(
                window["frames"][0, 0],
                window["states"][0, 0],
                store.instruction(episode),
                keep,
                reference if comparable else None,
                int(store.episode_lengths[episode]),
            )
        )
    info: dict[str, Any] = {
        "features": {key: {"shape": [width]} for key, width in ((STATE, shape.state_dim), (ACTION, shape.action_dim))}
    }
    if Path(config.scenes_from).is_dir():
        info = read_info(Path(config.scenes_from))
    names = {"state_names": feature_names(info, STATE), "action_names": feature_names(info, ACTION)}
    return scenes, {"fps": round(store.fps), "robot_type": info.get("robot_type") or "unknown", **names}


def check_widths(source: str, store: ClipStore, shape: GeneratorConfig) -> None:
    """Raise UserError for states or actions of another width than the generator's."""
    for name, values, expected in (
        ("state", store.states, shape.state_dim),
        ("action", store.actions, shape.action_dim),
    ):
        if values.shape[1] != expected:
            raise UserError(f"{source}: {name} width {values.shape[1]}; the generator has {expected}")
