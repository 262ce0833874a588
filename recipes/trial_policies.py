"""The arms of a trial: checkpoints, loaded through this project's door, and what a robot must have to be theirs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.processor import UnnormalizerProcessorStep

from policies.checkpoint_config import Loading
from policies.checkpoints import checkpoint_directory
from policies.objective import PolicyObjective
from policies.stock import load_policy
from recipes.common import pick_device, weights_id
from recipes.pretrain import expected_sizes
from recipes.trial_robot import Features, Limits
from recipes.trial_schema import TrialConfig
from toolkit.base.errors import UserError, warn
from toolkit.base.reading import read_json
from toolkit.base.run import Run
from toolkit.data.conventions import Conventions
from toolkit.data.episode import ACTION, STATE, TASK
from toolkit.data.formats.lerobot_layout import check_inside, dimension_names, read_info
from toolkit.evaluation.rollout import fitted_pictures

RETUNE = "fine-tune the policy on recordings of this robot"


@dataclass(frozen=True)
class Arm:
    """One policy. cameras: the robot's camera by the key that the policy sees it under."""

    name: str
    identity: str
    fps: float  # of its training data; 0 where nobody says
    policy: Any
    cameras: Mapping[str, str]
    sizes: Any  # (height, width) of its pictures, of all cameras or by camera
    limits: Limits

    def begin(self) -> None:
        """Forget the trial before."""
        forget = getattr(self.policy, "reset", None)
        if forget is not None:
            forget()

    def predict(self, state: np.ndarray, pictures: Mapping[str, np.ndarray], task: str, noise_seed: int) -> np.ndarray:
        """The next actions (n, A) in the robot's units; state (S,), pictures (H, W, 3) uint8 by the robot's cameras."""
        observation: dict[str, Any] = {
            **fitted_pictures([pictures], self.sizes, self.cameras),
            STATE: torch.from_numpy(state[None]),
            TASK: [task],
        }
        chunk = torch.as_tensor(self.policy.predict_action_chunk(observation, [noise_seed])).detach().cpu().numpy()
        width = len(self.limits.low)
        if chunk.ndim != 3 or chunk.shape[0] != 1 or chunk.shape[1] == 0 or chunk.shape[2] != width:
            raise UserError(f"trial: a policy gives actions {chunk.shape}; the robot takes (1, at least 1, {width})")
        return np.asarray(chunk[0], np.float64)


def load_arms(config: TrialConfig, features: Features, run: Run) -> list[Arm]:
    """All policies with their limits. Raises UserError for a checkpoint that is not of such a robot."""
    if len(config.policies) < 2:
        raise UserError("trial: policies={...}: expected two or more, such as policies={a:DIR,b:DIR}")
    recorded = None if config.limits_from is None else recorded_limits(config.limits_from, features)
    loading, device = Loading.of(config), pick_device(config.runtime)
    arms = []
    for name, given in config.policies.items():
        checkpoint = checkpoint_directory(given, loading)
        policy = load_policy(checkpoint, device, loading)
        if isinstance(policy, PolicyObjective):
            policy.check_instructions([config.task])  # before anything moves
        identity = weights_id(checkpoint)
        run.add_data(given, identity)
        fps = check_features(name, checkpoint, policy, features, config.fps)
        cameras = match_cameras(f"policies.{name}", policy.cameras, features.cameras, config.rename)
        limits = recorded or own_limits(f"policies.{name}", policy, features)
        arms.append(Arm(name, identity, fps, policy, cameras, expected_sizes(policy, checkpoint), limits))
    ids = [arm.identity for arm in arms]
    if twice := next((arm for arm in arms if ids.count(arm.identity) > 1), None):
        warn(f"policies.{twice.name} has the weights of another one: a comparison of a policy with itself")
    return arms


def control_rate(config: TrialConfig, arms: list[Arm]) -> float:
    """Actions a second. Raises UserError where policies disagree, or nobody says."""
    if config.fps is not None:
        return config.fps
    told = {arm.fps: arm.name for arm in arms if arm.fps}
    if len(told) > 1:
        rates = ", ".join(f"{name} {fps:g}" for fps, name in told.items())
        raise UserError(f"trial: policies were trained at different rates ({rates}); they have no common fps")
    if not told:
        raise UserError("trial: no checkpoint says at which rate it was trained; give fps=..., as of its recordings")
    return next(iter(told))


