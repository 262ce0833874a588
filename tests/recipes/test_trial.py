"""`vag trial` with Meta-World behind LeRobot's robot interface and a scripted operator."""

import csv
import importlib
import json
import multiprocessing
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from policies.factory import build_policy
from recipes import cli, trial_robot, trial_session
from toolkit.data.canvas import Canvas
from toolkit.data.conventions import Conventions
from toolkit.data.formats.lerobot_read import read_table
from toolkit.evaluation.trials import unseal

HERE = Path(__file__).parent
FRONT = "observation.images.front"
STATES = ["hand_x.pos", "hand_y.pos", "hand_z.pos", "gripper.pos"]
SMALL = {"depth": 2, "width": 32, "mlp_width": 64, "expert_width": 32, "expert_mlp_width": 64, "num_heads": 2}
ACTIONS = ["delta_x.vel", "delta_y.vel", "delta_z.vel", "gripper.vel"]


def spread(shape: tuple[int, ...], low: float, high: float) -> dict[str, np.ndarray]:
    values = {"mean": (low + high) / 2, "std": (high - low) / 4, "min": low, "max": high, "q01": low, "q99": high}
    return {name: np.full(shape, value, np.float32) for name, value in values.items()}


def save_policy(path: Path, seed: int, fps: float = 80, camera: str = FRONT, names: list[str] = STATES) -> Path:
    """A small policy with random weights, which learned actions from -0.2 to 0.2."""
    torch.manual_seed(seed)
    stats = {"observation.state": spread((4,), -1, 1), "action": spread((4,), -0.2, 0.2)}
    policy = build_policy(
        "pi05_compact",
        cameras={camera: (3, 64, 64)},
        state_dim=4,
        action_dim=4,
        stats={**stats, camera: spread((3, 1, 1), 0, 1)},
        options=SMALL,
    )
    policy.save_pretrained(path)
    Conventions("test", fps, names, ACTIONS, canvas=Canvas.single((64, 64), camera)).write(path)
    return path


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("policies")
    return {
        "a": save_policy(folder / "a", 0),
        "b": save_policy(folder / "b", 1),
        "fast": save_policy(folder / "fast", 2, fps=50),
        "wrist": save_policy(folder / "wrist", 3, camera="observation.images.wrist"),
        "swapped": save_policy(folder / "swapped", 4, names=STATES[::-1]),
    }


@pytest.fixture(scope="module")
def work() -> Any:
    """The module of the scripted operator; LeRobot finds the plugin of the simulated robot."""
    sys.path.append(str(HERE))
    module = importlib.import_module("trial_work")
    sys.path.insert(0, str(module.PLUGINS))
    yield module
    sys.path.remove(str(module.PLUGINS))


@pytest.fixture
def hold(work: Any, monkeypatch: pytest.MonkeyPatch, policies: dict[str, Path]) -> Callable[..., tuple[int, Any]]:
    """hold(judge, out, *words) -> exit code and the operator; without the second process."""
    monkeypatch.setattr(trial_robot, "watched", lambda words: nullcontext())

    def run(judge: Any, out: Path, *words: str) -> tuple[int, Any]:
        operator = work.ScriptedOperator(judge)
        monkeypatch.setattr(trial_session, "Operator", lambda: operator)
        given = [word for word in basic(policies) if word.split("=")[0] not in {other.split("=")[0] for other in words}]
        return cli.main([*given, f"out={out}", *words]), operator

    return run


def basic(policies: dict[str, Path]) -> list[str]:
    both = f"policies={{a:{policies['a']},b:{policies['b']}}}"
    return ["trial", both, "task=push the puck", "robot.type=metaworld", "max_steps=4", "runtime.device=cpu"]


