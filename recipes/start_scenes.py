"""Where generated episodes start: scenes of the simulator, or first pictures of recordings; photographs have a room.

Each picture is read, or drawn, when its episode is made: memory does not grow with the number of scenes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from recipes.common import Pictures, load_clips, load_notes
from recipes.schema import SynthesizeConfig
from recipes.worlds import cameras_for, check_simulated, spec_of, tasks_in, world_of
from toolkit.base.errors import UserError
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


@dataclass(frozen=True)
class SceneRow:
    """What is known of an episode before its first picture is there.

    source: number of the scene in what it comes from; actions (T, A) of the recorded episode that it is compared with.
    """

    source: int
    instruction: str
    metadata: dict[str, Any]
    recorded_length: int | None = None
    actions: np.ndarray | None = None


# First picture on the canvas (H, W, 3), state (S,) and frames of the recorded episode, of a scene by its number.
ReadScene = Callable[[int], tuple[np.ndarray, np.ndarray, np.ndarray | None]]


class Scenes(Sequence[InitialScene]):
    """Scenes of many episodes, each read when it is asked for; of those with one source it is read once.

    layout: what the dataset says of itself.
    """

    def __init__(self, rows: Sequence[SceneRow], read: ReadScene, layout: dict[str, Any]) -> None:
        self.rows, self.layout, self._read, self._last = list(rows), layout, read, -1

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        row = self.rows[index]
        if row.source != self._last:
            self._content, self._last = self._read(row.source), row.source
        image, state, frames = self._content
        reference = None if row.actions is None or frames is None else {"frames": frames, "actions": row.actions}
        return InitialScene(image, state, row.instruction, row.metadata, reference, row.recorded_length)

    @property
    def metadata(self) -> list[dict[str, Any]]:
        return [row.metadata for row in self.rows]

    @property
    def instructions(self) -> list[str]:
        return [row.instruction for row in self.rows]

    def mean_action(self, width: int) -> np.ndarray:
        """(A,) over all that episodes are compared with; zeros where there is nothing."""
        recorded = [row.actions for row in self.rows if row.actions is not None]
        return np.concatenate(recorded).mean(axis=0) if recorded else np.zeros(width)


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


def samples_of(scenes: Scenes, config: SynthesizeConfig) -> Scenes:
    """Each scene with each instruction, so many times; those of one scene and instruction stand together.

    A recorded episode is no reference for another instruction than its own.
    """
    asked = []
    for row in scenes.rows:
        for instruction in config.instructions or [row.instruction]:
            own = instruction == row.instruction
            noted = {} if own else {"recorded_instruction": row.instruction}
            one = replace(
                row,
                instruction=instruction,
                actions=row.actions if own else None,
                recorded_length=row.recorded_length if own else None,
                metadata={**row.metadata, **noted},
            )
            asked += [one] * config.samples_per_scene
    scenes.rows = asked
    return scenes


def simulated_scenes(config: SynthesizeConfig, canvas: Canvas) -> Scenes:
    """The world reset to unused seeds, with one picture of each camera: no teleoperation.

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

    def read(number: int) -> tuple[np.ndarray, np.ndarray, None]:
        task, seed = seeds[number]
        state = envs[task].reset(seed)
        seen = envs[task].render()
        return canvas.compose({camera: seen[own][None] for camera, own in cameras.items()})[0], state, None

    rows = [
        SceneRow(number, envs[task].instruction, {"seed": seed, "task_name": task, **noted})
        for number, (task, seed) in enumerate(seeds)
    ]
    layout = {"fps": env.fps, "state_names": list(env.state_names), "action_names": list(env.action_names)}
    return Scenes(rows, read, {**layout, "robot_type": world.robot_type})


def recorded_scenes(config: SynthesizeConfig, run: Run, generator: Any, canvas: Canvas) -> Scenes:
    """First pictures, states and instructions of a dataset; its recorded actions become the reference."""
    assert config.scenes_from is not None
    shape = generator.config
    notes = load_notes(run, config.notes)
    trained = Conventions.of(config.checkpoint)
    store = load_clips(run, config.scenes_from, Pictures.trained_on(canvas, config, trained), notes)
    check_used(notes)
    trained.check(store, remedy=RETRAIN)
    check_widths(config.scenes_from, store, shape)
    num_frames, rows = 1 + config.clips * (shape.num_frames - 1), []

    def read(episode: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        window = store.generator_batch(np.array([episode]), np.array([0]), num_frames, shape.frame_stride)
        length = int((~window["is_pad"][0]).sum())
        frames = window["frames"][0]
        return frames[0], window["states"][0, 0], frames[: length // shape.frame_stride + 1]

    for episode, (start, steps) in enumerate(zip(store.episode_starts, store.episode_lengths, strict=True)):
        length = min((num_frames - 1) * shape.frame_stride, int(steps) - 1)
        comparable = length > max(3, shape.frame_stride)  # jerk is a third difference, and a frame follows the first
        keep = {k: v for k, v in store.metadata[episode].items() if k in SCENE_NOTES}
        keep[FIRST_PICTURE] = episode
        actions = store.actions[start : start + length] if comparable else None
        rows.append(SceneRow(episode, store.instruction(episode), keep, int(steps), actions))
    info: dict[str, Any] = {
        "features": {key: {"shape": [width]} for key, width in ((STATE, shape.state_dim), (ACTION, shape.action_dim))}
    }
    if Path(config.scenes_from).is_dir():
        info = read_info(Path(config.scenes_from))
    names = {"state_names": feature_names(info, STATE), "action_names": feature_names(info, ACTION)}
    layout = {"fps": round(store.fps), "robot_type": info.get("robot_type") or "unknown", **names}
    return Scenes(rows, read, layout)


def check_widths(source: str, store: ClipStore, shape: GeneratorConfig) -> None:
    """Raise UserError for states or actions of another width than the generator's."""
    for name, values, expected in (
        ("state", store.states, shape.state_dim),
        ("action", store.actions, shape.action_dim),
    ):
        if values.shape[1] != expected:
            raise UserError(f"{source}: {name} width {values.shape[1]}; the generator has {expected}")