def check_features(name: str, checkpoint: Path, policy: Any, features: Features, fps: float | None) -> float:
    """The rate of the training data, 0 if unknown. Raises UserError for other widths, names, or another rate."""
    trained = Conventions.of(checkpoint)
    robot = Conventions("the robot", fps or trained.fps, features.state_names, features.action_names)
    trained.check(robot, remedy=RETUNE)
    config = policy.policy.config
    widths = {
        STATE: ((config.input_features or {}).get(STATE), features.state_names),
        ACTION: ((config.output_features or {}).get(ACTION), features.action_names),
    }
    for key, (feature, names) in widths.items():
        if feature is not None and tuple(feature.shape) != (len(names),):
            raise UserError(
                f"policies.{name}: '{key}' has shape {tuple(feature.shape)}; the robot has {len(names)}: "
                f"{', '.join(names)}; {RETUNE}"
            )
    if not (trained.state_names and trained.action_names):
        warn(
            f"policies.{name}: names no dimensions; its states are taken as {', '.join(features.state_names)}, "
            f"its actions as {', '.join(features.action_names)}"
        )
    return trained.fps


def match_cameras(where: str, wanted: list[str], shown: Mapping[str, Any], rename: Mapping[str, str]) -> dict[str, str]:
    """By the key that a policy sees, the robot's camera. Raises UserError for one that the robot does not have."""
    for key in rename:
        if key not in shown:
            raise UserError(f"trial: rename: the robot has no camera '{key}'; it has {', '.join(shown)}")
    names = {**{camera: camera for camera in shown}, **{name: camera for camera, name in rename.items()}}
    if len(wanted) == len(shown) == 1 and wanted[0] not in names:
        (camera,) = shown
        print(f"{where} sees {wanted[0]}: taken to be the robot's only camera, {camera}", flush=True)
        return {wanted[0]: camera}
    for key in wanted:
        if key not in names:
            raise UserError(
                f"{where}: sees '{key}', which is no camera of the robot; it has {', '.join(shown)}. Say which one is "
                f"meant: rename={{{next(iter(shown))}: {key}}}"
            )
    return {key: names[key] for key in wanted}


# -------------------------------------------------------------------------------------------------------------- limits


def own_limits(where: str, policy: Any, features: Features) -> Limits:
    """Of the actions that a policy was trained on, by the statistics that its checkpoint holds."""
    remedy = "name the recordings: limits_from=DATASET"
    if getattr(policy, "representation", ("absolute", []))[0] != "absolute":
        raise UserError(f"{where}: learned differences, so its statistics are no limits of actions; {remedy}")
    for step in policy.postprocessor.steps:
        if isinstance(step, UnnormalizerProcessorStep) and {"min", "max"} <= (step.stats or {}).get(ACTION, {}).keys():
            return _limits(where, step.stats[ACTION], features, f"of the recordings of {where}")
    raise UserError(f"{where}: its checkpoint does not say the smallest and largest action recorded; {remedy}")


def recorded_limits(dataset: str, features: Features) -> Limits:
    """Of all actions of a LeRobotDataset, by its statistics. Raises UserError for a dataset of other actions."""
    directory = Path(dataset)
    names = dimension_names(read_info(directory), ACTION)
    if names and names != features.action_names:
        raise UserError(
            f"limits_from={dataset}: its actions are {', '.join(names)}; those of the robot are "
            f"{', '.join(features.action_names)}"
        )
    statistics = read_json(check_inside(directory, "meta/stats.json")).get(ACTION)
    if not isinstance(statistics, dict) or not {"min", "max"} <= statistics.keys():
        raise UserError(f"{directory / 'meta/stats.json'}: no 'min' and 'max' of '{ACTION}'; expected LeRobot's")
    return _limits(f"limits_from={dataset}", statistics, features, f"of {dataset}")


def _limits(where: str, statistics: Mapping[str, Any], features: Features, source: str) -> Limits:
    try:
        low, high = (np.asarray(statistics[name], np.float64).reshape(-1) for name in ("min", "max"))
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: its smallest and largest actions are no numbers") from error
    width = (len(features.action_names),)
    if low.shape != width or high.shape != width or not (np.isfinite([low, high]).all() and (low <= high).all()):
        raise UserError(f"{where}: its smallest and largest actions are not {width[0]} ranges of finite numbers")
    return Limits(low, high, source)
