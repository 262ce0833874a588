"""Plans of simulated scenes: several of each are tried in the simulator, and the first that solves it is taken."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recipes.common import user_errors
from recipes.schema import SynthesizeConfig
from recipes.start_scenes import Scenes, scene_seeds
from recipes.worlds import spec_of
from toolkit.base.engine import open_engine
from toolkit.base.errors import UserError
from toolkit.base.files import atomic_file
from toolkit.data.images import moved
from toolkit.evaluation.replay import replay_episodes
from vag_core import Generator

PLANS = "plans.npz"


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
    if config.samples_per_scene > 1 or config.instructions:
        raise UserError("synthesize: draws are one plan of each scene for its own task; leave out draws, or the others")
    if config.scenes_from is not None:
        raise UserError("synthesize: draws are tried in the simulator; scenes_from has none to try them in")
    if order != "actions_first":
        raise UserError(f"synthesize: draws are plans; a sample of order {order} does not begin with one")


def solved_plans(
    config: SynthesizeConfig, path: Path, generator: Generator, encode: Any, scenes: Scenes, identity: str
) -> Plans:
    """For each scene the first of several plans that the simulator solves; if it solves none, the first of all.

    That one is for the picture as it is, the others for the picture moved by some pixels: where things are is what a
    plan misjudges. What was found is kept at `path` after every draw, so a killed run goes on from there, unless the
    generator has another `identity` by then.
    """
    side, seeds = 2 * config.draw_shift + 1, scene_seeds(config.seed, scenes.metadata)
    offsets = [np.random.default_rng(seed).permutation(side**2 - 1) for seed in seeds]

    def view(image: np.ndarray, index: int, draw: int) -> np.ndarray:
        if draw == 0:
            return image
        place = int(offsets[index][draw - 1])
        place += place >= side**2 // 2  # the middle is the picture as it is
        return moved(image, place // side - config.draw_shift, place % side - config.draw_shift)

    def planned(indices: np.ndarray, draw: int) -> tuple[np.ndarray, ...]:
        found = []
        for start in range(0, len(indices), config.batch_size):
            part = indices[start : start + config.batch_size]
            there = [scenes[index] for index in part]
            images = [view(scene.image, index, draw) for scene, index in zip(there, part, strict=True)]
            pictures, states = (
                torch.from_numpy(np.stack(values)) for values in (images, [scene.state for scene in there])
            )
            with user_errors():
                found.append(generator.plan_actions(pictures, states, encode([scene.instruction for scene in there])))
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
        where = [scenes.rows[index].metadata for index in todo]
        items = [(at["task_name"], at["seed"], tried) for at, tried in zip(where, actions, strict=True)]
        engine = open_engine(config.engine, path.parent, config.workers)
        outcomes = replay_episodes(items, engine, f"draw {draw + 1} of {config.draws}", spec_of(config))
        solved = np.array([result["success"] for result in outcomes])
        taken = solved if draw else np.ones_like(solved)
        plans.actions[todo[taken]], plans.states[todo[taken]] = actions[taken], states[taken]
        plans.draw[todo[solved]], plans.solved[todo[solved]] = draw, True
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, generator=identity, draws=draw + 1, **vars(plans))
    return plans
