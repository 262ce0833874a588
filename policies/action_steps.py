"""Processor steps that let a policy learn actions as differences, and hand out actions as they were recorded.

Definitions: see `vag_core.representation`. LeRobot's own steps do not serve: they take the state of the newest picture
for every action of a chunk, which drifts through the chunk wherever a policy hands out actions one by one (its
`lerobot-rollout` refuses them for that reason, `lerobot-eval` does not); they find the state by place alone; and they
know no deltas. These are subclasses, because LeRobot connects such a pair when it loads a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from lerobot.lerobot_types import EnvTransition, TransitionKey
from lerobot.processor import (
    AbsoluteActionsProcessorStep,
    NormalizerProcessorStep,
    PolicyProcessorPipeline,
    ProcessorStepRegistry,
    RelativeActionsProcessorStep,
    UnnormalizerProcessorStep,
)
from torch import Tensor

from policies.known_types import CONVERT_ACTIONS, RESTORE_ACTIONS
from toolkit.base.errors import UserError
from toolkit.data.episode import STATE
from vag_core.representation import check_reference, convert, restore

CHUNK_BEGINS = "action_chunk_begins"  # key of a prepared batch: what a policy calls when it predicts a chunk


def tell_chunk_begins(batch: dict[str, Any]) -> None:
    """Called by a policy that predicts a chunk: the actions that it hands out from now on belong to this state."""
    begins: Callable[[], None] | None = batch.get(CHUNK_BEGINS)
    if begins is not None:
        begins()


@ProcessorStepRegistry.register(name=CONVERT_ACTIONS)
@dataclass
class ConvertActionsStep(RelativeActionsProcessorStep):
    """Recorded actions (B, T, A) as the policy learns them, by the state (B, S) beside them, which it remembers.

    representation, reference: see `vag_core.representation`. `enabled` stays False: it tells LeRobot's engines that
    actions must be converted for them, which is done here.
    """

    representation: str = "absolute"
    reference: list[int] = field(default_factory=list)
    _chunk_state: Tensor | None = field(default=None, init=False, repr=False)
    _handed_out: Tensor | None = field(default=None, init=False, repr=False)  # (B, t, A) of the running chunk

    def __call__(self, transition: EnvTransition) -> EnvTransition:
        """Raises ValueError for an observation without a state."""
        state = (transition.get(TransitionKey.OBSERVATION) or {}).get(STATE)
        if not isinstance(state, Tensor):
            raise ValueError(f"no '{STATE}' in the batch: the policy's actions are relative to it")
        self._last_state = state[:, -1] if state.ndim == 3 else state
        transition = transition.copy()
        if isinstance(actions := transition.get(TransitionKey.ACTION), Tensor):
            transition[TransitionKey.ACTION] = convert(actions, *self.arguments(self._last_state, actions))
        else:
            extra = transition.get(TransitionKey.COMPLEMENTARY_DATA) or {}
            transition[TransitionKey.COMPLEMENTARY_DATA] = {**extra, CHUNK_BEGINS: self.begin_chunk}
        return transition

    def arguments(self, state: Tensor, actions: Tensor) -> tuple[Tensor, str, Tensor]:
        """What `convert` and `restore` take beside actions."""
        return state.to(actions), self.representation, torch.tensor(self.reference, device=actions.device)

    def begin_chunk(self) -> None:
        """The newest state is the one that a chunk is predicted at."""
        self._chunk_state, self._handed_out = self._last_state, None

    def one_by_one(self, action: Tensor) -> Tensor:
        """The next action (B, A) of a chunk as recorded. Raises UserError if nobody told when the chunk began."""
        if self._chunk_state is None:
            raise UserError(
                "actions are learned relative to the state at which a chunk was predicted, and this policy type does "
                "not tell when that was; run it with `vag evaluate`, or train pi05_compact or diffusion_compact"
            )
        before = [] if self._handed_out is None else [self._handed_out]
        self._handed_out = torch.cat([*before, action[:, None]], dim=1)
        return restore(self._handed_out, *self.arguments(self._chunk_state, action))[:, -1]

    def reset(self) -> None:
        self._last_state = None  # type: ignore[assignment]
        self._chunk_state = self._handed_out = None

    def get_config(self) -> dict[str, Any]:
        return {"representation": self.representation, "reference": self.reference}


@ProcessorStepRegistry.register(name=RESTORE_ACTIONS)
@dataclass
class RestoreActionsStep(AbsoluteActionsProcessorStep):
    """A chunk (B, T, A), or its actions one by one (B, A), back as they were recorded."""

    def __call__(self, transition: EnvTransition) -> EnvTransition:
        """Raises RuntimeError without the other step, or before that has seen a state."""
        step, actions = self.relative_step, transition.get(TransitionKey.ACTION)
        if not isinstance(step, ConvertActionsStep) or step.get_cached_state() is None:
            raise RuntimeError(f"{RESTORE_ACTIONS}: no state; expected '{CONVERT_ACTIONS}' to have seen one")
        transition = transition.copy()
        if isinstance(actions, Tensor) and actions.ndim == 3:
            state = step.get_cached_state()
            assert state is not None
            transition[TransitionKey.ACTION] = restore(actions, *step.arguments(state, actions))
        elif isinstance(actions, Tensor):
            transition[TransitionKey.ACTION] = step.one_by_one(actions)
        return transition

    def get_config(self) -> dict[str, Any]:
        return {}


def converting_step(preprocessor: PolicyProcessorPipeline) -> ConvertActionsStep | None:
    """The step of a policy that learns actions as differences; None of one that learns them as recorded."""
    return next((step for step in preprocessor.steps if isinstance(step, ConvertActionsStep)), None)


def with_steps(
    processors: tuple[PolicyProcessorPipeline, PolicyProcessorPipeline], representation: str, reference: list[int]
) -> None:
    """Put the pair in: before what normalises, and after what undoes it."""
    first = ConvertActionsStep(representation=representation, reference=reference)
    last = RestoreActionsStep(relative_step=first)
    before, after = (list(pipeline.steps) for pipeline in processors)
    place = next(i for i, step in enumerate(before) if isinstance(step, NormalizerProcessorStep))
    processors[0].steps = [*before[:place], first, *before[place:]]
    place = 1 + next(i for i, step in enumerate(after) if isinstance(step, UnnormalizerProcessorStep))
    processors[1].steps = [*after[:place], last, *after[place:]]


def check_steps(processors: tuple[PolicyProcessorPipeline, PolicyProcessorPipeline], config: Any) -> None:
    """Raise ValueError unless both steps are there, or neither, and they have the widths of the policy."""
    step = converting_step(processors[0])
    if (step is None) == any(isinstance(other, RestoreActionsStep) for other in processors[1].steps):
        raise ValueError(f"expected '{CONVERT_ACTIONS}' before and '{RESTORE_ACTIONS}' after the policy, or neither")
    if step is not None:
        if not isinstance(step.reference, list) or any(type(number) is not int for number in step.reference):
            raise ValueError(f"{CONVERT_ACTIONS}: 'reference' is no list of whole numbers")
        widths = config.action_feature.shape[0], config.robot_state_feature.shape[0]
        check_reference(step.representation, torch.tensor(step.reference), *widths)
