"""Solvers that carry all streams from noise (t = 1) to data (t = 0), each by its own clock."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Streams = tuple[Tensor, ...]
Times = tuple[float, ...]  # one per stream
VelocityFunction = Callable[[Streams, Times], Streams]
METHODS = ("euler", "heun", "adams_bashforth")
ORDERS = ("synchronised", "video_first", "actions_once", "actions_first")


def schedule(num_steps: int, order: str = "synchronised", pinned: tuple[bool, bool] = (False, False)) -> list[Times]:
    """Clocks (t_video, t_action) from all noise to all data.

    synchronised: both streams in every step, as published. video_first: the video is finished before the actions
    begin, with as many steps for each. actions_once: the same, with one step for the actions, which are then their
    conditional mean given the video. actions_first: the actions are known before the video begins, so they are pinned,
    or, if the video is, follow it in one step. A pinned stream is known data and stays at t = 0.
    Raises ValueError for an unknown order, one that pins nothing where it must, or num_steps < 1.
    """
    if order not in ORDERS:
        raise ValueError(f"sampler order {order!r}: expected one of {', '.join(ORDERS)}")
    if order == "actions_first" and not any(pinned):
        raise ValueError("sampler order 'actions_first': expected actions that are known when the schedule begins")
    if num_steps < 1:
        raise ValueError(f"num_inference_steps = {num_steps}: expected at least 1")
    times = torch.linspace(1.0, 0.0, num_steps + 1).tolist()
    action_times = [1.0, 0.0] if order in ("actions_once", "actions_first") else times
    if pinned[1]:
        return [(0.0 if pinned[0] else t, 0.0) for t in times]
    if pinned[0]:
        return [(0.0, t) for t in action_times]
    if order == "synchronised":
        return [(t, t) for t in times]
    return [(t, 1.0) for t in times] + [(0.0, t) for t in action_times[1:]]


def integrate(
    velocity: VelocityFunction, noise: Sequence[Tensor], times: Sequence[Times], method: str = "euler"
) -> Streams:
    """Solve dx/dt = velocity(x, t) along `times`, every stream by its own clock.

    velocity: maps the streams, each (B, ...), and their times to one velocity per stream.
    noise:    the streams at the first of the times.
    method:   'euler' (1 evaluation a step, order 1), 'heun' (2 a step, the last is an Euler step; order 2) or
              'adams_bashforth' (1 a step, order 2 from the slope before, for equal steps; the first is Euler's).
    Raises ValueError for an unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"sampler method {method!r}: expected one of {', '.join(METHODS)}")
    streams: Streams = tuple(noise)
    before: Streams | None = None
    moved_before: tuple[float, ...] = ()
    for now, then in itertools.pairwise(times):
        steps = tuple(b - a for a, b in zip(now, then, strict=True))
        slope = velocity(streams, now)
        used = slope
        if method == "heun" and min(t for t, step in zip(then, steps, strict=True) if step) > 0:
            ahead = tuple(x + step * v for x, v, step in zip(streams, slope, steps, strict=True))
            used = tuple((v + w) / 2 for v, w in zip(slope, velocity(ahead, then), strict=True))
        elif method == "adams_bashforth" and before is not None:
            used = tuple(
                1.5 * v - 0.5 * w if step and earlier else v
                for v, w, step, earlier in zip(slope, before, steps, moved_before, strict=True)
            )
        before, moved_before = slope, steps
        streams = tuple(x + step * v if step else x for x, v, step in zip(streams, used, steps, strict=True))
    return streams
