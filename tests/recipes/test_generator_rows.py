"""What the benchmark of generators says of several trainings on the same scenes."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from recipes import generator_rows
from recipes.compose import compose_config
from recipes.study_schema import BenchmarkGeneratorsConfig
from toolkit.evaluation.statistics import wilson_interval

SCENES = 60


def results(*rates: float, lost: int = 0) -> Any:
    """Evaluations of as many trainings, whose replays solve these shares of the same scenes, but not the first ones."""
    difficulty = np.random.default_rng(0).random(SCENES)
    solved = [[bool(hard < rate) and i >= lost for i, hard in enumerate(difficulty)] for rate in rates]
    cost = {"seconds_per_pair": 1.0, "function_evaluations": 4, "dimension_errors": None}
    return [
        SimpleNamespace(
            scenes=SimpleNamespace(metrics={"psnr": [20.0 + one for one in row]}, replay_success=row), **cost
        )
        for row in solved
    ]


@pytest.fixture
def config() -> BenchmarkGeneratorsConfig:
    words = ["systems=[vag,action_only]", "seeds=[0,1,2]", "variants_suite=dense"]
    made: Any = OmegaConf.to_object(compose_config("benchmark generators", words))
    made.variants = {"vag_euler_32": made.variants["vag_euler_32"]}
    return made


def test_outcomes_of_trainings_on_the_same_scenes_are_not_pooled() -> None:
    """Three trainings that solve a tenth, a half and nine tenths: nobody knows what the next one solves."""
    found = {"apart": results(0.1, 0.5, 0.9), "alike": results(0.5, 0.5, 0.5), "lone": results(0.5)}
    rows = {(row.system, row.metric): row for row in generator_rows.suite_rows("dense", found)}
    apart, alike, lone = (rows[name, "replay_success"] for name in found)
    pooled = wilson_interval(apart.value * apart.n, apart.n)
    assert (apart.n, apart.seeds) == (3 * SCENES, 3)
    assert apart.low < pooled[0] - 0.2
    assert apart.high > pooled[1] + 0.2
    solved = round(alike.value * SCENES)  # three times the same outcomes are worth those of one training
    assert (alike.low_these_checkpoints, alike.high_these_checkpoints) == pytest.approx(wilson_interval(solved, SCENES))
    assert (lone.low, lone.note) == (None, "no interval of systems: 1 training run, it takes 3")
    assert rows["apart", "psnr"].low < rows["apart", "psnr"].low_these_checkpoints
    assert rows["apart", "function_evaluations"].low == 4


def test_variants_of_the_same_weights_are_paired_by_training(config: BenchmarkGeneratorsConfig) -> None:
    found = {
        "vag": results(0.1, 0.5, 0.9),
        "action_only": results(0.9, 0.1, 0.5),
        "vag_euler_32": results(0.1, 0.5, 0.9, lost=3),
    }
    differences = {
        (c.a, c.b): c for c in generator_rows.suite_comparisons(config, "dense", found) if c.metric != "psnr"
    }
    apart, same = differences["vag", "action_only"], differences["vag", "vag_euler_32"]
    assert apart.high - apart.low > 1
    assert same.high - same.low < 0.3
    assert same.p_these_checkpoints is not None
    assert generator_rows.weights_of(config, "dense", "vag_euler_32") == [("vag", 0), ("vag", 1), ("vag", 2)]
