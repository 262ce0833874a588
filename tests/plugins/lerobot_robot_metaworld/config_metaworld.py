from dataclasses import dataclass

from lerobot.robots import RobotConfig


@dataclass(kw_only=True)
class MetaWorldConfig(RobotConfig):
    """log: a file with a line for each connection, action and disconnection, of whichever process.

    kill_at, fail_at: number of the action, over all processes, at which this process gets the signal `kill_by`, or
    the robot fails.
    """

    task: str = "push"
    image_size: int = 64
    log: str = ""
    kill_at: int = 0
    kill_by: int = 9
    fail_at: int = 0
    max_relative_target: float | None = None


RobotConfig.register_subclass("metaworld")(MetaWorldConfig)
