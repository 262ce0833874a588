"""What training draws is what may be sampled and scored; anything else is refused."""

import pytest
import torch
from torch import Tensor

from vag_core.clocks import Mode, clocks_of, sampling_modes, without_labels
from vag_core.config import (
    ACTIONS,
    ActionConfig,
    ActionOnlyConfig,
    ForwardDynamicsConfig,
    FramewiseConfig,
    TemporalConfig,
    TransformerConfig,
    UNetConfig,
)

CPU = torch.device("cpu")
SYSTEMS: list[tuple[ActionConfig, set[Mode]]] = [
    (UNetConfig(), {Mode.JOINT, Mode.SCORE}),
    (
        TransformerConfig(plan_share=0.0),
        {Mode.JOINT, Mode.SCORE, Mode.VIDEO_FIRST, Mode.INVERSE_DYNAMICS, Mode.FORWARD_DYNAMICS},
    ),
    (
        TransformerConfig(plan_share=0.8),
        {Mode.JOINT, Mode.SCORE, Mode.ACTIONS_FIRST, Mode.PLAN, Mode.INVERSE_DYNAMICS, Mode.FORWARD_DYNAMICS},
    ),
    (TemporalConfig(), {Mode.VIDEO_FIRST, Mode.INVERSE_DYNAMICS, Mode.SCORE}),
    (FramewiseConfig(), {Mode.VIDEO_FIRST, Mode.INVERSE_DYNAMICS, Mode.SCORE}),
    (ActionOnlyConfig(plan_share=0.0), {Mode.ACTIONS_ALONE, Mode.SCORE}),
    (ActionOnlyConfig(plan_share=0.8), {Mode.ACTIONS_ALONE, Mode.SCORE, Mode.PLAN}),
    (ForwardDynamicsConfig(), {Mode.FORWARD_DYNAMICS}),
]
NAMES = [f"{action.kind}-{getattr(action, 'plan_share', 0)}" for action, _ in SYSTEMS]


def needed(mode: Mode, t_video: Tensor, t_action: Tensor) -> list[Tensor]:
    """Which of the drawn times are among those that a mode of a denoising system passes through."""
    under_way = (t_video > 0) & (t_video < 1)
    inverse, forward = (t_video == 0) & (t_action > 0), under_way & (t_action == 0)
    return {
        Mode.JOINT: [under_way & (t_video == t_action)],
        Mode.SCORE: [under_way & (t_video == t_action)],
        Mode.VIDEO_FIRST: [under_way & (t_action == 1), inverse],
        Mode.INVERSE_DYNAMICS: [inverse],
        Mode.FORWARD_DYNAMICS: [forward],
        Mode.ACTIONS_FIRST: [forward],
    }[mode]


def test_every_kind_of_system_is_asked_about() -> None:
    assert {action.kind for action, _ in SYSTEMS} == set(ACTIONS)


@pytest.mark.parametrize(("action", "modes"), SYSTEMS, ids=NAMES)
def test_modes_of_each_system_and_its_own_order_is_one_of_them(action: ActionConfig, modes: set[Mode]) -> None:
    clocks = clocks_of(action)
    assert clocks.modes == modes
    pinned = isinstance(action, ForwardDynamicsConfig)
    for mode in sampling_modes(clocks.order, False, pinned, action.makes_video):
        clocks.check(mode)


@pytest.mark.parametrize(
    ("action", "modes"), [one for one in SYSTEMS if one[0].kind in ("unet", "transformer", "forward_dynamics")]
)
def test_a_mode_is_allowed_exactly_where_its_times_are_drawn(action: ActionConfig, modes: set[Mode]) -> None:
    torch.manual_seed(0)
    t_video, t_action = clocks_of(action).draw(10_000, CPU)
    plans = getattr(action, "plan_share", 0) > 0
    for mode in set(Mode) - {Mode.PLAN, Mode.ACTIONS_ALONE}:
        drawn = min(float(times.float().mean()) for times in needed(mode, t_video, t_action)) > 0.01
        assert (drawn and (mode != Mode.ACTIONS_FIRST or plans)) == (mode in modes), mode


@pytest.mark.parametrize("action", [TemporalConfig(), FramewiseConfig()])
def test_two_stage_systems_denoise_the_video_alone(action: ActionConfig) -> None:
    t_video, t_action = clocks_of(action).draw(100, CPU)
    assert (t_action == 1).all()
    assert t_video.min() > 0


def test_without_video_both_clocks_are_that_of_the_actions() -> None:
    t_video, t_action = clocks_of(ActionOnlyConfig()).draw(1000, CPU)
    assert torch.equal(t_video, t_action)
    assert (t_action == 1).float().mean() == pytest.approx(0.5, abs=0.06)


def test_what_was_never_trained_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"^inverse dynamics: .*action\.kind = unet is never trained.*: joint, score$"):
        clocks_of(UNetConfig()).check(Mode.INVERSE_DYNAMICS)
    with pytest.raises(ValueError, match=r"^plan: .* transformer, action\.plan_share = 0 is never"):
        clocks_of(TransformerConfig(plan_share=0.0)).check(Mode.PLAN)


def test_modes_of_orders_and_given_streams() -> None:
    assert sampling_modes("synchronised", False, False, True) == [Mode.JOINT]
    assert sampling_modes("video_first", False, False, True) == [Mode.VIDEO_FIRST]
    assert sampling_modes("actions_once", False, False, True) == [Mode.VIDEO_FIRST]
    assert sampling_modes("actions_once", False, False, False) == [Mode.ACTIONS_ALONE]
    assert sampling_modes("actions_first", False, False, False) == [Mode.ACTIONS_FIRST]
    assert sampling_modes("actions_first", True, False, True) == [Mode.INVERSE_DYNAMICS]
    assert sampling_modes("synchronised", True, True, True) == [Mode.INVERSE_DYNAMICS, Mode.FORWARD_DYNAMICS]
    with pytest.raises(ValueError, match="sampler order 'backwards': expected one of synchronised"):
        sampling_modes("backwards", False, False, True)


def test_unknown_actions_are_noise_and_are_not_inferred() -> None:
    t_video, t_action = torch.tensor([0.0, 0.0, 0.4, 0.4]), torch.tensor([0.3, 0.3, 0.4, 0.0])
    video, action = without_labels(t_video, t_action, torch.tensor([True, False, True, False]))
    assert action.tolist() == pytest.approx([0.3, 1.0, 0.4, 1.0])
    assert video[[0, 2, 3]].tolist() == pytest.approx([0.0, 0.4, 0.4])
    assert video[1] > 0


@pytest.mark.parametrize(("share", "joint"), [(0.0, 10), (0.5, 5), (0.8, 2), (0.99, 1)])
def test_a_batch_is_joint_clips_and_plan_clips(share: float, joint: int) -> None:
    assert clocks_of(TransformerConfig(plan_share=share)).num_joint_clips(10) == joint
