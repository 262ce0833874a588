"""The convention of time, and the solvers on equations with known answers."""

import math

import pytest
import torch

from vag_core.flow_matching import interpolate, predict_clean, sample_time, velocity
from vag_core.sampler import integrate


def test_path_ends_at_data_and_noise() -> None:
    data, noise = torch.randn(3, 4), torch.randn(3, 4)
    assert torch.equal(interpolate(data, noise, torch.zeros(3)), data)
    assert torch.equal(interpolate(data, noise, torch.ones(3)), noise)


def test_true_velocity_predicts_the_clean_data_at_every_time() -> None:
    data, noise, t = torch.randn(5, 2, 3), torch.randn(5, 2, 3), torch.rand(5)
    clean = predict_clean(interpolate(data, noise, t), velocity(data, noise), t)
    torch.testing.assert_close(clean, data, atol=1e-6, rtol=0)


def test_times_lie_inside_the_interval() -> None:
    t = sample_time(10_000, "cpu")
    assert t.min() > 0
    assert t.max() < 1
    assert abs(t.mean() - 0.5) < 0.02


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
def test_solver_converges_with_its_order(method: str, order: int) -> None:
    """dx/dt = x from t = 1 to 0 shrinks x by e."""
    start = torch.ones(1, 1, dtype=torch.float64)

    def error(steps: int) -> float:
        (end,) = integrate(lambda x, t: x, [start], steps, method)
        return abs(end.item() - math.exp(-1))

    measured = math.log2(error(64) / error(128))
    # Heun's last step is an Euler step, which costs it a little of its order.
    assert measured == pytest.approx(order, abs=0.15)


def test_straight_paths_need_one_step_and_streams_stay_in_step() -> None:
    data = [torch.randn(2, 3), torch.randn(2, 5)]
    noise = [torch.randn(2, 3), torch.randn(2, 5)]
    times = []

    def exact(streams: tuple[torch.Tensor, ...], t: float) -> tuple[torch.Tensor, ...]:
        times.append(t)
        return tuple(n - d for n, d in zip(noise, data, strict=True))

    for steps in (1, 4):
        for end, wanted in zip(integrate(exact, noise, steps), data, strict=True):
            torch.testing.assert_close(end, wanted)
    assert times == [1.0, 1.0, 0.75, 0.5, 0.25]


def test_bad_sampler_settings_are_named() -> None:
    with pytest.raises(ValueError, match="unipc"):
        integrate(lambda x, t: x, [torch.zeros(1)], 4, "unipc")
    with pytest.raises(ValueError, match="num_inference_steps = 0"):
        integrate(lambda x, t: x, [torch.zeros(1)], 0)