def table(out: Path) -> list[dict[str, str]]:
    with (out / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def peeked(out: Path) -> dict[str, str]:
    """The key, as nobody should know it."""
    commitment = json.loads((out / "schedule.json").read_text())["commitment"]
    return unseal((out / "key.sealed").read_text().strip(), commitment)


# ------------------------------------------------------------------------------------------------------- whole sessions


def test_trials_from_the_schedule_to_the_record(
    hold: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    blinded: list[str] = []

    def judge(operator: Any) -> str:
        """The second trial is discarded at first, with a typed reason."""
        if operator.question.startswith("why"):
            return "4"
        if "how did it end" not in operator.question:
            return " "
        blinded.extend(
            path.name
            for path in out.rglob("*")
            if path.suffix in (".csv", ".json", ".parquet") and path.name not in ("run.json", "schedule.json")
            if b"policy" in path.read_bytes() or path.name == "key.json"
        )
        if operator.code_word == word(out, 1) and operator.attempts[operator.code_word] == 1:
            return "d"
        return "s" if operator.placement == 1 else "f"

    code, operator = hold(judge, out, "placements=2", "page=false")
    assert code == 0
    assert blinded == []
    said = capsys.readouterr().out
    assert "2 placements, 4 trials of 2 policies: too few to settle anything" in said
    assert said.index("key sealed as") < said.index("any key stops it")
    schedule, key = json.loads((out / "schedule.json").read_text()), json.loads((out / "key.json").read_text())
    assert key == peeked(out)
    rows = table(out)
    assert [row["code_word"] for row in rows] == [planned["code_word"] for planned in schedule["trials"]]
    assert [(row["scene"], row["success"]) for row in rows] == [
        *[("placement_001", "1")] * 2,
        *[("placement_002", "0")] * 2,
    ]
    assert {row["policy"] for row in rows[:2]} == {"a", "b"}
    assert [row["attempt"] for row in rows] == ["1", "2", "1", "1"]
    notes = read_table(out / "dataset").metadata
    assert [note["judgement"] for note in notes] == ["success", "discard", "success", "failure", "failure"]
    assert notes[1]["reason"] == "the lamp went out"
    assert [note["policy"] for note in notes] == [key[note["code_word"]] for note in notes]
    assert {note["source"] for note in notes} == {"trial"}
    result = json.loads((out / "run.json").read_text())["result"]
    assert (result["judged"], result["discarded"], result["lost"], result["actions"]) == (4, 1, 0, 20)
    assert {note["policy_id"] for note in notes} == set(result["policies"].values())
    assert [row["value"] for row in result["rows"]] == [0.5, 0.5]
    assert "the lamp went out" in json.loads((out / "record.json").read_text())["notes"]["not counted"]
    assert not list((out / "attempts").glob("*/dataset"))  # they are in the one of all
    first = [text for text in operator.asked if "reference" in text]
    assert ["becomes the reference" in text for text in first] == [True, False, False, True, False]
    assert (out / "placements/02/0.jpg").is_file()
    check_with_lerobot(out / "dataset")


def word(out: Path, number: int) -> str:
    return str(json.loads((out / "schedule.json").read_text())["trials"][number]["code_word"])


def check_with_lerobot(dataset: Path) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    found = LeRobotDataset("local/dataset", root=dataset)
    assert (found.num_episodes, len(found), found.fps) == (5, 20, 80)
    assert found.meta.robot_type == "metaworld"
    assert found[0]["task"] == "push the puck"
    assert found[0][FRONT].shape == (3, 64, 64)
    assert found.meta.features["action"]["names"] == ACTIONS


def test_it_ends_when_the_test_has_settled_the_question(hold: Callable[..., Any], work: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, operator = hold(work.always(lambda one: peeked(out)[one] == "b"), out, "max_steps=1")
    assert code == 0
    assert "after 6 placements the sequential test has settled the question" in operator.asked
    result = json.loads((out / "run.json").read_text())["result"]
    (verdict,) = result["verdicts"]
    assert (verdict["better"], verdict["wins_a"], verdict["wins_b"], verdict["placements"]) == ("b", 0, 6, 6)
    assert verdict["p"] <= 0.05
    assert result["judged"] == 12
    assert "too favourable to the better policy" in result["notes"]["intervals"]
    assert cli_again(hold, work, out) == 0  # nothing is held, nothing changes
    assert json.loads((out / "run.json").read_text())["result"] == result


def cli_again(hold: Callable[..., Any], work: Any, out: Path) -> int:
    code, operator = hold(work.always(lambda _: True), out, "max_steps=1", "resume=true")
    assert operator.asked == []
    return int(code)


def test_it_says_when_the_question_cannot_be_settled_any_more(
    hold: Callable[..., Any], work: Any, tmp_path: Path
) -> None:
    code, operator = hold(work.always(lambda _: True), tmp_path / "out", "placements=8", "max_steps=1")
    assert code == 0
    assert operator.asked[-1] == "after 3 placements the trials that are left cannot settle 1 of 1 questions"
    assert json.loads((tmp_path / "out/run.json").read_text())["result"]["verdicts"][0]["reachable"] is False


def test_paused_resumed_and_opened_early(
    hold: Callable[..., Any], work: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    def pause(operator: Any) -> str:
        return "s" if "how" in operator.question else "q" if "placement 2" in operator.question else " "

    assert hold(pause, out, "placements=3")[0] == 0
    assert f"paused; to go on: the same command with out={out} resume=true" in capsys.readouterr().out
    assert list(table(out)[0]) == ["scene", "success", "code_word", "attempt"]
    before = (out / "schedule.json").read_bytes()
    for words, said in (
        (["placements=4"], "its trials were begun with placements 3, now 4"),
        (["task=pull the puck"], "its trials were begun with task"),
        (["robot.max_relative_target=5"], "its trials were begun with max_relative_target null, now 5"),
    ):
        assert hold(pause, out, "placements=3", "resume=true", *words)[0] == 2
        assert said in capsys.readouterr().err
    assert hold(pause, out, "placements=3", "resume=true", "unseal=true")[0] == 0
    assert (out / "schedule.json").read_bytes() == before
    result = json.loads((out / "run.json").read_text())["result"]
    assert (result["judged"], result["ended"]) == (2, "unseal=true")
    assert "policy" in table(out)[0]
    assert hold(work.always(lambda _: True), out, "placements=3", "resume=true")[0] == 0
    assert len(table(out)) == 2  # there are no blinded trials after the key was opened


def test_an_exception_disconnects_the_robot(
    hold: Callable[..., Any], work: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, out = tmp_path / "log", tmp_path / "out"
    words = ["placements=1", f"robot.log={log}", "robot.fail_at=6"]
    assert hold(work.always(lambda _: False), out, *words)[0] == 2
    assert "metaworld has failed (the motor bus does not answer); it is disconnected" in capsys.readouterr().err
    assert [line.split()[0] for line in log.read_text().splitlines()] == ["connect", *["send"] * 6, "disconnect"]
    assert hold(work.always(lambda _: False), out, *words[:2], "resume=true")[0] == 0
    result = json.loads((out / "run.json").read_text())["result"]
    assert (result["judged"], result["lost"]) == (2, 1)
    assert "the program ended before the trial did" in result["notes"]["not counted"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_a_kill_disconnects_and_loses_no_trial(
    number: int,
    hold: Callable[..., Any],
    work: Any,
    tmp_path: Path,
    policies: dict[str, Path],
    start: Any,  # whose fork server has imported everything
) -> None:
    log, out, complaints = tmp_path / "log", tmp_path / "out", tmp_path / "complaints"
    words = ["placements=2", f"robot.log={log}"]
    context = multiprocessing.get_context("forkserver")
    killed = [*basic(policies), f"out={out}", *words, "robot.kill_at=7", f"robot.kill_by={int(number)}"]
    process = context.Process(target=work.run_trials, args=(killed, complaints))
    process.start()
    process.join(600)
    assert process.exitcode == (-number if number == signal.SIGKILL else 128 + number)
    wait_for(lambda: log.read_text().splitlines()[-1].startswith("disconnect"))
    lines = [line.split() for line in log.read_text().splitlines()]
    assert (lines[-1][1] != str(process.pid)) == (number == signal.SIGKILL)  # then the watchdog did it
    assert sum(line[0] == "send" for line in lines) == 7
    assert len(table(out)) == 1  # the second one was killed
    first = table(out)[0]["code_word"]
    assert hold(work.always(lambda _: True), out, *words, "resume=true")[0] == 0
    rows = table(out)
    assert len(rows) == 4
    assert (rows[0]["code_word"], rows[0]["success"], rows[0]["attempt"]) == (first, "0", "1")
    assert rows[1]["attempt"] == "2"
    result = json.loads((out / "run.json").read_text())["result"]
    assert (result["judged"], result["lost"]) == (4, 1)
    assert len(read_table(out / "dataset").lengths) == 4


def wait_for(what: Callable[[], bool]) -> None:
    import time

    end = time.monotonic() + 120
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_trial_that_was_recorded_but_not_judged_is_judged_after_a_kill(
    hold: Callable[..., Any], work: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def gone(operator: Any) -> str:
        if "how" in operator.question:
            raise KeyboardInterrupt
        return " "

    assert hold(gone, out, "placements=1")[0] == 130
    assert not (out / "trials.csv").exists()
    code, operator = hold(work.always(lambda _: True), out, "placements=1", "resume=true")
    assert code == 0
    assert operator.asked[0] == f"{word(out, 0)}: how did it end?"
    assert [(row["code_word"], row["attempt"]) for row in table(out)] == [(word(out, 0), "1"), (word(out, 1), "1")]
    assert len(read_table(out / "dataset").lengths) == 2


# ------------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["policies={{a:{a}}}"], "trial: policies={...}: expected two or more"),
        (["policies={{a:{a},b:{fast}}}"], "policies were trained at different rates (a 80, b 50)"),
        (["policies={{a:{a},b:{swapped}}}"], "give them the same names in conventions.json of the checkpoint"),
        (["policies={{a:{a},b:nowhere}}"], "nowhere: not a directory; expected a policy checkpoint"),
        (["fps=30"], "the robot: 30 steps a second; "),
        (["robot.type=metawrold"], "no installed package registers it. Did you mean 'metaworld'?"),
        (["robot.port=x"], "not a valid metaworld (The fields `port` are not valid for MetaWorldConfig)"),
        (["rename={{observation.images.wrist:x}}"], "rename: the robot has no camera 'observation.images.wrist'"),
        (["limits_from={dataset}"], "its actions are dy, dx; those of the robot are delta_x.vel"),
        (["unseal=true"], "holds no trials"),
        (["placements=201"], "placements=201: expected at least 1 and at most 200"),
    ],
)
def test_mistakes_are_said_before_anything_moves(
    words: list[str],
    said: str,
    hold: Callable[..., Any],
    work: Any,
    policies: dict[str, Path],
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    filled = [text.format(**policies, dataset=dataset) for text in words]
    assert hold(work.always(lambda _: True), tmp_path / "out", *filled)[0] == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_policy_of_one_camera_takes_the_only_one(
    hold: Callable[..., Any], work: Any, policies: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = f"policies={{a:{policies['a']},b:{policies['wrist']}}}"
    assert hold(work.always(lambda _: True), tmp_path / "out", both, "placements=1")[0] == 0
    assert f"policies.b sees observation.images.wrist: taken to be the robot's only camera, {FRONT}" in (
        capsys.readouterr().out
    )
