"""Typed configuration of `vag trial`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from recipes.schema import MOST_LENGTH, CommonConfig, LoadingConfig
from toolkit.base.options import option, part
from toolkit.training.config import RuntimeConfig

MOST_PLACEMENTS = 200  # of toolkit.evaluation.sequential, which a test compares
MOST_PORT = 65_535


@dataclass
class TrialConfig(CommonConfig, LoadingConfig):
    policies: dict[str, str] = option({}, "name: pretrained_model directory, of two policies or more")
    robot: dict[str, Any] = option({}, "LeRobot's words for a robot: type, port, id, cameras, max_relative_target")
    task: str = option(MISSING, "the instruction that every policy gets")
    placements: int = option(
        20, "how objects lie, anew each time; each policy has a trial in each", least=1, most=MOST_PLACEMENTS
    )
    max_steps: int = option(600, "actions after which a trial ends by itself", least=1, most=MOST_LENGTH)
    fps: float | None = option(None, "control rate; null = that of the policies' training data", above=0, most=1000)
    rename: dict[str, str] = option(
        {}, "other names for the robot's cameras, {observation.images.front: the key wanted}"
    )
    limits_from: str | None = option(
        None, "LeRobotDataset whose smallest and largest actions no policy leaves; null = of each policy's own data"
    )
    return_to_initial_position: bool = option(
        True, "after a trial the arm goes slowly back to where it was when it was connected"
    )
    return_seconds: float = option(3.0, "time that it takes for that", above=0, most=60)
    alpha: float = option(0.05, "chance of a false alarm of the sequential test, over all pairs", above=0, below=1)
    page: bool = option(True, "serve the page with the live picture and the overlay, for this machine alone")
    page_port: int = option(0, "of that page; 0 = any that is free", least=0, most=MOST_PORT)
    unseal: bool = option(False, "with resume=true: no more trials, open the key and write the results")
    runtime: RuntimeConfig = part(RuntimeConfig, "where and how to compute")
