"""Actions as a network learns them: as recorded, or relative to the state that the robot was in; and back.

absolute           as recorded
relative_to_first  action_t - state_0: `DeltaActions` of openpi (src/openpi/transforms.py), "relative" of UMI
                   (arXiv 2402.10329) per dimension, `RelativeActionsProcessorStep` of LeRobot
delta              action_t - action_(t-1), and action_0 - state_0

Both are differences dimension by dimension: rotations given as angles are not composed. state_0 is the state at the
start of the window or chunk, and of each action dimension the state dimension that `reference` names; where that is
-1 the action stays as recorded. Shapes: actions (B, T, A), state (B, S), reference (A,).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vag_core.config import REPRESENTATIONS


def convert(
    actions: Float[Tensor, "b t a"], state: Float[Tensor, "b s"], kind: str, reference: Int[Tensor, " a"]
) -> Float[Tensor, "b t a"]:
    """Recorded actions as the network learns them."""
    if kind == "absolute":
        return actions
    before = _start(state, reference)
    if kind == "delta":
        before = torch.cat([before, actions[:, :-1]], dim=1)
    return torch.where(reference >= 0, actions - before, actions)


def restore(
    actions: Float[Tensor, "b t a"], state: Float[Tensor, "b s"], kind: str, reference: Int[Tensor, " a"]
) -> Float[Tensor, "b t a"]:
    """Inverse of `convert`, but for the rounding of float32: the sums of `delta` are made in float64."""
    if kind == "absolute":
        return actions
    start = _start(state, reference)
    moved = start + actions
    if kind == "delta":  # as a product: the cumulative sum of torch is not deterministic on a GPU
        steps = actions.shape[1]
        before = torch.ones(steps, steps, dtype=torch.float64, device=actions.device).tril()
        moved = (start.double() + before @ actions.double()).to(actions.dtype)
    return torch.where(reference >= 0, moved, actions)


def check_reference(kind: str, reference: Int[Tensor, " a"], action_dim: int, state_dim: int) -> None:
    """Raise ValueError for an unknown representation, and for a dimension that there is not."""
    if kind not in REPRESENTATIONS:
        raise ValueError(f"action_representation = {kind!r:.80}: expected one of {', '.join(REPRESENTATIONS)}")
    if tuple(reference.shape) != (action_dim,):
        raise ValueError(f"reference: expected {action_dim} numbers, one per action dimension")
    if action_dim and not -1 <= int(reference.min()) <= int(reference.max()) < state_dim:
        raise ValueError(f"reference: expected numbers from -1 to {state_dim - 1}, dimensions of the state")


def _start(state: Float[Tensor, "b s"], reference: Int[Tensor, " a"]) -> Float[Tensor, "b 1 a"]:
    return state[:, None].index_select(2, reference.clamp(min=0))
