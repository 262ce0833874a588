"""`vag trial`: policies on a robot, blinded, judged by a person, until a sequential test says that it is enough."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations

import numpy as np

from recipes.common import file_id
from recipes.compose import command_words
from recipes.trial_loop import Pace
from recipes.trial_policies import control_rate, load_arms
from recipes.trial_records import SCHEDULE, Trials
from recipes.trial_robot import Features, GuardedRobot, make_robot
from recipes.trial_schema import TrialConfig
from recipes.trial_session import hold_session, settings_of
from toolkit.base.errors import UserError, warn
from toolkit.base.run import Run
from toolkit.base.typed_json import to_json
from toolkit.evaluation.sequential import SOURCE, PairedTest
from toolkit.evaluation.systems import HOW_TO_READ, Trained, compare_success, measured_success
from toolkit.evaluation.trials import (
    DISCARD,
    JUDGED,
    LOST,
    Schedule,
    Verdict,
    draw_schedule,
    finished_placements,
    judge_pairs,
    next_trial,
    plan_text,
)
from toolkit.reporting.benchmark_record import write_record
from toolkit.reporting.benchmark_results import Difference, Row
from toolkit.reporting.trial_results import TrialResult
from toolkit.training.runtime import seed_everything, set_threads

EXTENDABLE = True  # a robot's port may be another one the next day; what must not change stands in the schedule
SUITE = "trial"


def run(config: TrialConfig, run: Run) -> TrialResult:
    """Hold the trials that are left; when there are none, open the key, write tables, dataset and record."""
    trials = Trials.open(run.directory)
    if trials is None and config.unseal:
        raise UserError(f"trial: unseal=true: {run.directory} holds no trials; give the out= of those, and resume=true")
    if trials is not None:
        run.add_data(run.directory / SCHEDULE, file_id(run.directory / SCHEDULE))  # refuses another one than before
        for attempt in trials.without_judgement() if config.unseal else ():
            trials.judge(replace(attempt, judgement=LOST, reason="not judged before the key was opened"))
        if config.unseal or next_trial(trials.schedule, trials.attempts) is None:
            trials.end("unseal=true" if config.unseal else "all trials are judged")
    if trials is None or not trials.ended:
        trials = hold(config, run, trials)
    return finish(config, run, trials)


def hold(config: TrialConfig, run: Run, trials: Trials | None) -> Trials:
    """Load everything, check that it belongs together, write the schedule if there is none, and run the trials."""
    if len(config.policies) < 2:
        raise UserError("trial: policies={...}: expected two or more, such as policies={a:DIR,b:DIR}")
    set_threads(config.runtime)
    seed_everything(config.seed)
    robot = make_robot(config.robot)
    if getattr(robot.config, "max_relative_target", 0) is None:
        warn(
            "robot.max_relative_target is not set: a policy may ask for any jump inside of the recorded limits. Set it "
            "to the largest step of a joint that is safe"
        )
    features = Features.of(robot)
    guarded = GuardedRobot(robot, config.robot, features)
    arms = load_arms(config, features, run)
    pace = Pace(control_rate(config, arms), config.max_steps)
    settings = to_json(settings_of(config, arms, pace, guarded))
    if trials is None:
        trials = Trials.create(run.directory, *draw_schedule([arm.name for arm in arms], config.placements, settings))
        run.add_data(run.directory / SCHEDULE, file_id(run.directory / SCHEDULE))
        print(plan_text(len(arms), config.placements, config.alpha), flush=True)
        print(
            f"schedule {file_id(run.directory / SCHEDULE)}, key sealed as {trials.schedule.commitment[:16]}; actions "
            f"stay inside of those {', '.join(dict.fromkeys(arm.limits.source for arm in arms))}",
            flush=True,
        )
        if config.return_to_initial_position and not guarded.is_positional:
            print(f"{robot.name}: its actions are no positions that it tells, so it is not sent back", flush=True)
    check_settings(trials.schedule, settings, run)
    hold_session(config, trials, arms, pace, guarded)
    return trials


def check_settings(schedule: Schedule, settings: dict[str, object], run: Run) -> None:
    """Raise UserError if trials would go on under other conditions than they were begun with."""
    for key, value in settings.items():
        if schedule.settings.get(key) != value:
            before, now = (json.dumps(told)[:100] for told in (schedule.settings.get(key), value))
            raise UserError(
                f"out={run.directory}: its trials were begun with {key} {before}, now {now}; go on with the same, "
                "or begin others with another out="
            )


def finish(config: TrialConfig, run: Run, trials: Trials) -> TrialResult:
    """Open the key, and say what the trials show."""
    schedule, attempts = trials.schedule, trials.attempts
    trials.end(trials.ended)
    identities: dict[str, str] = schedule.settings["policies"]
    dataset = trials.merge(identities, int(schedule.settings["seed"]))
    for attempt in attempts:
        run.remove_when_finished(trials.folder(attempt.code_word, attempt.attempt) / "dataset")
    outcomes = finished_placements(schedule, trials.key, attempts)
    systems = {name: Trained(np.array([found], dtype=float)) for name, found in outcomes.items() if found}
    rows = [Row(system=name, suite=SUITE, metric="success", **measured_success(one)) for name, one in systems.items()]
    comparisons = [
        Difference(a=a, b=b, suite=SUITE, metric="success", paired=True, **compare_success(systems[a], systems[b]))
        for a, b in combinations(systems, 2)
        if systems[a].outcomes.size > 1
    ]
    alpha = float(schedule.settings["alpha"])
    verdicts = judge_pairs(outcomes, schedule.placements, alpha)
    notes = notes_of(trials, verdicts, alpha)
    command = " ".join(["vag trial", *command_words("trial", run.record["config"])])
    record = write_record(run.directory, "trial", command, rows, comparisons, notes)
    print(json.dumps(to_json(record)), flush=True)
    counts = {kind: sum(attempt.judgement == kind for attempt in attempts) for kind in (DISCARD, LOST)}
    return TrialResult(
        robot=str(schedule.settings["robot"]["type"]),
        task=str(schedule.settings["task"]),
        policies=identities,
        placements=schedule.placements,
        judged=sum(attempt.judgement in JUDGED for attempt in attempts),
        discarded=counts[DISCARD],
        lost=counts[LOST],
        actions=sum(attempt.steps for attempt in attempts),
        clipped=sum(attempt.clipped for attempt in attempts),
        ended=trials.ended,
        schedule_id=file_id(run.directory / SCHEDULE),
        rows=rows,
        comparisons=comparisons,
        verdicts=verdicts,
        notes=notes,
        dataset=dataset,
    )


def notes_of(trials: Trials, verdicts: list[Verdict], alpha: float) -> dict[str, str]:
    """What a reader needs to judge the numbers."""
    schedule = trials.schedule
    test = PairedTest(schedule.placements, alpha / len(verdicts))
    reasons = [f"{one.code_word} {one.judgement}: {one.reason}" for one in trials.attempts if one.reason]
    return {
        "verdicts": "; ".join(map(verdict_text, verdicts)),
        "test": f"{SOURCE}; alpha={alpha:g} over {len(verdicts)} pairs, {schedule.placements} placements planned; "
        f"equal policies of one pair are told apart with a chance of at most {test.size:.4f}, whenever one looks",
        "intervals": f"{HOW_TO_READ}. Those of trials that the sequential test has ended are too favourable to the "
        "better policy: they are of a fixed number of trials. The verdict is not",
        "blinding": "every trial had a code word of its own; the operator judged before the key was opened",
        "ended": trials.ended,
        "not counted": "; ".join(reasons) or "nothing",
        "schedule": f"key committed to as {schedule.commitment} before the first trial",
    }


def verdict_text(verdict: Verdict) -> str:
    told = f"{verdict.wins_a} placements solved by {verdict.a} alone, {verdict.wins_b} by {verdict.b} alone"
    better = f"{verdict.better} is better" if verdict.better else "not settled"
    return f"{verdict.a} and {verdict.b}: {better} (p = {verdict.p:.3g}, {told}, of {verdict.placements})"


def summary(result: TrialResult) -> str:
    rates = [f"{row.system} {row.rate.successes}/{row.n}" for row in result.rows]
    counted = f"{result.judged} trials judged, {result.discarded} discarded, {result.lost} lost"
    clipped = f"{result.clipped} of {result.actions} actions clipped"
    return "; ".join([*rates, *map(verdict_text, result.verdicts), counted, clipped])
