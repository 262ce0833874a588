"""The trajectory stream [action_t, state_{t+1}], t = 0 .. N-1: between physical units and what the networks take.

Shapes: actions (B, N, A), states (B, N + 1, S), trajectory (B, N, A + S); grouped by the latent frame that they lead
to, the same numbers are (B, T - 1, n).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

NO_LIMIT = torch.finfo(torch.float32).max  # not infinity, of which no average can be kept


class Trajectory(nn.Module):
    """Mean, deviation and limits of [action, state], measured on the training data by `set_statistics`."""

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, action_dim: int, state_dim: int) -> None:
        super().__init__()
        self.action_dim = action_dim
        for name, value in (("mean", 0.0), ("std", 1.0), ("low", -NO_LIMIT), ("high", NO_LIMIT)):
            self.register_buffer(name, torch.full((action_dim + state_dim,), value))

    def set_statistics(self, mean: Any, std: Any, low: Any = -NO_LIMIT, high: Any = NO_LIMIT) -> None:
        """Mean, deviation, least and largest value of [action, state] in physical units, each (A + S,).

        Samples are clipped to [low, high]: a command that no operator gave, past a joint's or gripper's limit, would
        widen the range that policies normalise with.
        """
        for buffer, value in ((self.mean, mean), (self.std, std), (self.low, low), (self.high, high)):
            buffer.copy_(torch.as_tensor(value, dtype=torch.float32))

    def pack(self, actions: Float[Tensor, "b n a"], states: Float[Tensor, "b n+1 s"]) -> Float[Tensor, "b n a+s"]:
        """Physical actions (B, N, A) and states (B, N + 1, S) -> normalised trajectory (B, N, A + S)."""
        return (torch.cat([actions, states[:, 1:]], dim=-1) - self.mean) / self.std

    def unpack(self, trajectory: Float[Tensor, "b n c"]) -> tuple[Float[Tensor, "b n a"], Float[Tensor, "b n c-a"]]:
        """Inverse of `pack`: actions (B, N, A) and the states after them (B, N, S)."""
        physical = trajectory * self.std + self.mean
        return physical[..., : self.action_dim], physical[..., self.action_dim :]

    def clip(self, trajectory: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """A normalised trajectory (B, N, A + S) within the range of the training data: see `set_statistics`."""
        return ((trajectory * self.std + self.mean).clamp(self.low, self.high) - self.mean) / self.std

    def normalise_state(self, state: Float[Tensor, "b s"]) -> Float[Tensor, "b s"]:
        """Physical state (B, S) -> normalised (B, S)."""
        return (state - self.mean[self.action_dim :]) / self.std[self.action_dim :]


def group_by_latent_frame(
    trajectory: Shaped[Tensor, "b n c"], latent_frames: int
) -> Shaped[Tensor, "b {latent_frames} g"]:
    """(B, N, A + S) -> (B, T - 1, n): what leads to one of the T - 1 latent frames stands together."""
    return trajectory.reshape(len(trajectory), latent_frames, -1)


def ungroup(groups: Shaped[Tensor, "b k g"], steps: int) -> Shaped[Tensor, "b {steps} c"]:
    """Inverse of `group_by_latent_frame`: (B, T - 1, n) -> (B, N, A + S), N = steps."""
    return groups.reshape(len(groups), steps, -1)
