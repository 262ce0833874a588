"""A scripted operator, and trials in a process of their own: what the tests of `vag trial` run."""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from recipes import cli, trial_session
from recipes.trial_operator import Idle, Operator
from toolkit.base.engine import die_with_parent

PLUGINS = Path(__file__).parents[1] / "plugins"
Judge = Callable[["ScriptedOperator"], str]


class ScriptedOperator(Operator):
    """Arranges the scene of each placement in the simulator, starts, and judges as `judge` says."""

    def __init__(self, judge: Judge) -> None:
        super().__init__()
        self.judge, self.asked = judge, list[str]()
        self.code_word, self.placement, self.attempts = "", 0, dict[str, int]()

    has_terminal = True

    def __enter__(self) -> Operator:
        return self

    def __exit__(self, *error: object) -> None: ...

    def ask(self, text: str, keys: Mapping[str, str], idle: Idle) -> str:
        self.asked.append(text)
        idle()
        if " " in keys:
            words = text.replace(",", "").replace(":", "").split()
            self.placement, self.code_word = int(words[1]), words[4]
            self.attempts[self.code_word] = self.attempts.get(self.code_word, 0) + 1
            self.arrange()
        elif "s" in keys:
            self.code_word = text.split(":")[0]
        key = self.judge(self)
        assert key in keys, (text, keys, key)
        return key

    def arrange(self) -> None:
        from lerobot_robot_metaworld import MetaWorld

        if MetaWorld.latest is not None and MetaWorld.latest.is_connected:
            MetaWorld.latest.arrange(self.placement)

    def line(self, text: str, idle: Idle) -> str:
        return "the lamp went out"

    @property
    def question(self) -> str:
        return self.asked[-1]


def always(success: Callable[[str], bool]) -> Judge:
    """Start, then judge by the code word; after a verdict, end."""

    def judge(operator: ScriptedOperator) -> str:
        if "how did it end" in operator.question:
            return "s" if success(operator.code_word) else "f"
        return "e" if operator.question.startswith("after ") else " "

    return judge


def run_trials(words: list[str], complaints: Path) -> None:
    """In a child of the fork server: an operator who finds that everything fails."""
    die_with_parent()
    os.setsid()
    os.dup2(os.open(complaints, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    sys.path.insert(0, str(PLUGINS))
    made: Any = lambda: ScriptedOperator(always(lambda _: False))  # noqa: E731
    trial_session.Operator = made
    raise SystemExit(cli.main(words))
