"""A second process that disconnects the robot where the first one was killed and could not.

It waits for the end of its input, which comes however that process ends; a letter before says that all is well. Of a
robot with a motor bus it opens the bus and switches the torque off as `disconnect` does, without sending any position;
another is connected and disconnected.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

READY, DONE = b"r", b"d"
PATIENCE = 60.0  # seconds until it has imported LeRobot
ATTEMPTS, PAUSE = 20, 0.25  # while the killed process still holds the port


@contextmanager
def watched(words: dict[str, Any]) -> Iterator[None]:
    """Inside, the death of this process disconnects the robot of these words; begins when the watchdog is ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "recipes.trial_watchdog"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        start_new_session=True,  # Ctrl-C in the terminal is not for it
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(words).encode() + b"\n")
        process.stdin.flush()
        if process.stdout.read(1) != READY:
            raise RuntimeError("the process that disconnects the robot after a kill did not start")
        yield
        with suppress(OSError):  # it has been killed
            process.stdin.write(DONE)
    finally:
        with suppress(OSError):
            process.stdin.close()
        process.stdout.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)


def main() -> None:
    """Wait for the other process; see the module."""
    import time

    from recipes.trial_robot import make_robot

    words = json.loads(sys.stdin.buffer.readline())
    robot = make_robot(words)
    os.write(1, READY)
    if sys.stdin.buffer.read(1) == DONE:
        return
    for _ in range(ATTEMPTS):
        try:
            release(robot)
        except Exception as error:  # the port may be busy for a moment
            print(f"vag: the robot could not be disconnected ({error})", file=sys.stderr, flush=True)
            time.sleep(PAUSE)
        else:
            print("vag: the trial was killed; the robot is disconnected", file=sys.stderr, flush=True)
            return


def release(robot: Any) -> None:
    """What `disconnect` would have done, without `configure`, which touches the motors."""
    bus = getattr(robot, "bus", None)
    if bus is None:
        robot.connect(calibrate=False)
        robot.disconnect()
    elif getattr(robot.config, "disable_torque_on_disconnect", True):
        bus.connect()
        bus.disconnect(True)


if __name__ == "__main__":
    main()
