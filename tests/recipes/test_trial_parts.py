"""The parts of `vag trial`: limits, the stop, the way back, keys of a terminal, the page."""

import json
import os
import pty
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from recipes import trial_robot, trial_watchdog
from recipes.trial_loop import Pace, Recording, run_trial
from recipes.trial_operator import Operator
from recipes.trial_page import TrialPage
from recipes.trial_policies import Arm, match_cameras, own_limits, recorded_limits
from recipes.trial_robot import Features, GuardedRobot, Limits, robot_config
from toolkit.base.errors import UserError
from toolkit.data.images import decode_picture

FRONT = "observation.images.front"
NAMES = ["shoulder.pos", "elbow.pos"]
LIMITS = Limits(np.array([-1.0, -2.0]), np.array([1.0, 2.0]), "of a test")


class Arm2:
    """A robot of two joints that is where it was sent."""

    name, is_calibrated = "two_joints", True

    def __init__(self) -> None:
        self.action_features = dict.fromkeys(NAMES, float)
        self.observation_features = {**self.action_features, "front": (8, 12, 3)}
        self.position, self.sent, self.is_connected = [0.5, 0.5], list[tuple[float, list[float]]](), False
        self.config = SimpleNamespace(max_relative_target=None)

    def connect(self, calibrate: bool) -> None:
        assert not calibrate  # that would ask questions, and move
        self.is_connected = True

    def disconnect(self) -> None:
        self.is_connected = False

    def get_observation(self) -> dict[str, Any]:
        return {**dict(zip(NAMES, self.position, strict=True)), "front": np.full((8, 12, 3), 7, np.uint8)}

    def send_action(self, action: dict[str, float]) -> dict[str, float]:
        self.position = [action[name] for name in NAMES]
        self.sent.append((time.perf_counter(), self.position))
        return action


class Chunks:
    """A policy of this toolkit as far as an arm asks: chunks of given actions."""

    def __init__(self, actions: list[list[float]]) -> None:
        self.actions, self.seeds = np.array(actions), list[int]()

    def predict_action_chunk(self, observation: dict[str, Any], noise_seeds: list[int]) -> np.ndarray:
        self.seeds += noise_seeds
        assert observation["observation.state"].shape == (1, 2)
        assert observation[FRONT].shape == (1, 3, 8, 12)
        return self.actions[None]


def arm_of(policy: Any) -> Arm:
    return Arm("a", "id", 20, policy, {FRONT: FRONT}, (8, 12), LIMITS)


@pytest.fixture
def robot(monkeypatch: pytest.MonkeyPatch) -> Iterator[GuardedRobot]:
    from contextlib import nullcontext

    monkeypatch.setattr(trial_robot, "watched", lambda words: nullcontext())
    made: Any = Arm2()
    with GuardedRobot(made, {"type": "two_joints"}, Features.of(made)) as guarded:
        yield guarded


def run(robot: GuardedRobot, policy: Any, folder: Path, stop: threading.Event, steps: int = 6) -> Recording:
    recording = Recording(folder, steps)
    run_trial(robot, arm_of(policy), "push", Pace(100, steps), 3, stop, lambda pictures: None, recording)
    return recording


