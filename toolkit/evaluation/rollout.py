"""Closed-loop rollouts of a policy, several scenes of a task in step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from toolkit.base.errors import UserError
from toolkit.base.progress import progress
from toolkit.base.randomness import stream_seed
from toolkit.data.canvas import Size
from toolkit.data.clips import to_channels_first
from toolkit.data.episode import STATE, TASK
from toolkit.data.images import letterboxed
from toolkit.envs.base import Env, Policy, World
from toolkit.envs.perturbations import Perturbation
from toolkit.envs.shifts import SUITES, Suite, paraphrase
from toolkit.envs.worlds import WorldSpec, open_world

FRAME_EVERY = 4  # environment steps per recorded frame


@dataclass
class Rollout:
    """frames: (T, H, W, 3) uint8, every fourth step, where they were asked for; of a policy that imagines what it will
    see, (T, 2H, W, 3) with that below."""

    task: str
    seed: int
    success: bool
    steps: int
    frames: np.ndarray | None = None


class _Slot:
    """One environment that works through scenes of its task, one after the other."""

    def __init__(self, env: Env, seeds: list[int], recorded: set[int], max_steps: int, suite: Suite) -> None:
        self.env, self.waiting, self.recorded = env, seeds, recorded
        self.max_steps, self.suite = max_steps, suite
        self.frames: list[np.ndarray] = []
        self.imagined: np.ndarray | None = None  # (n + 1, H, W, 3), before and after each action of the chunk
        self.active = self._next_scene()

    def _next_scene(self) -> bool:
        if not self.waiting:
            return False
        self.seed = self.waiting.pop(0)
        self.state, self.step, self.frames, self.chunks = self.env.reset(self.seed), 0, [], 0
        perturbed = self.suite.perturbed
        self.perturbation = Perturbation(self.env, self.seed, self.max_steps) if perturbed else None
        return True

    @property
    def instruction(self) -> str:
        text = self.env.instruction
        return paraphrase(text, self.seed) if self.suite.paraphrased else text

    def noise_seed(self, seed: int, world: World) -> int:
        """Of the noise of the next chunk."""
        return stream_seed(seed, world.scene_name(self.env.task), self.seed, self.chunks)

    def execute(self, actions: np.ndarray) -> Rollout | None:
        """Execute a chunk (n, A); the rollout if it ended, and the next scene is set."""
        solved = False
        self.chunks += 1
        executed = 0
        for action in actions[: self.max_steps - self.step]:
            if self.seed in self.recorded and self.step % FRAME_EVERY == 0:
                self.frames.append(self.look(executed))
            executed += 1
            self.state, solved = self.env.step(self.perturbation.executed(action) if self.perturbation else action)
            self.step += 1
            if solved or self.env.ended:
                break
        if not solved and not self.env.ended and self.step < self.max_steps:
            return None
        self.env.finish()
        if self.seed in self.recorded:
            self.frames.append(self.look(executed))
        frames = np.stack(self.frames) if self.frames else None
        ended = Rollout(self.env.task, self.seed, solved, self.step, frames)
        self.active = self._next_scene()
        return ended

    def look(self, executed: int) -> np.ndarray:
        """The picture of the first camera, with what was imagined after so many actions of the chunk below it."""
        seen = next(iter(self.env.render().values()))
        if self.imagined is None:
            return seen
        below = letterboxed(self.imagined[executed][None], seen.shape[:2])[0]
        return np.concatenate([seen, below])


def rollout(
    policy: Policy,
    scenes: Mapping[str, Sequence[int]],
    *,
    max_steps: int,
    image_size: Size | Mapping[str, Size],
    suite: Suite = SUITES["unseen"],
    record_first: int = 0,
    num_envs: int = 20,
    n_action_steps: int | None = None,
    seed: int = 0,
    world: World | None = None,
    cameras: Mapping[str, str] | None = None,
) -> list[Rollout]:
    """Roll the policy out on the seeds of every task; a rollout ends when the task is solved or after `max_steps`.

    image_size: (height, width) of the pictures that the policy takes, of all cameras or of each. world: None =
    Meta-World. cameras: the world's key of each of the policy's; None = all, under the world's keys.
    suite: how the scenes look and how the instruction is worded. About `num_envs` environments share each prediction,
    unless the policy has a memory, which its method `reset` clears, or the world makes one: then there is one scene at
    a time.
    `n_action_steps` of every chunk are executed, by default all of it. A picture is rendered only for a new chunk, and
    where frames are recorded (the first `record_first` seeds of a task). The noise of a chunk comes from `seed`, the
    scene, and how many chunks there were before: it is the same whatever else is rolled out, and for every policy.
    Results are in the order of tasks and seeds.
    Raises UserError if the policy returns actions of another shape, or NaN.
    """
    forget = getattr(policy, "reset", None)
    world = world or open_world(WorldSpec())
    at_once = num_envs if forget is None else 1
    slots = slots_of(world, scenes, drawn_size(image_size), suite, at_once, record_first, max_steps)
    imagine = getattr(policy, "imagined", None)  # of a generator
    results: dict[tuple[str, int], Rollout] = {}
    bar = progress(description="evaluate", total=sum(map(len, scenes.values())), unit="ep")
    try:
        while active := [slot for slot in slots if slot.active]:
            if forget is not None:
                active = active[:1]
                if active[0].step == 0:
                    forget()
            observation: dict[str, Any] = {
                **look(active, image_size, cameras),
                STATE: torch.from_numpy(np.stack([slot.state for slot in active])),
                TASK: [slot.instruction for slot in active],
            }
            noise_seeds = [slot.noise_seed(seed, world) for slot in active]
            chunk = torch.as_tensor(policy.predict_action_chunk(observation, noise_seeds)).detach().cpu().numpy()
            _check(chunk, len(active), active[0].env)  # (B, n, A)
            for row, (slot, actions) in enumerate(zip(active, chunk, strict=True)):
                if imagine is not None and slot.seed in slot.recorded:
                    slot.imagined = imagine(row)
                if (ended := slot.execute(actions[:n_action_steps])) is not None:
                    results[ended.task, ended.seed] = ended
                    bar.update()
    finally:
        for slot in slots:
            slot.env.close()
        bar.close()
    return [results[world.task_name(task), seed] for task, seeds in scenes.items() for seed in seeds]


def drawn_size(size: Size | Mapping[str, Size]) -> int | None:
    """Pixels of the longer side of the pictures that a world is asked for; None = as it draws, where cameras differ:
    what would be enlarged first is no longer what was recorded."""
    sides = {max(own) for own in size.values()} if isinstance(size, Mapping) else {max(size)}
    return sides.pop() if len(sides) == 1 else None


def slots_of(
    world: World,
    scenes: Mapping[str, Sequence[int]],
    size: int | None,
    suite: Suite,
    at_once: int,
    record_first: int,
    max_steps: int,
) -> list[_Slot]:
    """Environments for all tasks, about `at_once` together, each with its share of a task's seeds."""
    slots = []
    for task, seeds in scenes.items():
        per_task = min(max(1, at_once // len(scenes)), len(seeds))
        envs = world.make(task, per_task, size, suite.visual)
        for k, env in enumerate(envs):
            slots.append(_Slot(env, list(seeds[k :: len(envs)]), set(seeds[:record_first]), max_steps, suite))
    return slots


def look(
    slots: Sequence[_Slot], size: Size | Mapping[str, Size], cameras: Mapping[str, str] | None = None
) -> dict[str, torch.Tensor]:
    """What the cameras of the slots see now, (B, 3, *size) in [0, 1], letterboxed. size, cameras: as for `rollout`."""
    return fitted_pictures([slot.env.render() for slot in slots], size, cameras)


def fitted_pictures(
    pictures: Sequence[Mapping[str, np.ndarray]],
    size: Size | Mapping[str, Size],
    cameras: Mapping[str, str] | None = None,
) -> dict[str, torch.Tensor]:
    """B times pictures (H, W, 3) uint8 by camera as a policy takes them, (B, 3, *size) in [0, 1], letterboxed.

    size, cameras: as for `rollout`.
    """
    fitted = {}
    for camera, own in (cameras or {camera: camera for camera in pictures[0]}).items():
        stacked = np.stack([part[own] for part in pictures])
        boxed = letterboxed(stacked, size[camera] if isinstance(size, Mapping) else size)
        fitted[camera] = torch.from_numpy(to_channels_first(boxed)).contiguous()
    return fitted


def _check(chunk: np.ndarray, batch: int, env: Env) -> None:
    width = len(env.action_names)
    if chunk.ndim != 3 or chunk.shape[0] != batch or chunk.shape[1] == 0 or chunk.shape[2] != width:
        raise UserError(f"the policy gives actions {chunk.shape}; {env.task} expects ({batch}, at least 1, {width})")
    if not np.isfinite(chunk).all():
        raise UserError(f"the policy gave NaN or infinite actions on {env.task}")
