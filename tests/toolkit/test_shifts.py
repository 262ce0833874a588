"""Generalization axes: what they change, and what they must leave alone."""

from itertools import islice
from typing import Any

import mujoco
import numpy as np
import pytest

from toolkit.base.errors import UserError
from toolkit.data.episode import IMAGE
from toolkit.envs.metaworld import MetaWorldEnv, instructions, scene_stream
from toolkit.envs.shifts import HELD_OUT_FROM, SUITES, paraphrase
from toolkit.evaluation.rollout import rollout


def test_positions_divide_the_scenes() -> None:
    seeds = {positions: list(islice(scene_stream("push", 10, positions), 6)) for positions in ("all", "inner", "outer")}
    assert seeds["all"] == list(range(10, 16))
    assert not set(seeds["inner"]) & set(seeds["outer"])
    assert set(range(10, 16)) <= set(seeds["inner"]) | set(seeds["outer"])
    env = MetaWorldEnv("push")
    for positions in ("inner", "outer"):
        for seed in seeds[positions]:
            env.reset(seed)
            object_x = env.observation[4]
            assert (object_x > -0.1 + HELD_OUT_FROM * 0.2) == (positions == "outer")
    assert len(list(islice(scene_stream("plate-slide", 10, "outer"), 2))) == 2  # its plate has one place, its goal many
    with pytest.raises(UserError, match="positions=left: expected one of all, inner, outer"):
        next(scene_stream("push", 0, "left"))


def test_looks_differ_by_seed_and_nothing_else_does() -> None:
    plain, shifted, again = MetaWorldEnv("push"), *(MetaWorldEnv("push", visual_shift=True) for _ in range(2))
    pictures = []
    for seed in (3, 4, 3):
        assert (plain.reset(seed) == shifted.reset(seed)).all()
        pictures.append(shifted.render()[IMAGE])
        assert np.abs(pictures[-1].astype(int) - plain.render()[IMAGE]).mean() > 3
        for action in np.random.default_rng(0).uniform(-1, 1, (5, 4)):
            assert (plain.step(action)[0] == shifted.step(action)[0]).all()
    np.testing.assert_array_equal(pictures[0], pictures[2])
    assert np.abs(pictures[0].astype(int) - pictures[1]).mean() > 3
    shifted.close()  # another renderer draws the same
    again.reset(3)
    again.render()[IMAGE]
    shifted.reset(3)
    np.testing.assert_array_equal(shifted.render()[IMAGE], pictures[0])
    np.testing.assert_array_equal(again.render()[IMAGE], pictures[0])


def test_the_table_wears_other_textures_and_what_has_none_keeps_its_material() -> None:
    env = MetaWorldEnv("push", visual_shift=True)
    worn = []
    for seed in range(12):
        env.reset(seed)
        env.render()[IMAGE]
        worn.append(env._renderer.model.geom_matid.copy())
    before = env._env.model.geom_matid
    textured = (before >= 0) & (env._env.model.mat_texid[before, 1] >= 0)
    assert (np.array(worn)[:, ~textured] == before[~textured]).all()
    table = mujoco.mj_name2id(env._env.model, mujoco.mjtObj.mjOBJ_MATERIAL, "table_wood")
    assert len({tuple(materials[before == table]) for materials in worn}) > 1


def test_other_words_for_every_instruction() -> None:
    for instruction in instructions().values():
        wordings = {paraphrase(instruction, seed) for seed in range(30)}
        assert len(wordings) > 3
        assert instruction.lower() not in {wording.lower() for wording in wordings}
    assert paraphrase("Push the puck to a goal", 5) == paraphrase("Push the puck to a goal", 5)


@pytest.mark.parametrize("suite", ["visual", "language"])
def test_rollouts_see_what_the_suite_shifts(suite: str) -> None:
    seen = []

    class Watcher:
        def predict_action_chunk(self, observation: dict, noise_seeds: Any = None) -> np.ndarray:
            seen.append((observation["observation.image"], observation["task"]))
            return np.zeros((len(observation["task"]), 4, 4), np.float32)

    for name in ("unseen", suite):
        rollout(Watcher(), {"push": [7]}, max_steps=4, image_size=(64, 64), suite=SUITES[name])
    (plain, words), (shifted, other_words) = seen
    assert (words == other_words) == (suite == "visual")
    assert (plain == shifted).all() == (suite == "language")
