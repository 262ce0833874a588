"""How a pretrained video model is sampled: its grid of times, the scale of its noise, its solver.

Times are those of `flow_matching`, t = 0 data and t = 1 noise. A grid need not run from 1 to 0: Cosmos-Predict2 begins
at 80/81, where its noise has the standard deviation 80 of EDM (arXiv 2206.00364), and ends at 0.002/1.002.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 80.0, 7.0  # of Cosmos-Predict2's pipeline


@dataclass
class VideoClock:
    """Times of one sample. It may have a solver with a memory, so each sample takes a new one.

    times: one more than evaluations. asked: what the network is told at each evaluation, in its own unit.
    first_scale: of the standard normal noise, to be the stream at times[0].
    stepper: solver of the stream, for `flow_matching.integrate`; None is Euler.
    """

    times: list[float]
    asked: list[float]
    first_scale: float = 1.0
    stepper: SchedulerStepper | None = None

    def start(self, noise: Tensor) -> Tensor:
        """Standard normal noise (B, ...) -> the stream at the first time."""
        return self.first_scale * noise

    def finish(self, latents: Tensor) -> Tensor:
        """The stream at the last time (B, ...) -> latents, in which data has the weight 1."""
        return latents / (1 - self.times[-1])


class SchedulerStepper:
    """A scheduler of diffusers as the solver of one stream."""

    def __init__(self, scheduler: Any, steps: int) -> None:
        """scheduler: left as it is; a copy keeps the history of this sample."""
        self.scheduler = copy.deepcopy(scheduler)
        self.scheduler.set_timesteps(steps)
        self.scheduler.set_begin_index(0)  # which it would look for by whole numbers, of which two may be alike
        self._index = 0

    def __call__(self, velocity: Tensor, x: Tensor) -> Tensor:
        """The stream (B, ...) one step of the grid later."""
        time = self.scheduler.timesteps[self._index]
        self._index += 1
        return self.scheduler.step(velocity, time, x, return_dict=False)[0]


def karras_clock(steps: int) -> VideoClock:
    """Cosmos-Predict2: `steps` noise levels of arXiv 2206.00364, eq. 5, and an Euler step from each to the next.

    The pipeline evaluates the network once more at the last level and then moves nowhere; that is left out.
    """
    check_steps(steps, 2)
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    low, high = SIGMA_MIN ** (1 / RHO), SIGMA_MAX ** (1 / RHO)
    sigmas = (high + ramp * (low - high)) ** RHO
    times = (sigmas / (1 + sigmas)).tolist()
    return VideoClock(times, times[:-1], first_scale=times[0])


def scheduler_clock(scheduler: Any, steps: int, unit: float, truncated: bool) -> VideoClock:
    """The grid of a scheduler, and the scheduler itself as solver unless it is Euler's.

    unit: of the network's time at t = 1. truncated: it is told the scheduler's integers instead of the grid's times.
    """
    check_steps(steps, 1)
    stepper = SchedulerStepper(scheduler, steps)
    times = stepper.scheduler.sigmas.tolist()
    asked = stepper.scheduler.timesteps.double().tolist() if truncated else [unit * time for time in times[:-1]]
    euler = type(scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"
    return VideoClock(times, asked, stepper=None if euler else stepper)


def check_steps(steps: int, least: int) -> None:
    """Raise ValueError for fewer steps than the grid needs."""
    if steps < least:
        raise ValueError(f"num_inference_steps = {steps}: expected at least {least} for this video model")
