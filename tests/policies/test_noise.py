"""The noise of a sample is its own, at the settings that ship: alone, in a batch, and for another set of weights."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
import torch
from lerobot.policies.pretrained import PreTrainedPolicy

from policies.factory import CONFIGS, PolicyObjective
from policies.noise import predict_chunk
from toolkit.data.episode import IMAGE, STATE, TASK
from toolkit.evaluation.rollout import rollout

Make = Callable[..., PolicyObjective]
SEEDS = [11, 12, 13]


def observation(size: int) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(0)
    images, states = torch.rand(size, 3, 64, 64, generator=rng), torch.rand(size, 4, generator=rng)
    return {IMAGE: images, STATE: states, TASK: ["push the puck", "open the door", "press the button"][:size]}


def part(batch: dict[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    return {k: [v[i] for i in rows] if isinstance(v, list) else v[list(rows)] for k, v in batch.items()}


def watch(objective: PolicyObjective) -> list[torch.Tensor]:
    """What the sampler of a policy begins with, call by call."""
    seen: list[torch.Tensor] = []
    policy: Any = objective.policy
    if objective.policy_type == "pi05_compact":
        sample = policy.model.sample
        policy.model.sample = lambda *given: (seen.append(given[-1].clone()), sample(*given))[1]
    else:
        sample = policy.diffusion.noise_scheduler.set_timesteps
        steps: list[int] = []
        policy.diffusion.noise_scheduler.set_timesteps = lambda *given: (steps.append(1), sample(*given))[1]
        policy.diffusion.unet.register_forward_pre_hook(
            lambda _, given: seen.append(given[0].clone()) if len(seen) < len(steps) else None
        )
    return seen


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_alone_in_a_batch_and_in_another_order(kind: str, shipped: Make) -> None:
    objective, batch = shipped(kind), observation(3)
    seen = watch(objective)
    together = objective.predict_action_chunk(batch, SEEDS)
    state = torch.get_rng_state()
    backwards = objective.predict_action_chunk(part(batch, [2, 1, 0]), SEEDS[::-1])
    alone = objective.predict_action_chunk(part(batch, [1]), SEEDS[1:2])
    assert torch.equal(torch.get_rng_state(), state)  # nothing was drawn from it
    assert torch.equal(seen[0][1], seen[2][0])
    assert torch.equal(seen[0].flip(0), seen[1])
    assert (seen[0][0] - seen[0][1]).abs().max() > 0.1
    for found in (backwards[1], alone[0]):
        torch.testing.assert_close(found, together[1], rtol=1e-4, atol=1e-4)
    other = shipped(kind, weights=1)
    noise = watch(other)
    other.predict_action_chunk(part(batch, [1]), SEEDS[1:2])
    assert torch.equal(noise[0], seen[2])


def test_a_stochastic_solver_takes_the_noise_of_its_steps_from_the_same_seed(shipped: Make) -> None:
    """DDPM, LeRobot's own default; with a network that gives zeros a chunk is nothing but noise."""
    objective = shipped("diffusion", noise_scheduler_type="DDPM", prediction_type="epsilon")
    unet = cast(Any, objective.policy).diffusion.unet
    unet.forward = lambda sample, *_, **__: torch.zeros_like(sample)
    batch = observation(3)
    together = objective.predict_action_chunk(batch, SEEDS)
    assert torch.equal(objective.predict_action_chunk(part(batch, [1]), SEEDS[1:2])[0], together[1])
    assert (together[0] - together[1]).abs().max() > 0.01
    assert not torch.equal(objective.predict_action_chunk(part(batch, [1]), [7])[0], together[1])
    torch.manual_seed(0)
    free = objective.predict_action_chunk(batch)  # without seeds it is the global generator again
    torch.manual_seed(0)
    assert torch.equal(objective.predict_action_chunk(batch), free)


def test_the_noise_of_a_chunk_is_as_wide_as_the_policy_says(shipped: Make) -> None:
    for temperature in (0.5, 1.0):
        objective = shipped("pi05_compact", sampling_temperature=temperature)
        seen = watch(objective)
        objective.predict_action_chunk(part(observation(3), [0] * 3), SEEDS)
        assert seen[0].std().item() == pytest.approx(temperature, rel=0.2)


def test_a_policy_without_a_door_for_noise_predicts_samples_one_by_one() -> None:
    class Drawing:
        config, name = None, "drawing"

        def predict_action_chunk(self, batch: dict[str, Any]) -> torch.Tensor:
            sizes.append(len(batch[STATE]))
            return torch.randn(len(batch[STATE]), 2, 4)

    sizes: list[int] = []
    policy, batch = cast(PreTrainedPolicy, Drawing()), observation(3)
    together = predict_chunk(policy, batch, SEEDS)
    assert sizes == [1, 1, 1]
    assert torch.equal(predict_chunk(policy, part(batch, [1]), SEEDS[1:2])[0], together[1])
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("kind", ["pi05_compact", "diffusion_compact"])
def test_a_scene_alone_beside_others_and_under_two_arms(kind: str, shipped: Make) -> None:
    def noise(weights: int, scenes: dict[str, list[int]], row: int) -> list[torch.Tensor]:
        objective = shipped(kind, weights)
        seen = watch(objective)
        rollout(objective, scenes, max_steps=16, image_size=(64, 64), seed=4)
        return [part[row] for part in seen]

    alone = noise(0, {"push": [3]}, 0)
    assert len(alone) == 2  # chunks
    for others in (noise(1, {"push": [3]}, 0), noise(0, {"drawer-open": [0], "push": [4, 3]}, 2)):
        assert all(torch.equal(*pair) for pair in zip(alone, others, strict=True))