def test_no_action_outside_of_the_limits_is_sent(robot: GuardedRobot, tmp_path: Path) -> None:
    policy = Chunks([[0.3, 0.4], [9.0, 0.0], [-9.0, -2.5]])
    recording = run(robot, policy, tmp_path, threading.Event())
    sent = [action for _, action in robot.robot.sent]
    assert sent[:6] == [[0.3, 0.4], [1.0, 0.0], [-1.0, -2.0]] * 2
    assert recording.clipped == 4
    assert len(set(policy.seeds)) == 2
    episode = recording.episode("push")
    assert np.allclose(episode.actions, sent[:6])
    assert episode.states[0].tolist() == [0.5, 0.5]
    assert episode.cameras[FRONT].shape == (6, 8, 12, 3)
    assert (np.asarray(episode.cameras[FRONT]) == 7).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_action_that_is_not_finite_is_refused(value: float, robot: GuardedRobot, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected 2 finite numbers"):
        run(robot, Chunks([[0.0, value]]), tmp_path, threading.Event())
    assert robot.robot.sent == []
    with pytest.raises(UserError, match=r"a policy gives actions \(1, 1, 3\)"):
        run(robot, Chunks([[0.0, 1.0, 2.0]]), tmp_path, threading.Event())


def test_any_key_stops_within_one_control_period(robot: GuardedRobot, tmp_path: Path) -> None:
    operator, pressed = Operator(), list[float]()

    def press() -> None:
        pressed.append(time.perf_counter())
        operator.press("k")

    with operator.stoppable("runs") as stop:
        threading.Timer(0.25, press).start()
        recording = run(robot, Chunks([[0.1 * k, 0.0] for k in range(10)]), tmp_path, stop, steps=1000)
    assert recording.stopped_by_key
    assert 3 <= len(recording.actions) < 200
    after = [action for when, action in robot.robot.sent if when > pressed[0]]
    assert len(after) <= 2  # one was on its way, then it is asked to stay where it is
    assert robot.robot.sent[-1][1] == pytest.approx(robot.robot.sent[-2][1])


def test_after_a_key_no_action_of_the_policy_is_sent(robot: GuardedRobot, tmp_path: Path) -> None:
    operator = Operator()
    send = robot.robot.send_action

    def send_and_press(action: dict[str, float]) -> dict[str, float]:
        if len(robot.robot.sent) == 4:
            operator.press(" ")
        return send(action)

    robot.robot.send_action = send_and_press
    with operator.stoppable("runs") as stop:
        recording = run(robot, Chunks([[0.1 * k, 0.0] for k in range(10)]), tmp_path, stop, steps=1000)
    assert (len(recording.actions), len(robot.robot.sent)) == (5, 6)
    assert robot.robot.sent[5][1] == pytest.approx([0.4, 0.0])  # stay


def test_a_key_before_the_first_action_sends_none(robot: GuardedRobot, tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    recording = run(robot, Chunks([[1.0, 1.0]]), tmp_path, stop)
    assert recording.actions == []
    assert [action for _, action in robot.robot.sent] == [[0.5, 0.5]]


def test_the_arm_goes_back_slowly_inside_of_the_limits_and_any_key_stops_it(robot: GuardedRobot) -> None:
    stop = threading.Event()
    robot.initial = np.array([3.0, 0.0])  # outside
    robot.robot.position = [-1.0, 2.0]
    assert robot.go_back(LIMITS, 0.1, 100, stop)
    way = np.array([action for _, action in robot.robot.sent])
    assert len(way) == 10
    assert way[-1].tolist() == [1.0, 0.0]
    assert np.abs(np.diff(way[:, 1])).max() == pytest.approx(0.2)
    stop.set()
    assert not robot.go_back(LIMITS, 0.1, 100, stop)
    assert len(robot.robot.sent) == 11  # stay


def test_whatever_leaves_the_block_disconnects(monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import nullcontext

    monkeypatch.setattr(trial_robot, "watched", lambda words: nullcontext())
    for error in (KeyboardInterrupt, UserError, RuntimeError, SystemExit):
        made: Any = Arm2()
        guarded = GuardedRobot(made, {}, Features.of(made)).__enter__()
        assert made.is_connected
        guarded.__exit__(error, error(), None)
        assert not made.is_connected
    made = Arm2()
    made.is_calibrated = False
    with pytest.raises(UserError, match="not calibrated; run lerobot-calibrate --robot.type=two"):
        GuardedRobot(made, {"type": "two"}, Features.of(made)).__enter__()
    assert not made.is_connected


def test_the_watchdog_releases_a_motor_bus_without_configuring_motors() -> None:
    done: list[Any] = []
    bus = SimpleNamespace(connect=lambda: done.append("open"), disconnect=lambda torque_off: done.append(torque_off))
    trial_watchdog.release(SimpleNamespace(bus=bus, config=SimpleNamespace(disable_torque_on_disconnect=True)))
    assert done == ["open", True]
    trial_watchdog.release(SimpleNamespace(bus=bus, config=SimpleNamespace(disable_torque_on_disconnect=False)))
    assert done == ["open", True]


def test_a_robot_in_lerobots_words() -> None:
    camera = {"type": "opencv", "index_or_path": 0, "width": 640, "height": 480, "fps": 30}
    words = {"type": "so101_follower", "port": "/dev/ttyACM0", "max_relative_target": 5.0, "cameras": {"front": camera}}
    config: Any = robot_config(words)
    assert (config.port, config.max_relative_target, config.cameras["front"].width) == ("/dev/ttyACM0", 5.0, 640)
    with pytest.raises(UserError, match=r"robot\.type=\.\.\. is required"):
        robot_config({})
    with pytest.raises(UserError, match=r"not a valid so101_follower \(Missing required field\(s\) `port`"):
        robot_config({"type": "so101_follower"})
    with pytest.raises(UserError, match="Specifying 'width' is required"):
        robot_config({**words, "cameras": {"front": {"type": "opencv", "index_or_path": 0}}})


def test_limits_of_a_dataset_and_of_a_policy(dataset: Path) -> None:
    features = Features(["y", "x"], ["dy", "dx"], {FRONT: (8, 12)})
    limits = recorded_limits(str(dataset), features)
    statistics = json.loads((dataset / "meta/stats.json").read_text())["action"]
    assert limits.low.tolist() == statistics["min"]
    assert limits.high.tolist() == statistics["max"]
    deltas = SimpleNamespace(representation=("relative", []), postprocessor=SimpleNamespace(steps=[]))
    with pytest.raises(UserError, match="learned differences, so its statistics are no limits"):
        own_limits("policies.a", deltas, features)
    silent = SimpleNamespace(postprocessor=SimpleNamespace(steps=[]))
    with pytest.raises(UserError, match=r"does not say the smallest and largest action .* limits_from=DATASET"):
        own_limits("policies.a", silent, features)


def test_cameras_by_name() -> None:
    shown = {FRONT: (8, 12), "observation.images.side": (8, 12)}
    assert match_cameras("p", [FRONT], shown, {}) == {FRONT: FRONT}
    assert match_cameras("p", ["observation.image"], shown, {FRONT: "observation.image"}) == {
        "observation.image": FRONT
    }
    with pytest.raises(UserError, match=rf"sees 'top', which is no camera .* rename=\{{{FRONT}: top\}}"):
        match_cameras("p", ["top"], shown, {})


# ------------------------------------------------------------------------------------------------------------- operator


def test_keys_of_a_terminal_come_one_by_one_and_it_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    import termios

    outer, inner = pty.openpty()
    monkeypatch.setattr("sys.stdin", os.fdopen(inner, "r"))
    before = termios.tcgetattr(inner)
    with Operator() as operator:
        assert operator.has_terminal
        threading.Timer(0.2, lambda: os.write(outer, b"xS")).start()  # x is not offered; capitals count
        assert operator.ask("how did it end?", {"s": "success"}, lambda: None) == "s"
        threading.Timer(0.2, lambda: os.write(outer, b"lamq\x7fp\n")).start()
        assert operator.line("why", lambda: None) == "lamp"
        with operator.stoppable("runs") as stop:
            assert not stop.is_set()
            os.write(outer, b"\x1b")
            assert stop.wait(5)
    assert termios.tcgetattr(inner) == before
    os.close(outer)


def test_a_key_that_was_pressed_before_the_question_is_no_answer() -> None:
    operator = Operator()
    operator.press("s")
    threading.Timer(0.2, lambda: operator.press("f")).start()
    assert operator.ask("how did it end?", {"s": "success", "f": "failure"}, lambda: None) == "f"


# ----------------------------------------------------------------------------------------------------------------- page


def fetch(address: str, data: bytes | None = None, host: str | None = None) -> tuple[int, bytes, Any]:
    request = urllib.request.Request(address, data, {"Host": host} if host else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, b"", error.headers


def test_the_page_shows_the_live_picture_over_the_reference_and_takes_keys() -> None:
    operator = Operator()
    live, old = ({FRONT: np.full((8, 12, 3), level, np.uint8)} for level in (200, 50))
    with TrialPage(operator) as page:
        status, text, headers = fetch(page.address)
        assert status == 200
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert not re.search("https?://", text.decode())
        assert re.search(r'<input id="share" type="range"', text.decode())
        assert json.loads(fetch(f"{page.address}state")[1])["cameras"] == []
        page.begin_trial("placement 2 of 20", "bakolu", old)
        page.show(live)
        threading.Timer(0.3, lambda: fetch(f"{page.address}key", b'"s"')).start()
        states = []

        def idle() -> None:
            states.append(json.loads(fetch(f"{page.address}state")[1]))

        assert operator.ask("how did it end?", {"s": "success", "f": "failure"}, idle) == "s"
        assert states[0] == {
            "title": "placement 2 of 20",
            "code_word": "bakolu",
            "prompt": "how did it end?",
            "keys": {"s": "success", "f": "failure"},
            "typing": False,
            "cameras": [FRONT],
            "reference": 1,
        }
        for kind, level in (("live", 200), ("reference", 50)):
            assert abs(decode_picture(fetch(f"{page.address}{kind}/0?1")[1]).astype(int) - level).max() <= 2
        with operator.stoppable("runs") as stop:
            fetch(f"{page.address}key", b'"x"')
            assert stop.is_set()
        threading.Timer(0.2, lambda: fetch(f"{page.address}key", b'"the lamp\\n"')).start()
        assert operator.line("why", lambda: None) == "the lamp"


def test_the_page_answers_nobody_who_does_not_know_its_address() -> None:
    with TrialPage(Operator()) as page:
        root = page.address.rsplit("/", 2)[0]
        assert fetch(f"{root}/")[0] == 404
        assert fetch(f"{root}/wrong/state")[0] == 404
        assert fetch(f"{root}/wrong/key", b'"s"')[0] == 404
        assert fetch(page.address, host="evil.example:80")[0] == 404
        for place in ("live/0", "live/-1", "live/x", "reference/9", "../run.json"):
            assert fetch(f"{page.address}{place}")[0] == 404
        assert fetch(f"{page.address}key", b"{")[0] == 400
        assert fetch(f"{page.address}key", b'"' + b"s" * 5000 + b'"')[0] == 404
        port = int(root.rpartition(":")[2])
        with pytest.raises(UserError, match=f"page_port={port}: Address already in use"):
            TrialPage(Operator(), port)
