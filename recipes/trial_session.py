"""Trials one after the other: prepare, watch, run, record, judge; and after each placement, is the question settled?"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from recipes.terminal import say
from recipes.trial_loop import Pace, Recording, run_trial
from recipes.trial_operator import Operator
from recipes.trial_page import TrialPage
from recipes.trial_policies import Arm
from recipes.trial_records import Trials
from recipes.trial_robot import GuardedRobot
from recipes.trial_schema import TrialConfig
from toolkit.base.errors import Paused, UserError
from toolkit.base.files import scratch_folder
from toolkit.base.randomness import stream_seed
from toolkit.evaluation.sequential import PairedTest
from toolkit.evaluation.trials import (
    DISCARD,
    FAILURE,
    LOST,
    SUCCESS,
    Attempt,
    Planned,
    attempts_of,
    finished_placements,
    judge_pairs,
    next_trial,
)

JUDGEMENTS = {"s": SUCCESS, "f": FAILURE, "d": DISCARD}
REASONS = {"1": "scene was not as in the reference", "2": "fault of robot or camera", "3": "somebody interfered"}
OTHER = "4"
FIRST_ARM = "arrange the objects anew; the picture at the start becomes the reference of this placement"
NEXT_ARM = "put the objects back as in the reference picture"


@dataclass
class Session:
    """An operator, a robot and the policies. After `run`, `trials` are over, or the operator has gone."""

    config: TrialConfig
    trials: Trials
    arms: Mapping[str, Arm]
    pace: Pace
    robot: GuardedRobot
    operator: Operator
    page: TrialPage | None
    goes_on: bool = False  # the operator has chosen more trials than the test asks for

    def run(self) -> None:
        """Raises Paused where the operator pauses: what is judged is kept, and resume=true goes on."""
        self._judge_what_was_left()
        schedule = self.trials.schedule
        pairs = len(schedule.policies) * (len(schedule.policies) - 1) // 2
        self.goes_on = PairedTest(schedule.placements, self.config.alpha / pairs).wins_needed is None  # as was told
        why = self._why_to_end()
        while not why and (planned := next_trial(self.trials.schedule, self.trials.attempts)) is not None:
            self._attempt(planned)
            if self._placement_is_finished(planned.placement):
                why = self._why_to_end()
        self.trials.end(why or "all trials are judged")

    # --------------------------------------------------------------------------------------------------- one trial

    def _attempt(self, planned: Planned) -> None:
        attempts = attempts_of(planned, self.trials.attempts)
        number = max((one.attempt for one in attempts), default=0) + 1
        self._prepare(planned, number)
        folder = self.trials.begin(planned, number)
        arm, seed = self.arms[self.trials.key[planned.code_word]], self._seed(planned.placement)
        attempt = Attempt(placement=planned.placement, code_word=planned.code_word, attempt=number, judgement="")
        with scratch_folder(folder / "pictures") as scratch:
            recording = Recording(scratch, self.pace.max_steps)
            with self.operator.stoppable(f"{planned.code_word} runs; any key stops it") as stop:
                say(self.operator.prompt)
                run_trial(self.robot, arm, self.config.task, self.pace, seed, stop, self._show, recording)
            attempt = self._recorded(attempt, folder, recording)
        self._judge(attempt)
        if self.config.return_to_initial_position and self.robot.is_positional:
            with self.operator.stoppable("the arm goes back; any key stops it") as stop:
                self.robot.go_back(arm.limits, self.config.return_seconds, self.pace.fps, stop)

    def _seed(self, placement: int) -> int:
        """Of the noise of a placement: the same for all policies."""
        return stream_seed(self.config.seed, "placement", placement)

    def _prepare(self, planned: Planned, attempt: int) -> None:
        """Let the operator arrange the scene, the reference over the live picture; take the reference if needed."""
        schedule = self.trials.schedule
        cameras = list(self.robot.features.cameras)
        reference = self.trials.reference(planned.placement, cameras)
        again = f", attempt {attempt}" if attempt > 1 else ""
        title = f"placement {planned.placement} of {schedule.placements}, {planned.code_word}{again}"
        if self.page is not None:
            self.page.begin_trial(title, planned.code_word, reference)
        keys = {" ": "start", "q": "pause, to go on another day"}
        if reference is not None and self._may_be_arranged_anew(planned.placement):
            keys["r"] = "take the reference anew"
        key = self.operator.ask(f"{title}: {FIRST_ARM if reference is None else NEXT_ARM}", keys, self._look)
        if key == "q":
            raise Paused
        if reference is None or key == "r":
            self.trials.take_reference(planned.placement, self.robot.observe()[1])

    def _may_be_arranged_anew(self, placement: int) -> bool:
        """While nothing of a placement is judged, it may be another one."""
        return not any(
            one.placement == placement for one in self.trials.attempts if one.judgement in (SUCCESS, FAILURE)
        )

    def _look(self) -> None:
        if self.page is not None:
            self._show(self.robot.observe()[1])

    def _show(self, pictures: Mapping[str, np.ndarray]) -> None:
        if self.page is not None:
            self.page.show(pictures)

    # --------------------------------------------------------------------------------------------------- judgement

    def _recorded(self, attempt: Attempt, folder: Path, recording: Recording) -> Attempt:
        """The attempt with its counts, its episode written; before anybody is asked, so that a kill loses neither."""
        if not recording.actions:
            return replace(attempt, judgement=LOST, reason="stopped before the first action")
        counts: dict[str, Any] = {
            "steps": len(recording.actions),
            "clipped": recording.clipped,
            "stopped_by_key": recording.stopped_by_key,
            "seconds": recording.seconds,
        }
        say(f"{counts['steps']} actions in {recording.seconds:.1f} s; the episode is written ...")
        self.trials.record(folder, recording.episode(self.config.task), counts, self.pace.fps, self.robot)
        return replace(attempt, recorded=True, **counts)

    def _judge(self, attempt: Attempt) -> None:
        if attempt.judgement != LOST:
            judgement = JUDGEMENTS[self.operator.ask(f"{attempt.code_word}: how did it end?", JUDGEMENTS, self._look)]
            attempt = replace(attempt, judgement=judgement, reason=self._reason() if judgement == DISCARD else "")
        self.trials.judge(attempt)

    def _reason(self) -> str:
        key = self.operator.ask("why is it discarded?", {**REASONS, OTHER: "another reason"}, self._look)
        return REASONS[key] if key in REASONS else self.operator.line("the reason", self._look)

    def _judge_what_was_left(self) -> None:
        """What a killed program had recorded is judged now; what it had begun and not recorded was lost."""
        for attempt in self.trials.without_judgement():
            if attempt.recorded:
                say(f"{attempt.code_word} had ended before it was judged")
                self._judge(attempt)
            else:
                self._judge(replace(attempt, judgement=LOST, reason="the program ended before the trial did"))

    # -------------------------------------------------------------------------------------------------- is it over?

    def _placement_is_finished(self, placement: int) -> bool:
        planned = next_trial(self.trials.schedule, self.trials.attempts)
        return planned is None or planned.placement != placement

    def _why_to_end(self) -> str:
        """Why no more trials are needed, if the operator agrees; empty while they are."""
        schedule = self.trials.schedule
        outcomes = finished_placements(schedule, self.trials.key, self.trials.attempts)
        finished = len(next(iter(outcomes.values())))
        if self.goes_on or not 0 < finished < schedule.placements:
            return ""
        verdicts = judge_pairs(outcomes, schedule.placements, self.config.alpha)
        if any(verdict.better is None and verdict.reachable for verdict in verdicts):
            say(f"{finished} of {schedule.placements} placements: not settled yet")
            return ""
        settled = sum(verdict.better is not None for verdict in verdicts)
        why = (
            "the sequential test has settled the question"
            if settled == len(verdicts)
            else f"the trials that are left cannot settle {len(verdicts) - settled} of {len(verdicts)} questions"
        )
        keys = {"e": "end, open the key", "g": "go on, for narrower intervals"}
        if self.operator.ask(f"after {finished} placements {why}", keys, self._look) == "e":
            return f"{why}, after {finished} placements"
        self.goes_on = True
        return ""


def hold_session(config: TrialConfig, trials: Trials, arms: list[Arm], pace: Pace, robot: GuardedRobot) -> None:
    """Connect and run; whatever ends it, the robot is disconnected and the terminal is as before."""
    with ExitStack() as stack:
        operator = stack.enter_context(Operator())
        page = stack.enter_context(TrialPage(operator, config.page_port)) if config.page else None
        if page is None and not operator.has_terminal:
            raise UserError("trial: nobody can press a key: no terminal, and page=false; start it in a terminal")
        stack.enter_context(robot)
        if page is not None:
            say(f"live picture and keys: {page.address}")
        Session(config, trials, {arm.name: arm for arm in arms}, pace, robot, operator, page).run()


def settings_of(config: TrialConfig, arms: list[Arm], pace: Pace, robot: GuardedRobot) -> dict[str, object]:
    """What must stay as it is from the first trial to the last."""
    return {
        "policies": {arm.name: arm.identity for arm in arms},
        "task": config.task,
        "placements": config.placements,
        "seed": config.seed,
        "alpha": config.alpha,
        "pace": asdict(pace),
        "robot": {"type": robot.robot.name, **asdict(robot.features)},
        "limits": {arm.name: [arm.limits.low.tolist(), arm.limits.high.tolist()] for arm in arms},
        "cameras": {arm.name: dict(arm.cameras) for arm in arms},
        "max_relative_target": getattr(robot.robot.config, "max_relative_target", None),
    }
