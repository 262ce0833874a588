"""`vag gate`: does a synthetic dataset pass, without a simulator? Its trust, and policies trained with and without it.

Arms, each in as many steps: `real` alone; `mixed` with the synthetic episodes; `shuffled`, the same with the actions of
other synthetic episodes. They are compared by open-loop errors on recorded episodes that nothing has seen.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from recipes.common import Pictures, load_clips
from recipes.engine_options import stages_engine
from recipes.stages import Stage, in_turn, make_stage, needed_result, run_stages
from recipes.study_schema import GateConfig
from toolkit.base.errors import UserError
from toolkit.base.run import Run
from toolkit.data.conventions import Conventions
from toolkit.evaluation.open_loop import nearest_recorded_error
from toolkit.evaluation.systems import Trained, compare_means, measured_mean
from toolkit.reporting.benchmark_record import bounds_text
from toolkit.reporting.benchmark_results import Difference, Row
from toolkit.reporting.generator_results import ScoreResult
from toolkit.reporting.results import GateResult, OpenLoopResult

ARMS = ("real", "mixed", "shuffled")
METRIC: dict[str, Any] = {"suite": "held_out", "metric": "open_loop_error"}


def run(config: GateConfig, run: Run) -> GateResult:
    """Score the dataset, train and evaluate all arms, and say what the numbers allow to say."""
    if not config.seeds:
        raise UserError("gate: seeds=[] is empty; give one or more")
    stages = stages_of(config, run)
    run_stages(run.directory, stages, config.lanes, engine=stages_engine(config.engine, run.directory))
    score = needed_result(run.directory / "score", ScoreResult)
    errors = {
        arm: [needed_result(run.directory / f"evaluate_{arm}_{s}", OpenLoopResult).open_loop for s in config.seeds]
        for arm in ARMS
    }
    systems = {arm: Trained(np.array([one.per_episode for one in parts])) for arm, parts in errors.items()}
    differences = [
        Difference(a="mixed", b=other, paired=True, **METRIC, **compare_means(systems["mixed"], systems[other]))
        for other in ("real", "shuffled")
    ]
    first = errors["real"][0]
    return GateResult(
        trust=score.trust,
        scores=score.scores,
        rows=[Row(system=config.policy, arm=arm, **METRIC, **measured_mean(one)) for arm, one in systems.items()],
        comparisons=differences,
        mean_action=first.mean,
        nearest_recorded=baseline(config, run, first.n_action_steps),
        verdict=verdict(*differences),
        runs=[stage.name for stage in stages],
    )


def stages_of(config: GateConfig, run: Run) -> list[Stage]:
    """The score, and for each seed and arm a training and its evaluation."""
    root, data = run.directory, {"dataset": config.dataset, "real": config.real}
    judged = {**data, "checkpoint": config.checkpoint, "held_out": [config.held_out], "seed": config.seed}
    stages = [make_stage("score", "score", {}, config.score, {**judged, "runtime.threads": config.threads})]
    mixed = {"synthetic": [config.dataset], "synthetic_fraction": config.synthetic_fraction}
    taken = {"real": {}, "mixed": mixed, "shuffled": {**mixed, "shuffle_actions": True}}
    for seed in config.seeds:
        single = {"seed": seed, "runtime.threads": config.threads}
        for arm in ARMS:
            values = {"real": config.real, **taken[arm], **single}
            trained = {"checkpoint": str(root / f"{arm}_{seed}/pretrained_model"), "dataset": config.held_out}
            words = [f"policy={config.policy}", *config.pretrain]
            stages += in_turn(
                [
                    make_stage(f"{arm}_{seed}", "pretrain", {}, words, values),
                    make_stage(
                        f"evaluate_{arm}_{seed}", "evaluate", {"arm": arm}, config.evaluate, {**trained, **single}
                    ),
                ]
            )
    return stages


def baseline(config: GateConfig, run: Run, n_action_steps: int) -> float:
    """The open-loop error of what was recorded from the nearest state."""
    checkpoint = run.directory / f"real_{config.seeds[0]}/pretrained_model"
    trained = Conventions.of(checkpoint)
    assert trained.canvas is not None
    pictures = Pictures(trained.canvas.cell, list(trained.canvas.cameras))
    *real, held_out = (load_clips(run, source, pictures) for source in (*config.real, config.held_out))
    return nearest_recorded_error(real, held_out, n_action_steps)


def verdict(real: Difference, shuffled: Difference) -> str:
    """What may be said of errors with synthetic episodes less those without, and less those of the control."""
    low, high = real.low, real.high
    if low is None or high is None:
        return f"nothing can be told of other trainings: {real.note or 'too few seeds or episodes'}"
    if high < 0:
        above = shuffled.high is not None and shuffled.high < 0
        return "helps" if above else "helps, but so may the control: it cannot be told that the actions are why"
    return "harms" if low > 0 else "no difference can be told"


def summary(result: GateResult) -> str:
    trust = "no recorded baseline"
    if result.trust is not None:
        own, recorded = result.trust.episodes, result.trust.recorded
        trust = f"{own.rate:.0%} of {own.n} episodes are trusted [{own.low:.0%}, {own.high:.0%}], of recorded ones "
        trust += f"{recorded.rate:.0%}, held still {result.trust.still.rate:.0%}"
    arms = ", ".join(f"{row.arm} {row.value:.4f}{bounds_text(row, '.4f')}" for row in result.rows)
    (difference, *_) = result.comparisons
    return (
        f"{trust}; open-loop error {arms}, mean action {result.mean_action:.4f}, nearest recorded "
        f"{result.nearest_recorded:.4f}; mixed - real {difference.difference:.4f}{bounds_text(difference, '.4f')}: "
        f"{result.verdict}"
    )
