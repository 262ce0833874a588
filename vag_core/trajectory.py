"""The trajectory stream [action_t, state_{t+1}], t = 0 .. N-1: between physical units and what the networks take.

Shapes: actions (B, N, A), states (B, N + 1, S), trajectory (B, N, A + S); grouped by the latent frame that they lead
to, the same numbers are (B, T - 1, n). Physical actions are the source's own; the networks take them as
`representation` says, relative to the first state or as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from vag_core.representation import check_reference, convert, restore

NO_LIMIT = torch.finfo(torch.float32).max  # not infinity, of which no average can be kept


class Trajectory(nn.Module):
    """Mean, deviation and limits of [action, state], measured on the training data by `set_statistics`."""

    reference: Tensor
    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, action_dim: int, state_dim: int, representation: str = "absolute") -> None:
        """representation: one of `representation.REPRESENTATIONS`; `set_reference` says what it is relative to."""
        super().__init__()
        self.action_dim, self.state_dim, self.representation = action_dim, state_dim, representation
        reference = torch.full((action_dim,), -1)
        self.register_buffer("reference", reference, persistent=representation != "absolute")
        for name, value in (("mean", 0.0), ("std", 1.0), ("low", -NO_LIMIT), ("high", NO_LIMIT)):
            self.register_buffer(name, torch.full((action_dim + state_dim,), value))

    def set_statistics(self, mean: Any, std: Any, low: Any = -NO_LIMIT, high: Any = NO_LIMIT) -> None:
        """Mean, deviation, least and largest value of [action, state], each (A + S,).

        Mean and deviation of what the networks take, limits in physical units. Samples are clipped to [low, high]: a
        command that no operator gave, past a joint's or gripper's limit, would widen the range that policies normalise
        with.
        """
        for buffer, value in ((self.mean, mean), (self.std, std), (self.low, low), (self.high, high)):
            buffer.copy_(torch.as_tensor(value, dtype=torch.float32))

    def set_reference(self, reference: Any) -> None:
        """Of each action dimension the state dimension that it is relative to, -1 where it stays as recorded, (A,).

        Raises ValueError for a dimension that there is not.
        """
        reference = torch.as_tensor(reference)
        check_reference(self.representation, reference, self.action_dim, self.state_dim)
        self.reference.copy_(reference)

    def pack(self, actions: Float[Tensor, "b n a"], states: Float[Tensor, "b n+1 s"]) -> Float[Tensor, "b n a+s"]:
        """Physical actions (B, N, A) and states (B, N + 1, S) -> normalised trajectory (B, N, A + S)."""
        actions = convert(actions, states[:, 0], self.representation, self.reference)
        return (torch.cat([actions, states[:, 1:]], dim=-1) - self.mean) / self.std

    def unpack(
        self, trajectory: Float[Tensor, "b n c"], state: Float[Tensor, "b s"]
    ) -> tuple[Float[Tensor, "b n a"], Float[Tensor, "b n c-a"]]:
        """Inverse of `pack`: actions (B, N, A) and the states after them (B, N, S); state (B, S), the first one."""
        values = trajectory * self.std + self.mean
        actions = restore(values[..., : self.action_dim], state, self.representation, self.reference)
        return actions, values[..., self.action_dim :]

    def clip(self, trajectory: Float[Tensor, "b n c"], state: Float[Tensor, "b s"]) -> Float[Tensor, "b n c"]:
        """A normalised trajectory within the physical range of the training data: see `set_statistics`."""
        actions, after = self.unpack(trajectory, state)
        split = self.action_dim
        actions = actions.clamp(self.low[:split], self.high[:split])
        after = after.clamp(self.low[split:], self.high[split:])
        return self.pack(actions, torch.cat([state[:, None], after], dim=1))

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
