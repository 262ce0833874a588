"""Action branches: a U-Net behind a bridge, a transformer, and inverse dynamics on the finished video."""

from __future__ import annotations

from collections.abc import Callable

from vag_core.actions.branch import ActionBranch as ActionBranch
from vag_core.actions.branch import VideoView as VideoView
from vag_core.actions.branch import blank_pure_noise as blank_pure_noise
from vag_core.actions.inverse_dynamics import FramewiseBranch, TemporalBranch
from vag_core.actions.transformer import TransformerBranch
from vag_core.actions.unet import UNetBranch
from vag_core.config import GeneratorConfig

BRANCHES: dict[str, Callable[[GeneratorConfig], ActionBranch]] = {
    "transformer": TransformerBranch,
    "action_only": TransformerBranch,
    "unet": UNetBranch,
    "temporal": TemporalBranch,
    "framewise": FramewiseBranch,
}


def build_action_branch(config: GeneratorConfig) -> ActionBranch | None:
    """The branch for `config.action`; None for a video whose actions are given."""
    return BRANCHES[config.action.kind](config) if config.action.kind in BRANCHES else None
