"""The convention of time, and the solvers on equations with known answers."""

import math

import pytest
import torch

from vag_core.clocks import schedule
from vag_core.flow_matching import integrate, interpolate, predict_clean, sample_time, velocity


def test_path_ends_at_data_and_noise() -> None:
    data, noise = torch.randn(3, 4), torch.randn(3, 4)
    assert torch.equal(interpolate(data, noise, torch.zeros(3)), data)
    assert torch.equal(interpolate(data, noise, torch.ones(3)), noise)


def test_true_velocity_predicts_the_clean_data_at_every_time() -> None:
    data, noise, t = torch.randn(5, 2, 3), torch.randn(5, 2, 3), torch.rand(5)
    clean = predict_clean(interpolate(data, noise, t), velocity(data, noise), t)
    torch.testing.assert_close(clean, data, atol=1e-6, rtol=0)


def test_times_lie_inside_the_interval() -> None:
    t = sample_time(10_000, "cpu", start=0.25)
    assert t.min() > 0
    assert (t == 1).float().mean() == pytest.approx(0.25, abs=0.02)
    assert t[t < 1].mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2), ("adams_bashforth", 2)])
def test_solver_converges_with_its_order(method: str, order: int) -> None:
    """dx/dt = x from t = 1 to 0 shrinks x by e."""
    start = torch.ones(1, 1, dtype=torch.float64)

    def error(steps: int) -> float:
        ends = integrate(lambda x, t: x, [start, start], schedule(steps), method)
        return abs(ends[1].item() - math.exp(-1))

    measured = math.log2(error(64) / error(128))
    # Heun's last step is an Euler step, which costs it a little of its order.
    assert measured == pytest.approx(order, abs=0.15)


def test_straight_paths_need_one_step_and_streams_stay_in_step() -> None:
    data = [torch.randn(2, 3), torch.randn(2, 5)]
    noise = [torch.randn(2, 3), torch.randn(2, 5)]
    times = []

    def exact(streams: tuple[torch.Tensor, ...], t: tuple[float, ...]) -> tuple[torch.Tensor, ...]:
        times.append(t)
        return tuple(n - d for n, d in zip(noise, data, strict=True))

    for steps in (1, 4):
        for end, wanted in zip(integrate(exact, noise, schedule(steps)), data, strict=True):
            torch.testing.assert_close(end, wanted)
    assert times == [(t, t) for t in (1.0, 1.0, 0.75, 0.5, 0.25)]


def test_video_first_and_pinned_clocks() -> None:
    assert schedule(2, "video_first") == [(1, 1), (0.5, 1), (0, 1), (0, 0.5), (0, 0)]
    assert schedule(2, "actions_once") == [(1, 1), (0.5, 1), (0, 1), (0, 0)]
    assert schedule(2, "actions_once", pinned=(True, False)) == [(0, 1), (0, 0)]
    assert schedule(2, pinned=(True, False)) == [(0, 1), (0, 0.5), (0, 0)]
    assert schedule(2, "video_first", pinned=(False, True)) == [(1, 0), (0.5, 0), (0, 0)]


@pytest.mark.parametrize("method", ["euler", "heun", "adams_bashforth"])
@pytest.mark.parametrize("order", ["synchronised", "video_first"])
def test_each_stream_goes_by_its_clock_and_evaluations_are_counted(method: str, order: str) -> None:
    """dx/dt = t for the one, 2 t for the other; whoever waits does not move."""
    calls = []

    def slope(streams: tuple[torch.Tensor, ...], t: tuple[float, ...]) -> tuple[torch.Tensor, ...]:
        calls.append(t)
        return torch.tensor([t[0]]), torch.tensor([2 * t[1]])

    ends = integrate(slope, [torch.zeros(1), torch.zeros(1)], schedule(50, order), method)
    tolerance = 0.03 if method == "euler" else 0.001
    assert ends[0].item() == pytest.approx(-0.5, abs=tolerance)
    assert ends[1].item() == pytest.approx(-1, abs=2 * tolerance)
    each = 99 if method == "heun" else 50  # Heun's last step is an Euler step
    assert len(calls) == each * (1 if order == "synchronised" else 2)


def test_bad_sampler_settings_are_named() -> None:
    with pytest.raises(ValueError, match="unipc"):
        integrate(lambda x, t: x, [torch.zeros(1)], [(1.0,), (0.0,)], "unipc")
    with pytest.raises(ValueError, match="num_inference_steps = 0"):
        schedule(0)
    with pytest.raises(ValueError, match="actions_first"):
        schedule(4, "actions_first")
