"""The numbers that every system trains with, at fixed seeds: a change of them is a change of the method."""

import zlib
from typing import Any

import pytest
import torch

from vag_core import Generator, GeneratorConfig
from vag_core.config import (
    ActionConfig,
    ActionOnlyConfig,
    BridgeConfig,
    ConvTokenizerConfig,
    DiTConfig,
    ForwardDynamicsConfig,
    FramewiseConfig,
    SceneConfig,
    TemporalConfig,
    TransformerConfig,
    UNetConfig,
)
from vag_core.layers import AdaLNBlock, ModulatedNorm

STEPS = 4
SIZES = {"width": 32, "depth": 1, "heads": 2}
# Video and action loss of the last step; of samples the mean square of the actions, that of the change to the first
# picture, and the score.
EXPECTED: dict[str, tuple[ActionConfig, tuple[float, ...]]] = {
    "transformer": (TransformerConfig(**SIZES), (1.5428, 0.69922, 0.48657, 612.57, 2.5476)),
    "transformer_without_plans": (
        TransformerConfig(**SIZES, plan_share=0.0),
        (1.5409, 0.62748, 0.58428, 608.48, 2.3494),
    ),
    "unet": (
        UNetConfig(channels=[16, 32], bridge=BridgeConfig(grid=[2, 2, 2], width=32)),
        (1.4895, 1.463, 1.7218, 607.11, 4.1864),
    ),
    "temporal": (TemporalConfig(**SIZES), (1.552, 0.78776, 0.75087, 607.43, 2.1565)),
    "framewise": (FramewiseConfig(backbone="resnet10t"), (1.4895, 0.49667, 0.08953, 607.11, 2.1561)),
    "action_only": (ActionOnlyConfig(**SIZES), (0, 0.72732, 0.49359, 0, 0.047192)),
    "forward_dynamics": (ForwardDynamicsConfig(), (1.4989, 0, 1.1111, 606.59)),
}


def make(action: ActionConfig) -> Generator:
    """A small generator whose weights do not depend on the order in which it is built."""
    config = GeneratorConfig(
        image_size=[32, 32],
        num_frames=9,
        state_dim=2,
        action_dim=2,
        tokenizer=ConvTokenizerConfig(latent_channels=4, temporal_stride=4, width=16, depth=1),
        scene=SceneConfig(width=16, depth=1, keypoints=8),
        video=DiTConfig(width=32, depth=2, heads=2),
        action=action,
    )
    generator = Generator(config)
    for name, parameter in generator.named_parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    generator.trajectory.set_statistics([0.1] * 4, [1.5] * 4, [-2.0] * 4, [2.0] * 4)
    return generator


def make_batch(size: int = 10) -> dict[str, Any]:
    torch.manual_seed(1)
    labelled = torch.ones(size, dtype=torch.bool)
    labelled[1] = False
    padded = torch.zeros(size, 8, dtype=torch.bool)
    padded[0, 5:] = True
    return {
        "frames": torch.randint(0, 256, (size, 9, 32, 32, 3), dtype=torch.uint8),
        "actions": torch.randn(size, 8, 2),
        "states": torch.randn(size, 9, 2),
        "instruction": ["push", "pull"] * (size // 2),
        "is_pad": padded,
        "has_actions": labelled,
    }


@pytest.mark.parametrize("system", EXPECTED)
def test_losses_and_samples_are_those_of_before(system: str) -> None:
    action, expected = EXPECTED[system]
    generator, batch = make(action), make_batch()
    # Where there are plans the first clips are the pairs: one without labels among them.
    order = [1, 0, *range(2, 10)] if getattr(action, "plan_share", 0) else list(range(10))
    ordered = {key: [v[i] for i in order] if isinstance(v, list) else v[order] for key, v in batch.items()}
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(generator.parameters(), lr=0.01)
    for _ in range(STEPS):
        loss, metrics = generator.train().loss(ordered)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pinned = {"actions": batch["actions"], "states": batch["states"]} if system == "forward_dynamics" else {}
    sample = generator.eval().sample(
        batch["frames"][:, 0],
        batch["states"][:, 0],
        batch["instruction"],
        num_inference_steps=3,
        rng=torch.Generator().manual_seed(0),
        score=not pinned,
        **pinned,
    )
    moved = (sample.frames.float() - sample.frames[:, :1].float()).square().mean()
    made = [metrics["video_loss"], metrics["action_loss"], sample.actions.square().mean(), moved]
    if sample.loss is not None:
        made.append(sample.loss.mean())
    assert [float(value) for value in made] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("system", EXPECTED)
def test_every_token_stream_has_one_precision_under_bf16(system: str) -> None:
    """Whether a parameter is added to a stream or a condition on its way, or none is, as for plans, decides nothing."""
    generator, seen = make(EXPECTED[system][0]), set()
    for module in generator.modules():
        if isinstance(module, AdaLNBlock | ModulatedNorm):
            module.register_forward_pre_hook(lambda _, inputs: seen.update(part.dtype for part in inputs[:2]))
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = generator.train().loss(make_batch())
    assert seen == {torch.float32}
    assert torch.isfinite(loss)


@pytest.mark.parametrize("system", EXPECTED)
@pytest.mark.parametrize("parts", [2, 5])
def test_the_mean_over_the_parts_of_a_batch_is_the_whole(system: str, parts: int) -> None:
    """Loss, metrics and gradient, where clips without actions, padded steps and drawn times are shared out unevenly."""
    size, found = 10, []
    for divided in (1, parts):
        generator, batch = make(EXPECTED[system][0]).eval(), make_batch(size)
        total = torch.zeros(3)
        for part in range(divided):
            rows = range(part, size, divided)
            known = {"rows": rows, "size": size, "has_actions": batch["has_actions"]}
            own = {key: [value[row] for row in rows] for key, value in batch.items() if isinstance(value, list)}
            own |= {key: value[part::divided] for key, value in batch.items() if isinstance(value, torch.Tensor)}
            own |= {"rng": torch.Generator().manual_seed(5)} | ({"whole": known} if divided > 1 else {})
            torch.manual_seed(part)
            loss, metrics = generator.loss(own)
            (loss / divided).backward()
            total += torch.stack([loss.detach(), *metrics.values()]) / divided
        gradient = {name: p.grad for name, p in generator.named_parameters() if p.grad is not None}
        found.append({"values": total, **gradient})
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("parts", [2, 3])
def test_the_tokenizer_learns_the_same_from_parts(parts: int) -> None:
    tokenizer, found = make(TransformerConfig(**SIZES)).tokenizer, []
    for divided in (1, parts):
        losses = []
        for part in range(divided):
            batch = {"frames": make_batch(6)["frames"][part::divided], "rng": torch.Generator().manual_seed(5)}
            batch |= {"whole": {"rows": range(part, 6, divided), "size": 6}} if divided > 1 else {}
            losses.append(tokenizer.loss(batch)[0])
        found.append(torch.stack(losses).mean())
    torch.testing.assert_close(found[1], found[0])
