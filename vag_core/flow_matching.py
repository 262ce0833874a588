"""Flow matching with linear paths (arXiv 2210.02747, 2209.03003): the one place that states the convention.

Time runs from data to noise: t = 0 is data, t = 1 is noise,

    x_t = (1 - t) * x_0 + t * noise,    velocity = dx_t/dt = noise - x_0,

which is the convention of LeRobot and openpi. Shapes: x (B, ...), t (B,).
"""

from __future__ import annotations

import torch
from torch import Tensor


def expand_time(t: Tensor, x: Tensor) -> Tensor:
    """t (B,) with trailing axes so that it multiplies x (B, ...)."""
    return t.view(-1, *[1] * (x.ndim - 1))


def interpolate(x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Point x_t on the straight path from data to noise."""
    t = expand_time(t, x_0)
    return (1 - t) * x_0 + t * noise


def velocity(x_0: Tensor, noise: Tensor) -> Tensor:
    """Target of the regression: the constant velocity of the path."""
    return noise - x_0


def predict_clean(x_t: Tensor, predicted_velocity: Tensor, t: Tensor) -> Tensor:
    """Data implied by a velocity prediction at time t: x_0 = x_t - t * velocity."""
    return x_t - expand_time(t, x_t) * predicted_velocity


def sample_time(batch_size: int, device: torch.device | str, start: float = 0.25) -> Tensor:
    """Training times in (0, 1], (B,): a share `start` at t = 1, the rest logit-normal.

    The logit-normal puts weight on the middle of the path (arXiv 2403.03206, eq. 19) and hardly ever comes near its
    start, where sampling begins and the plan is made; few steps of training leave the network blind there.
    """
    t = torch.sigmoid(torch.randn(batch_size, device=device))
    return torch.where(torch.rand(batch_size, device=device) < start, torch.ones_like(t), t)
