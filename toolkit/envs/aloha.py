"""A scripted demonstrator for gym-aloha, which ships none: the right arm hands the cube to the left one.

Both hands follow waypoints, as in the demonstrations of ALOHA's authors (Zhao et al., arXiv 2304.13705); the angles of
the joints come from inverse kinematics in a copy of the simulation. Poses are of the bodies `gripper_link`.
A joint vector has 14 numbers: 6 angles [rad] and the opening [0, 1] of the left arm, then of the right one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

CUBE = slice(16, 19)  # position of the cube in the state of the simulation
START_LEFT, START_RIGHT = np.array([-0.31718881, 0.5, 0.29525084]), np.array([0.31718881, 0.49999888, 0.29525084])
MEET = np.array([0.0, 0.5, 0.2])  # where the cube changes hands [m]
GRASP_DEG, GRASP_M = 60, 0.03  # how far the right hand points down, and how high above the table it grasps
FINGERS_M = 0.135  # from a hand to between the ends of its fingers
IK_STEPS, IK_DAMPING, IK_TURN = 10, 1e-4, 0.3  # iterations; damping; metres that a radian counts as
STEPS = 400

Waypoint = tuple[int, np.ndarray, np.ndarray, float]  # step, position [m], quaternion, opening


def turned(axis: int, degrees: float) -> np.ndarray:
    """Quaternion (w, x, y, z) of a turn about one axis."""
    half, quaternion = np.radians(degrees) / 2, np.zeros(4)
    quaternion[0], quaternion[1 + axis] = np.cos(half), np.sin(half)
    return quaternion


def waypoints(cube: np.ndarray) -> tuple[list[Waypoint], list[Waypoint]]:
    """Of the left and of the right hand, for a cube at (x, y, z) [m]."""
    ahead, down, side = turned(1, 0), turned(1, -GRASP_DEG), turned(0, 90)
    lean = np.radians(GRASP_DEG)
    right_hand = FINGERS_M * np.array([np.cos(lean), 0, np.sin(lean)])  # from between its fingers to the hand
    left_hand = FINGERS_M * np.array([-1.0, 0, 0])
    grasp = np.array([*cube[:2], GRASP_M]) + right_hand
    taken, brought = MEET + left_hand, MEET + right_hand
    away, above = np.array([0.1, 0, 0]), np.array([0, 0, 0.08])
    left: list[Waypoint] = [
        (0, START_LEFT, ahead, 0),
        (100, taken - away, side, 1),
        (240, taken - away, side, 1),
        (300, taken, side, 1),
        (340, taken, side, 0),
        (400, taken, side, 0),
    ]
    right: list[Waypoint] = [
        (0, START_RIGHT, ahead, 0),
        (90, grasp + above, down, 1),
        (130, grasp, down, 1),
        (170, grasp, down, 0),
        (230, brought, down, 0),
        (350, brought, down, 0),
        (380, brought, down, 1),
        (400, brought + away, down, 1),
    ]
    return left, right


def pose_at(points: list[Waypoint], step: int) -> np.ndarray:
    """Position, quaternion and opening (8,) between two waypoints, linear in each number."""
    times = [point[0] for point in points]
    values = np.array([[*position, *quaternion, opening] for _, position, quaternion, opening in points])
    return np.array([np.interp(step, times, column) for column in values.T])


def plan(physics: Any, steps: int = STEPS) -> np.ndarray:
    """Joint vectors (steps, 14), 50 a second, that hand over the cube of gym-aloha's simulation, unchanged."""
    import mujoco

    model = physics.model.ptr
    data = mujoco.MjData(model)
    data.qpos[:] = physics.data.qpos
    paths = waypoints(physics.data.qpos[CUBE].copy())
    joints = np.zeros((steps, 14))
    for step in range(steps):
        for arm, (side, path) in enumerate(zip(("left", "right"), paths, strict=True)):
            pose = pose_at(path, step)
            body = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, f"vx300s_{side}/gripper_link")
            reach(model, data, body, slice(8 * arm, 8 * arm + 6), pose, np.array([1.0 - arm, 0, 0, arm]))
            joints[step, 7 * arm : 7 * arm + 7] = *data.qpos[8 * arm : 8 * arm + 6], pose[7]
    return joints


def reach(model: Any, data: Any, body: int, angles: slice, pose: np.ndarray, base: np.ndarray) -> None:
    """Bring a hand to a pose by damped least squares on its six angles.

    pose: position, and quaternion from where the hand points when all angles are zero, `base`.
    """
    import mujoco

    wanted, quaternion, turn = np.zeros(4), np.zeros(4), np.zeros(3)
    mujoco.mju_mulQuat(wanted, pose[3:7] / np.linalg.norm(pose[3:7]), base)
    linear, angular = np.zeros((3, model.nv)), np.zeros((3, model.nv))
    for _ in range(IK_STEPS):
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_jacBody(model, data, linear, angular, body)
        mujoco.mju_negQuat(quaternion, data.xquat[body])
        mujoco.mju_mulQuat(quaternion, wanted, quaternion)
        mujoco.mju_quat2Vel(turn, quaternion, 1)
        error = np.concatenate([pose[:3] - data.xpos[body], IK_TURN * turn])
        jacobian = np.concatenate([linear[:, angles], IK_TURN * angular[:, angles]])
        data.qpos[angles] += jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + IK_DAMPING * np.eye(6), error)
