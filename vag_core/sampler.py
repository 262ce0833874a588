"""Solvers that carry all streams together from noise (t = 1) to data (t = 0)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Streams = tuple[Tensor, ...]
VelocityFunction = Callable[[Streams, float], Streams]


def integrate(velocity: VelocityFunction, noise: Sequence[Tensor], num_steps: int, method: str = "euler") -> Streams:
    """Solve dx/dt = velocity(x, t) from t = 1 to t = 0 with `num_steps` equal steps, all streams in step.

    velocity: maps the streams, each (B, ...), and the time they share to one velocity per stream.
    noise:    the streams at t = 1.
    method:   'euler' (1 evaluation a step, order 1) or 'heun' (2 a step, the last is an Euler step; order 2).
    Raises ValueError for an unknown method or num_steps < 1.
    """
    if method not in ("euler", "heun"):
        raise ValueError(f"sampler method {method!r}: expected 'euler' or 'heun'")
    if num_steps < 1:
        raise ValueError(f"num_inference_steps = {num_steps}: expected at least 1")
    times = torch.linspace(1.0, 0.0, num_steps + 1).tolist()
    streams: Streams = tuple(noise)
    for t, t_next in itertools.pairwise(times):
        slope = velocity(streams, t)
        step = t_next - t
        if method == "heun" and t_next > 0:
            ahead = tuple(x + step * v for x, v in zip(streams, slope, strict=True))
            slope = tuple((v + w) / 2 for v, w in zip(slope, velocity(ahead, t_next), strict=True))
        streams = tuple(x + step * v for x, v in zip(streams, slope, strict=True))
    return streams
