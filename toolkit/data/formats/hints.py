"""What is known of HDF5 layouts that many labs share. Data for the one reader; what no layout knows is guessed.

robomimic  data/demo_0/{actions, obs/<camera>_image, obs/robot0_eef_pos, ...}
libero     data/demo_0/{actions, obs/<camera>_rgb, obs/ee_states, ...}
bridge     data/demo_0/{actions, obs/image_0, obs/state}
isaaclab   data/demo_0/{actions, processed_actions, obs/joint_pos, obs/<camera>, states, initial_state}
maniskill  traj_0/{actions, obs/agent/qpos, obs/sensor_data/<camera>/rgb}
aloha      one file per episode: /action, /observations/{qpos, images/<camera>}
droid      one trajectory.h5 per episode: /action/*, /observation/robot_state/*, recordings/MP4/<camera>.mp4 beside it
robomind   one file per episode: /master/joint_position, /puppet/joint_position, /observations/rgb_images/<camera>
robotwin   one file per episode: /joint_action/vector, /observation/<camera>/rgb
hdf5       anything else
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

ANY = "hdf5"


@dataclass(frozen=True)
class Hints:
    """Keys below an episode. A layout is recognised by `marks`, patterns that all have a dataset."""

    fps: int  # of files that name none
    marks: tuple[str, ...] = ()
    group: str | None = None  # of the episodes of a file, "" where it is one; None = found out
    actions: tuple[str, ...] = ()
    states: tuple[str, ...] = ()  # those of these that are there
    often_bgr: bool = False  # its encoded pictures often hold red and blue swapped
    deltas: bool | None = None  # its actions are changes, not places; None = some are


LAYOUTS = {
    "libero": Hints(
        20, ("actions", "obs/*_rgb"), "data", ("actions",), ("ee_states", "gripper_states", "joint_states"), deltas=True
    ),
    "bridge": Hints(5, ("actions", "obs/image_0", "obs/state"), "data", ("actions",), ("state",), deltas=True),
    "isaaclab": Hints(
        20,
        ("actions", "processed_actions", "obs/joint_pos"),
        "data",
        ("actions",),
        ("obs/joint_pos", "obs/eef_pos", "obs/eef_quat", "obs/gripper_pos"),
    ),
    "maniskill": Hints(20, ("actions", "obs/agent/qpos"), None, ("actions",), ("obs/agent/qpos",)),
    "robomimic": Hints(
        20,
        ("actions", "obs/*"),
        "data",
        ("actions",),
        ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"),
        deltas=True,
    ),
    "aloha": Hints(50, ("action", "observations/qpos"), "", ("action",), ("qpos",), often_bgr=True, deltas=False),
    "droid": Hints(
        15,
        ("action/joint_position", "observation/robot_state/joint_positions"),
        "",
        ("action/joint_position", "action/gripper_position"),
        ("observation/robot_state/joint_positions", "observation/robot_state/gripper_position"),
        deltas=False,
    ),
    "robomind": Hints(
        30,
        ("master/joint_position", "puppet/joint_position"),
        "",
        ("master/joint_position",),
        ("puppet/joint_position",),
        often_bgr=True,
        deltas=False,
    ),
    "robotwin": Hints(
        20, ("joint_action/vector", "observation/*/rgb"), "", ("joint_action/vector",), (), often_bgr=True, deltas=False
    ),
    ANY: Hints(20),
}

# What tells a key's content by its name. Commands of a leader arm are actions; the simulator's truth is no state.
ACTION_GROUPS = ("action", "actions", "qaction", "master", "leader")
OBSERVED = ("obs", "observation", "observations", "puppet", "follower", "state", "states", "robot_state", "proprio")
NO_STATE = re.compile(
    r"action|master|leader|target|command|goal|reward|done|terminal|success|time|stamp|(^|_)index$|object|cube|_to_|vel"
    r"|torque|effort|extrinsic|intrinsic|initial|datagen|label|mask|embed|camera|image|rgb|depth|prev_|error|seed"
)
A_STATE = re.compile(r"(^|[_/])(qpos|q|joints?|eef|ee|tcp|arm|gripper|hand|cartesian|proprio|robot|states?|pose)")
NO_CAMERA = re.compile(r"depth|segment|(^|[_/])seg($|[_/])|mask|normals?$|disparity|tactile|point")


def recognised(group: str, keys: Iterable[str]) -> str:
    """The first layout whose marks are all among the keys below the episodes of a group."""
    found = list(keys)
    return next(
        name
        for name, hints in LAYOUTS.items()
        if hints.group in (None, group) and all(any(fnmatchcase(key, mark) for key in found) for mark in hints.marks)
    )


def actions_among(vectors: Sequence[str]) -> list[str]:
    """The keys that are named as actions are, nearest to the episode first; none where that is not clear."""
    by_depth = sorted(vectors, key=lambda key: key.count("/"))
    named = [key for key in by_depth if key.rsplit("/", 1)[-1] in ("action", "actions")]
    if named:
        return named[:1]
    for group in ACTION_GROUPS:
        if inside := [key for key in vectors if key.split("/")[0] == group]:
            joints = [key for key in inside if re.search(r"/(joint_position|gripper_position|qpos)s?$", key)]
            return joints or (inside if len(inside) == 1 else [])
    named = [key for key in vectors if "action" in key.rsplit("/", 1)[-1]]
    return named if len(named) == 1 else []


def states_among(vectors: Sequence[str]) -> list[str]:
    """The keys that are named as what a robot feels of itself; where none is, all that may be a state."""
    allowed = [key for key in vectors if not NO_STATE.search(key)]
    observed = [key for key in allowed if key.split("/")[0] in OBSERVED] or allowed
    first = observed[0].split("/")[0] if observed else ""
    observed = [key for key in observed if key.split("/")[0] == first]
    return [key for key in observed if A_STATE.search(key.rsplit("/", 1)[-1])] or observed
