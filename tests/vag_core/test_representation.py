"""Actions as differences: what they are by definition, exact both ways, and the source's own at every door."""

from pathlib import Path

import pytest
import torch

from vag_core import Generator, GeneratorConfig
from vag_core.config import ACTIONS, ConvTokenizerConfig, DiTConfig, SceneConfig
from vag_core.representation import convert, restore

REFERENCE = torch.tensor([2, -1, 0])  # of three action dimensions, one of which stays as recorded
# Of float32: numbers of size 10 have steps of 1e-6; `restore` of a delta adds 80 roundings of 5e-7 at most.
TOLERANCE = {"absolute": 0, "relative_to_first": 2e-6, "delta": 4e-5}


def walk(steps: int = 80, scale: float = 10) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return (
        scale * torch.rand(16, steps, 3, generator=rng) - scale / 2,
        scale * torch.rand(16, 4, generator=rng) - scale / 2,
    )


def test_differences_are_to_the_first_state_or_to_the_action_before() -> None:
    actions = torch.tensor([[[1.0, 7, 2], [4, 8, 2]]])
    state = torch.tensor([[10.0, 20, 0.5, 30]])
    first = convert(actions, state, "relative_to_first", REFERENCE)
    assert first.tolist() == [[[0.5, 7, -8], [3.5, 8, -8]]]
    assert convert(actions, state, "delta", REFERENCE).tolist() == [[[0.5, 7, -8], [3, 8, 0]]]
    assert convert(actions, state, "absolute", REFERENCE) is actions


@pytest.mark.parametrize("kind", sorted(TOLERANCE))
def test_exact_both_ways(kind: str) -> None:
    actions, state = walk()
    learned = convert(actions, state, kind, REFERENCE)
    torch.testing.assert_close(restore(learned, state, kind, REFERENCE), actions, rtol=0, atol=TOLERANCE[kind])
    torch.testing.assert_close(
        convert(restore(actions, state, kind, REFERENCE), state, kind, REFERENCE), actions, rtol=0, atol=1e-4
    )
    assert torch.equal(learned[..., 1], actions[..., 1])


def small(kind: str, system: str = "transformer") -> GeneratorConfig:
    return GeneratorConfig(
        image_size=[32, 32],
        num_frames=17,
        state_dim=2,
        action_dim=2,
        action_representation=kind,
        tokenizer=ConvTokenizerConfig(latent_channels=8, temporal_stride=4, width=32, depth=1),
        scene=SceneConfig(width=16, depth=1, keypoints=8),
        video=DiTConfig(width=48, depth=1, heads=4),
        action=ACTIONS[system](),
    )


def build(kind: str, system: str = "transformer") -> Generator:
    torch.manual_seed(0)
    generator = Generator(small(kind, system))
    if kind != "absolute":
        generator.trajectory.set_reference([0, 1])
    generator.trajectory.set_statistics([0.5, -1, 15, 15], [2.0, 3, 5, 5], [-20.0] * 4, [40.0] * 4)
    return generator.eval()


@pytest.mark.parametrize("kind", ["delta", "relative_to_first"])
def test_a_generator_takes_and_gives_the_source_s_own(kind: str) -> None:
    generator = build(kind)
    units = generator.trajectory
    actions, states = 5 + 20 * torch.rand(2, 16, 2), 5 + 20 * torch.rand(2, 17, 2)
    back, after = units.unpack(units.pack(actions, states), states[:, 0])
    torch.testing.assert_close(back, actions, rtol=0, atol=5e-5)
    torch.testing.assert_close(after, states[:, 1:], rtol=0, atol=5e-5)
    image, state = torch.zeros(2, 32, 32, 3, dtype=torch.uint8), states[:, 0]
    generator.plan = lambda condition: torch.zeros(2, 16, 4)  # the mean of what was learned
    planned, _ = generator.plan_actions(image, state, ["go"] * 2)
    steps = torch.arange(1, 17)[:, None] if kind == "delta" else torch.ones(16, 1)
    expected = (state[:, None] + steps * torch.tensor([0.5, -1])).clamp(-20, 40)
    torch.testing.assert_close(planned, expected, rtol=0, atol=1e-4)
    sample = generator.sample(image, state, ["go"] * 2, num_inference_steps=1, score=True)
    torch.testing.assert_close(sample.actions, expected, rtol=0, atol=1e-4)
    given = generator.sample(image, state, ["go"] * 2, actions=actions, states=states, num_inference_steps=1)
    assert torch.equal(given.actions, actions)


def test_samples_keep_the_limits_of_recorded_actions() -> None:
    """A difference within its range may lead past a joint's limit, which no difference tells."""
    generator = build("relative_to_first")
    units = generator.trajectory
    state = torch.tensor([[39.0, 0]])
    clipped = units.clip(units.pack(torch.full((1, 16, 2), 45.0), torch.zeros(1, 17, 2) + state[:, None]), state)
    torch.testing.assert_close(units.unpack(clipped, state)[0], torch.full((1, 16, 2), 40.0), rtol=0, atol=1e-4)


@pytest.mark.parametrize("system", sorted(ACTIONS))
def test_every_system_trains_and_loads_with_differences(system: str, tmp_path: Path) -> None:
    generator = build("delta", system)
    batch = {
        "frames": torch.randint(256, (2, 17, 32, 32, 3), dtype=torch.uint8),
        "actions": torch.rand(2, 16, 2),
        "states": torch.rand(2, 17, 2),
        "instruction": ["go", "stay"],
    }
    assert torch.isfinite(generator.loss(batch)[0])
    generator.save_pretrained(tmp_path)
    loaded = Generator.from_pretrained(tmp_path)
    assert loaded.config.action_representation == "delta"
    assert loaded.trajectory.reference.tolist() == [0, 1]


def test_what_a_checkpoint_cannot_mean_is_refused(tmp_path: Path) -> None:
    generator = build("delta")
    generator.trajectory.reference.fill_(2)
    generator.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"reference: expected numbers from -1 to 1"):
        Generator.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="action_representation = 'velocity': expected one of absolute, delta"):
        small("velocity").validate()


def test_a_generator_of_recorded_actions_has_the_weights_it_had() -> None:
    assert not [name for name in build("absolute").state_dict() if "reference" in name]
