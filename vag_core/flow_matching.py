"""Flow matching with linear paths (arXiv 2210.02747, 2209.03003): the one place that states the convention.

Time runs from data to noise: t = 0 is data, t = 1 is noise,

    x_t = (1 - t) * x_0 + t * noise,    velocity = dx_t/dt = noise - x_0,

which is the convention of LeRobot and openpi. Shapes: x (B, ...), t (B,).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

Streams = tuple[Tensor, ...]
Times = tuple[float, ...]  # one per stream
VelocityFunction = Callable[[Streams, Times], Streams]
Stepper = Callable[[Tensor, Tensor], Tensor]  # velocity and stream (B, ...) -> the stream one step later
METHODS = ("euler", "heun", "adams_bashforth")


def expand_time(t: Shaped[Tensor, " b"], x: Shaped[Tensor, " b *d"]) -> Shaped[Tensor, " b *ones"]:
    """t (B,) with trailing axes so that it multiplies x (B, ...)."""
    return t.view(-1, *[1] * (x.ndim - 1))


def interpolate(
    x_0: Float[Tensor, " b *d"], noise: Float[Tensor, " b *d"], t: Float[Tensor, " b"]
) -> Float[Tensor, " b *d"]:
    """Point x_t on the straight path from data to noise."""
    t = expand_time(t, x_0)
    return (1 - t) * x_0 + t * noise


def velocity(x_0: Float[Tensor, " b *d"], noise: Float[Tensor, " b *d"]) -> Float[Tensor, " b *d"]:
    """Target of the regression: the constant velocity of the path."""
    return noise - x_0


def predict_clean(
    x_t: Float[Tensor, " b *d"], predicted_velocity: Float[Tensor, " b *d"], t: Float[Tensor, " b"]
) -> Float[Tensor, " b *d"]:
    """Data implied by a velocity prediction at time t: x_0 = x_t - t * velocity."""
    return x_t - expand_time(t, x_t) * predicted_velocity


def sample_time(
    batch_size: int, device: torch.device | str, start: float = 0.25, rng: torch.Generator | None = None
) -> Float[Tensor, " {batch_size}"]:
    """Training times in (0, 1], (B,): a share `start` at t = 1, the rest logit-normal.

    The logit-normal puts weight on the middle of the path (arXiv 2403.03206, eq. 19) and hardly ever comes near its
    start, where sampling begins and the plan is made; few steps of training leave the network blind there.
    """
    t = torch.sigmoid(torch.randn(batch_size, generator=rng, device=device))
    return torch.where(torch.rand(batch_size, generator=rng, device=device) < start, torch.ones_like(t), t)


def integrate(
    velocity: VelocityFunction,
    noise: Sequence[Tensor],
    times: Sequence[Times],
    method: str = "euler",
    steppers: Sequence[Stepper | None] = (),
) -> Streams:
    """Solve dx/dt = velocity(x, t) along `times`, every stream by its own clock.

    velocity: maps the streams, each (B, ...), and their times to one velocity per stream.
    noise:    the streams at the first of the times.
    method:   'euler' (1 evaluation a step, order 1), 'heun' (2 a step, the last is an Euler step; order 2) or
              'adams_bashforth' (1 a step, order 2 from the slope before; the first step is Euler's).
    steppers: a solver of its own for a stream, called for each step in which its time moves; None and () = none.
    Raises ValueError for an unknown method, and for one beside 'euler' where a stream has a solver of its own.
    """
    if method not in METHODS:
        raise ValueError(f"sampler method {method!r}: expected one of {', '.join(METHODS)}")
    solvers: Sequence[Stepper | None] = steppers or (None,) * len(noise)
    if any(solvers) and method != "euler":
        raise ValueError(f"sampler method {method!r}: expected euler, since the video has a solver of its own")
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
                _extrapolate(v, w, step, earlier) if step and earlier else v
                for v, w, step, earlier in zip(slope, before, steps, moved_before, strict=True)
            )
        before, moved_before = slope, steps
        streams = tuple(
            x if not step else solver(v, x) if solver else x + step * v
            for x, v, step, solver in zip(streams, used, steps, solvers, strict=True)
        )
    return streams


def _extrapolate(slope: Tensor, before: Tensor, step: float, earlier: float) -> Tensor:
    """Slope in the middle of a step, from that at its start and that at the start of the step before."""
    if math.isclose(step, earlier, rel_tol=1e-3):  # as good as equal
        return 1.5 * slope - 0.5 * before
    return slope + step / (2 * earlier) * (slope - before)
