"""The two streams: identity at init, where gradients reach, padding, guidance, checkpoints, learning."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from toolkit.data.clips import ClipStore
from toolkit.data.mixture import GeneratorClips
from vag_core import Generator, GeneratorConfig
from vag_core.config import ActionConfig, BridgeConfig, TokenizerConfig, VideoConfig


def small(**changes: object) -> GeneratorConfig:
    config = GeneratorConfig(
        image_size=32,
        num_frames=17,
        state_dim=2,
        action_dim=2,
        tokenizer=TokenizerConfig(latent_channels=8, temporal_stride=4, width=32, depth=1),
        video=VideoConfig(width=48, depth=2, heads=4),
        bridge=BridgeConfig(grid=[2, 2, 2], width=32),
        action=ActionConfig(channels=[32, 64]),
    )
    return replace(config, **changes)


@pytest.fixture
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(small())


@pytest.fixture
def batch(store: ClipStore) -> dict:
    return GeneratorClips(store, 6, 17, seed=0, random_start=False).batch(0)


def test_video_branch_starts_at_zero_velocity_and_identity_blocks(generator: Generator) -> None:
    tokens, condition = torch.randn(2, 20, 48), torch.randn(2, 48)
    for block in generator.video.blocks:
        assert torch.equal(block(tokens, condition, 5), tokens)
    velocity = generator.video(torch.randn(2, 8, 4, 4, 4), torch.randn(2, 8, 1, 4, 4), torch.rand(2), condition)
    assert velocity.abs().max() == 0


def test_action_loss_trains_the_bridge_but_not_the_video_branch(generator: Generator, batch: dict) -> None:
    latents = torch.randn(6, *generator.config.latent_shape)
    trajectory = generator.pack(batch["actions"], batch["states"])
    _, action = generator.pair_loss(
        latents, trajectory, batch["states"][:, 0], batch["instruction"], torch.full((6,), 0.5), torch.ones(6)
    )
    action.mean().backward()
    assert generator.bridge.project.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in generator.video.parameters())
    assert all(p.grad is None for p in generator.tokenizer.parameters())


def test_padded_steps_do_not_count(generator: Generator, batch: dict) -> None:
    is_pad = torch.zeros(6, 16, dtype=torch.bool)
    is_pad[:, 12:] = True
    changed = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    changed["actions"][:, 12:] = 7.0
    losses = []
    for actions in (batch["actions"], changed["actions"]):
        torch.manual_seed(1)
        latents = torch.zeros(6, *generator.config.latent_shape)
        trajectory = generator.pack(actions, batch["states"])
        t = torch.zeros(6)  # at t = 0 the network's input holds the padded values: only the mask may hide them
        _, action = generator.pair_loss(
            latents, trajectory, batch["states"][:, 0], batch["instruction"], t, torch.ones(6), is_pad
        )
        losses.append(action)
    # The U-Net sees a few padded neighbours; the error of the padded steps themselves (7^2) must not enter.
    assert (losses[0] - losses[1]).abs().max() < 1.0


def test_published_bridge_has_no_layer_and_tiles_one_cell() -> None:
    generator = Generator(small(bridge=BridgeConfig(grid=[1, 1, 1], first_frame=False, width=20)))
    assert sum(p.numel() for p in generator.bridge.parameters()) == 0
    latents = torch.randn(3, 8, 5, 4, 4)
    condition = generator.bridge(latents)
    assert condition.shape == (3, 20)
    torch.testing.assert_close(condition[:, :8], latents.mean(dim=(2, 3, 4)))
    assert torch.equal(condition[:, 8:16], condition[:, :8])


def test_factorised_attention_runs_and_has_the_same_shapes() -> None:
    video = Generator(small(video=VideoConfig(width=48, depth=2, heads=4, attention="factorised"))).video
    assert video(torch.randn(2, 8, 4, 4, 4), torch.randn(2, 8, 1, 4, 4), torch.rand(2), torch.randn(2, 48)).shape == (
        2,
        8,
        4,
        4,
        4,
    )


def test_sample_shapes_seed_and_units(generator: Generator, batch: dict) -> None:
    generator.eval()
    generator.set_statistics([0.0, 0.0, 15.0, 15.0], [1.0, 1.0, 5.0, 5.0])
    image, state, instruction = batch["frames"][:, 0], batch["states"][:, 0], batch["instruction"]

    def draw(seed: int, **options: object):
        rng = torch.Generator().manual_seed(seed)
        return generator.sample(image, state, instruction, num_inference_steps=3, rng=rng, **options)

    first = draw(0)
    assert first.frames.shape == (6, 17, 32, 32, 3)
    assert first.frames.dtype == torch.uint8
    assert torch.equal(first.frames[:, 0], image)
    assert torch.equal(first.states[:, 0], state)
    assert first.actions.shape == (6, 16, 2)
    assert first.states.shape == (6, 17, 2)
    assert torch.equal(first.actions, draw(0).actions)
    assert not torch.equal(first.actions, draw(1).actions)
    # With a generator per pair, a pair and its score do not depend on their neighbours.
    rngs = [torch.Generator().manual_seed(i) for i in range(6)]
    together = generator.sample(image, state, instruction, num_inference_steps=3, rng=rngs)
    alone = generator.sample(
        image[4:5], state[4:5], instruction[4:5], num_inference_steps=3, rng=[torch.Generator().manual_seed(4)]
    )
    torch.testing.assert_close(alone.actions[0], together.actions[4], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(alone.loss[0], together.loss[4], rtol=1e-3, atol=1e-3)
    # A guidance scale of 1 is no guidance; another one changes the outcome once the instruction matters.
    torch.nn.init.normal_(generator.action_instruction.null)
    assert torch.equal(draw(0, guidance_scale=1.0).actions, first.actions)
    assert not torch.equal(draw(0, guidance_scale=3.0).actions, first.actions)
    # What leaves the range of the training data is clipped, and nothing else changes.
    generator.set_statistics([0.0, 0.0, 15.0, 15.0], [1.0, 1.0, 5.0, 5.0], [-0.5, -9, 14, 0], [0.25, 9, 16, 99])
    clipped = draw(0)
    assert clipped.actions[..., 0].min() == -0.5
    assert clipped.actions[..., 0].max() == 0.25
    assert clipped.states[:, 1:, 0].max() == 16
    assert torch.equal(clipped.actions[..., 1], first.actions[..., 1].clamp(-9, 9))
    assert torch.equal(clipped.frames, first.frames)


def test_bad_inputs_to_sample_are_named(generator: Generator) -> None:
    image, state = torch.zeros(1, 32, 32, 3, dtype=torch.uint8), torch.zeros(1, 2)
    with pytest.raises(ValueError, match=r"image: expected .*32"):
        generator.sample(torch.zeros(1, 64, 64, 3, dtype=torch.uint8), state, ["a"])
    with pytest.raises(ValueError, match="state: expected"):
        generator.sample(image, torch.zeros(1, 3), ["a"])
    with pytest.raises(ValueError, match="instruction: expected 1"):
        generator.sample(image, state, ["a", "b"])
    with pytest.raises(ValueError, match="instruction of 70 bytes; the generator reads 64"):
        generator.sample(image, state, ["a" * 70])
    with pytest.raises(ValueError, match="expected strings"):
        generator.sample(image, state, torch.zeros(1, 384))


def test_checkpoint_round_trip_is_exact_and_strict(generator: Generator, tmp_path: Path) -> None:
    generator.save_pretrained(tmp_path)
    again = Generator.from_pretrained(tmp_path)
    assert again.config == generator.config
    for name, tensor in generator.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name

    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "state_dim": 3}))
    with pytest.raises(ValueError, match="does not fit"):
        Generator.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "type": "pi05_compact"}))
    with pytest.raises(ValueError, match="got 'pi05_compact'"):
        Generator.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not found"):
        Generator.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"num_frames": 16}, "num_frames"),
        ({"image_size": 30}, "image_size"),
        ({"bridge": BridgeConfig(grid=[4, 4])}, "bridge.grid"),
        ({"video": VideoConfig(attention="sparse")}, "video.attention"),
    ],
)
def test_configs_that_do_not_fit_are_refused(changes: dict, field: str) -> None:
    with pytest.raises(ValueError, match=field.replace(".", r"\.")):
        Generator(small(**changes))


def test_both_streams_learn_one_batch(generator: Generator, batch: dict) -> None:
    """Overfitting: both losses must fall far below the loss of predicting nothing."""
    generator.set_statistics([0.0, 0.0, 15.0, 15.0], [0.6, 0.6, 4.0, 4.0])
    batch = {**batch, "latents": torch.randn(6, *generator.config.latent_shape)}
    optimizer = torch.optim.AdamW(generator.parameters(), lr=2e-3)
    losses = []
    for _ in range(150):
        loss, metrics = generator.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append((metrics["video_loss"].item(), metrics["action_loss"].item()))
    start, end = (torch.tensor(part).mean(0) for part in (losses[:10], losses[-20:]))
    assert end[0] < 0.7 * start[0]
    assert end[1] < 0.5 * start[1]
