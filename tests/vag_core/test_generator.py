"""The two streams: identity at init, where gradients reach, padding, guidance, checkpoints, learning."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from toolkit.data.batches import GeneratorClips
from toolkit.data.clips import ClipStore
from vag_core import Generator, GeneratorConfig
from vag_core.actions.branch import VideoView
from vag_core.actions.transformer import TransformerBranch
from vag_core.config import (
    ACTIONS,
    VIDEOS,
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
from vag_core.layers import average_areas
from vag_core.objective import pair_loss
from vag_core.tokenizer import VideoTokenizer, to_float_frames
from vag_core.video_branch import BUILDERS, DiTBranch


def small(**changes: object) -> GeneratorConfig:
    config = GeneratorConfig(
        image_size=[32, 32],
        num_frames=17,
        state_dim=2,
        action_dim=2,
        tokenizer=ConvTokenizerConfig(latent_channels=8, temporal_stride=4, width=32, depth=1),
        scene=SceneConfig(width=16, depth=1, keypoints=8),
        video=DiTConfig(width=48, depth=2, heads=4),
        action=TransformerConfig(width=48, depth=2, plan_share=0.0),
    )
    return replace(config, **changes)


SYSTEMS = {
    "vag": TransformerConfig(width=48, depth=2, plan_share=0.0),
    "vag_plan": TransformerConfig(width=48, depth=2, plan_share=0.5),
    "vag_grid": UNetConfig(channels=[32, 64], bridge=BridgeConfig(grid=[2, 2, 2], width=32)),
    "forward_dynamics": ForwardDynamicsConfig(),
    "two_stage_temporal": TemporalConfig(width=48, depth=2),
    "two_stage_resnet": FramewiseConfig(backbone="resnet10t"),
    "action_only": ActionOnlyConfig(width=48, depth=2, plan_share=0.0),
}


@pytest.mark.parametrize(
    ("system", "tokens"),
    [
        ("vag", 6 * 5 * 4 + 6 * 4),  # clips x latent frames x patches, and a token for each frame after the first
        ("vag_plan", 3 * 5 * 4 + 6 * 4),
        ("vag_grid", 6 * 5 * 4),
        ("forward_dynamics", 6 * 5 * 4),
        ("action_only", 6 * 4),
        ("two_stage_resnet", 6 * 5 * 4),
    ],
)
def test_tokens_of_a_batch(system: str, tokens: int) -> None:
    generator = Generator(small(action=SYSTEMS[system]))
    assert generator.tokens_of(6) == tokens
    if system == "two_stage_resnet":
        generator.video_is_taken = True  # taken from another, it is not run
        assert generator.tokens_of(6) == 0


def build(system: str) -> Generator:
    torch.manual_seed(0)
    generator = Generator(small(action=SYSTEMS[system]))
    # As after a few steps of training: at the start gates and outputs are zero, and hide what reaches where.
    for parameter in generator.parameters():
        if parameter.abs().max() == 0:
            torch.nn.init.normal_(parameter, std=0.05)
    return generator.eval()


@pytest.fixture
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(small())


@pytest.fixture
def batch(store: ClipStore) -> dict:
    return GeneratorClips(store, 6, 17, seed=0, random_start=False).batch(0)


def pair_losses(
    generator: Generator,
    batch: dict,
    t_video: float,
    t_action: float,
    valid: torch.Tensor | None = None,
    **options: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`pair_loss` of a batch, with latents of its own if it has none."""
    latents = batch.get("latents", torch.randn(6, *generator.config.latent_shape))
    image = batch["frames"][:, 0].permute(0, 3, 1, 2).float() / 255
    conditions = generator.encode_conditions(image, latents[:, :, :1], batch["states"][:, 0], batch["instruction"])
    trajectory = generator.trajectory.pack(batch["actions"], batch["states"])
    times = torch.full((6,), t_video), torch.full((6,), t_action)
    frames = batch["frames"].permute(0, 4, 1, 2, 3).float() / 255
    valid = torch.ones(6, 16, dtype=torch.bool) if valid is None else valid
    return pair_loss(generator, latents, trajectory, conditions, *times, valid, frames=frames, **options)


def test_video_branch_starts_at_zero_velocity_and_identity_blocks(generator: Generator) -> None:
    tokens, condition = torch.randn(2, 20, 48), torch.randn(2, 48)
    for block in generator.video.backbone.blocks:
        assert torch.equal(block(tokens, condition, 5), tokens)
    velocity, hidden = generator.video.backbone(
        torch.randn(2, 8, 4, 4, 4),
        torch.randn(2, 8, 1, 4, 4),
        torch.rand(2),
        torch.randn(2, 4, 48),
        condition,
        torch.randn(2, 4, 16),
        torch.rand(2),
    )
    assert velocity.abs().max() == 0
    assert hidden.shape == (2, 4, 4, 48)


@pytest.mark.parametrize(
    ("system", "reached"), [("vag", True), ("vag_grid", False), ("two_stage_temporal", False), ("action_only", False)]
)
def test_action_loss_reaches_the_video_branch_of_the_joint_system_alone(
    system: str, reached: bool, batch: dict
) -> None:
    generator = build(system)
    _, action = pair_losses(generator, batch, 0.5, 0.5)
    action.mean().backward()
    if system == "action_only":
        assert generator.video is generator.tokenizer is None
    else:
        video = generator.video.backbone.parameters()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in video) == reached
        assert all(p.grad is None for p in generator.tokenizer.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in generator.action.parameters())
    if system == "vag_grid":
        assert generator.action.bridge.project.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("system", "heard"), [("vag", True), ("vag_grid", False)])
def test_actions_reach_the_video_where_it_hears_them(system: str, heard: bool, batch: dict) -> None:
    generator = build(system)
    losses = []
    for shift in (0.0, 1.0):
        torch.manual_seed(1)
        changed = {**batch, "actions": batch["actions"] + shift, "latents": torch.zeros(6, 8, 5, 4, 4)}
        losses.append(pair_losses(generator, changed, 0.5, 0.5)[0])
    assert torch.equal(losses[0], losses[1]) != heard


def test_action_tokens_read_their_own_instant() -> None:
    """A change in the hidden tokens of one frame enters through that frame's token, before attention spreads it."""
    action = build("vag").action.network
    inputs = []
    action.transformer.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    hidden = torch.randn(1, 4, 4, 48)
    for change in (0.0, 1.0):
        hidden[:, 2] += change
        action(torch.zeros(1, 4, 16), hidden, torch.zeros(1, 48))
    assert ((inputs[0] != inputs[1]).any(-1)[0] == torch.tensor([False, False, True, False])).all()


def test_a_given_stream_has_no_loss(batch: dict) -> None:
    generator = build("vag")
    video, action = pair_losses(generator, batch, 0.0, 0.5)
    assert video.abs().max() == 0
    assert action.min() > 0
    video, action = pair_losses(generator, batch, 0.5, 0.0)
    assert video.min() > 0
    assert action.abs().max() == 0


def test_clocks_are_shared_as_published_or_independent() -> None:
    torch.manual_seed(0)
    t_video, t_action = build("vag_grid").clocks.draw(1000, torch.device("cpu"))
    assert torch.equal(t_video, t_action)
    t_video, t_action = build("vag").clocks.draw(10_000, torch.device("cpu"))
    # A quarter of all video times is 1. Sampling passes where the video is under way and the actions are not known.
    assert (t_video == t_action).float().mean() == pytest.approx(0.6 * (0.5 + 0.5 * 0.25), abs=0.02)
    first_pass = (t_action == 1) & (t_video > 0) & (t_video < 1)
    assert first_pass.float().mean() == pytest.approx(0.6 * 0.5 * 0.75, abs=0.02)
    assert (t_video == 0).float().mean() == pytest.approx(0.25, abs=0.02)
    assert (t_action == 0).float().mean() == pytest.approx(0.15, abs=0.02)


def test_padded_steps_do_not_count(batch: dict) -> None:
    generator = build("vag")
    valid = torch.ones(6, 16, dtype=torch.bool)
    valid[:, 12:] = False
    losses = []
    for value in (0.0, 7.0):
        torch.manual_seed(1)
        changed = {**batch, "actions": batch["actions"].clone(), "latents": torch.zeros(6, 8, 5, 4, 4)}
        changed["actions"][:, 12:] = value
        # At t_action = 1 the network sees noise alone: only the target holds the padded values.
        losses.append(pair_losses(generator, changed, 0.5, 1.0, valid)[1])
    torch.testing.assert_close(losses[0], losses[1])
    assert pair_losses(generator, changed, 0.5, 1.0)[1].mean() > losses[1].mean() + 1


def test_videos_without_action_labels_teach_the_video_alone(batch: dict) -> None:
    generator = build("vag").train()
    latents = torch.randn(6, 8, 5, 4, 4)
    losses = []
    for value in (0.0, 7.0):
        torch.manual_seed(1)
        changed = {**batch, "latents": latents, "has_actions": torch.tensor([True] * 3 + [False] * 3)}
        changed["actions"] = batch["actions"].clone()
        changed["actions"][3:] = value
        losses.append(generator.loss(changed)[0])
    assert torch.equal(losses[0], losses[1])


def test_a_share_of_the_batch_plans_from_the_scene_alone(batch: dict) -> None:
    generator = build("vag_plan").train()
    seen = []
    generator.video.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    batch = {**batch, "latents": torch.randn(6, 8, 5, 4, 4), "has_actions": torch.tensor([True] * 5 + [False])}
    torch.manual_seed(1)
    loss = generator.loss(batch)[0]
    assert seen == [3]
    for row, counts in ((4, True), (5, False)):  # the last has no labels
        changed = {**batch, "actions": batch["actions"].clone()}
        changed["actions"][row] += 7
        torch.manual_seed(1)
        assert torch.equal(generator.loss(changed)[0], loss) != counts
    changed = {**batch, "latents": batch["latents"].clone()}
    changed["latents"][3:] += 7  # the first half are pairs, of the others nobody looks at the video
    torch.manual_seed(1)
    assert torch.equal(generator.loss(changed)[0], loss)


def test_actions_first_then_the_video_that_follows_them(batch: dict) -> None:
    generator = build("vag_plan")

    def draw(**options: object):
        rng = [torch.Generator().manual_seed(i) for i in range(6)]
        image, state = batch["frames"][:, 0], batch["states"][:, 0]
        return generator.sample(image, state, batch["instruction"], num_inference_steps=2, rng=rng, **options)

    made = draw()
    assert generator.order == "actions_first"
    assert made.function_evaluations == 3
    assert torch.equal(made.actions, draw(method="heun").actions)
    planned = generator.plan_actions(batch["frames"][:, 0], batch["states"][:, 0], batch["instruction"])
    assert torch.equal(planned[0], made.actions)
    assert torch.equal(planned[1], made.states)
    following = draw(actions=made.actions, states=made.states)
    assert (following.frames.int() - made.frames.int()).abs().max() <= 1
    assert not torch.equal(draw(actions=made.actions + 3, states=made.states).frames, made.frames)
    assert draw(guidance_scale=2.0).function_evaluations == 5
    assert draw(order="synchronised").function_evaluations == 2
    for system in ("vag", "two_stage_temporal"):
        with pytest.raises(ValueError, match="actions first: .*is never trained for it"):
            build(system).sample(batch["frames"][:, 0], batch["states"][:, 0], ["a"] * 6, order="actions_first")
        with pytest.raises(ValueError, match=r"plan: a generator of action\.kind = .* is never trained for it"):
            build(system).plan_actions(batch["frames"][:, 0], batch["states"][:, 0], ["a"] * 6)


@pytest.mark.parametrize(("time", "matters"), [(0.99, True), (1.0, False)])
def test_actions_that_are_all_noise_are_not_looked_at(batch: dict, time: float, matters: bool) -> None:
    generator = build("vag_plan")
    trajectory, noisy = torch.randn(2, 6, 16, 4), torch.randn(6, 8, 4, 4, 4)
    t, t_action = torch.full((6,), 0.5), torch.full((6,), time)
    image = batch["frames"][:, 0].permute(0, 3, 1, 2).float() / 255
    first = torch.randn(6, 8, 1, 4, 4)
    conditions = generator.encode_conditions(image, first, batch["states"][:, 0], batch["instruction"])
    videos = [generator.video_step(noisy, t, conditions, x, t_action)[0] for x in trajectory]
    actions = [generator.action_step(x, t_action, conditions.action, None) for x in trajectory]
    for first, second in (videos, actions):
        assert torch.equal(first, second) != matters


def test_published_bridge_has_no_layer_and_tiles_one_cell() -> None:
    generator = Generator(
        small(action=UNetConfig(channels=[32, 64], bridge=BridgeConfig(grid=[1, 1, 1], first_frame=False, width=20)))
    )
    assert sum(p.numel() for p in generator.action.bridge.parameters()) == 0
    latents = torch.randn(3, 8, 5, 4, 4)
    condition = generator.action.bridge(latents)
    assert condition.shape == (3, 20)
    torch.testing.assert_close(condition[:, :8], latents.mean(dim=(2, 3, 4)))
    assert torch.equal(condition[:, 8:16], condition[:, :8])


def test_factorised_attention_runs_and_has_the_same_shapes() -> None:
    config = small(video=replace(small().video, attention="factorised"), action=SYSTEMS["vag_grid"])
    video = Generator(config).video.backbone
    noisy = torch.randn(2, 8, 4, 4, 4)
    velocity, _ = video(noisy, noisy[:, :, :1], torch.rand(2), torch.randn(2, 4, 48), torch.randn(2, 48))
    assert velocity.shape == noisy.shape


def test_sample_shapes_seed_and_units(batch: dict) -> None:
    generator = build("vag")
    generator.trajectory.set_statistics([0.0, 0.0, 15.0, 15.0], [1.0, 1.0, 5.0, 5.0])
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
    together = generator.sample(image, state, instruction, num_inference_steps=3, rng=rngs, score=True)
    rngs = [torch.Generator().manual_seed(4)]
    alone = generator.sample(image[4:5], state[4:5], instruction[4:5], num_inference_steps=3, rng=rngs, score=True)
    torch.testing.assert_close(alone.actions[0], together.actions[4], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(alone.loss[0], together.loss[4], rtol=1e-3, atol=1e-3)
    # A guidance scale of 1 is no guidance; another one changes the outcome once the instruction matters.
    torch.nn.init.normal_(generator.action.instruction.null)
    assert torch.equal(draw(0, guidance_scale=1.0).actions, first.actions)
    assert not torch.equal(draw(0, guidance_scale=3.0).actions, first.actions)
    # What leaves the range of the training data is clipped, and nothing else changes.
    generator.trajectory.set_statistics(
        [0.0, 0.0, 15.0, 15.0], [1.0, 1.0, 5.0, 5.0], [-0.5, -9, 14, 0], [0.25, 9, 16, 99]
    )
    clipped = draw(0)
    assert clipped.actions[..., 0].min() == -0.5
    assert clipped.actions[..., 0].max() == 0.25
    assert clipped.states[:, 1:, 0].max() == 16
    assert torch.equal(clipped.actions[..., 1], first.actions[..., 1].clamp(-9, 9))
    assert torch.equal(clipped.frames, first.frames)


@pytest.mark.parametrize("system", sorted(set(SYSTEMS) - {"forward_dynamics"}))
def test_every_system_samples_pairs_and_keeps_what_is_given(system: str, batch: dict) -> None:
    generator = build(system)
    image, state, instruction = batch["frames"][:, 0], batch["states"][:, 0], batch["instruction"]

    def draw(**given: object):
        rng = [torch.Generator().manual_seed(i) for i in range(6)]
        return generator.sample(image, state, instruction, num_inference_steps=2, rng=rng, **given)

    made = draw(score=True)
    assert made.frames.shape == batch["frames"].shape
    assert made.actions.shape == batch["actions"].shape
    assert torch.equal(made.frames[:, 0], image)
    assert torch.isfinite(made.loss).all()
    evaluations = {
        "vag": 3,
        "vag_plan": 3,
        "vag_grid": 2,
        "two_stage_temporal": 3,
        "two_stage_resnet": 3,
        "action_only": 1,
    }
    assert made.function_evaluations == evaluations[system]
    if system in ("action_only", "vag_grid"):
        with pytest.raises(ValueError, match="inverse dynamics: .* is never trained for it"):
            draw(frames=batch["frames"])
    else:
        inverse = draw(frames=batch["frames"])  # inverse dynamics
        assert torch.equal(inverse.frames, batch["frames"])
        assert not torch.equal(inverse.actions, made.actions)
    known = {"actions": batch["actions"] + 9, "states": batch["states"]}
    if not generator.config.action.video_follows_actions:
        with pytest.raises(ValueError, match="forward dynamics: .* is never trained for it"):
            draw(**known)
        return
    generator.trajectory.set_statistics([0.0] * 4, [1.0] * 4, [-1.0] * 4, [1.0] * 4)
    forward = draw(**known)  # forward dynamics; what is given stays, beyond the range of the training data too
    assert torch.equal(forward.actions, known["actions"])
    assert torch.equal(forward.states, known["states"])
    generator.trajectory.set_statistics([0.0] * 4, [1.0] * 4)
    for wrong, message in (
        ({"actions": batch["actions"]}, "together"),
        ({**known, "states": batch["states"][:, 1:]}, "states: "),
    ):
        with pytest.raises(ValueError, match=message):
            draw(**wrong)
    if system == "vag":
        assert not torch.equal(forward.frames, made.frames)
        assert not torch.equal(draw(order="video_first").actions, made.actions)
        assert draw(order="synchronised", guidance_scale=2.0).function_evaluations == 4


def test_forward_dynamics_follows_actions_and_makes_none(batch: dict) -> None:
    generator = build("forward_dynamics").train()
    loss, metrics = generator.loss(batch)
    loss.backward()
    assert metrics["action_loss"] == 0
    assert generator.video.backbone.embed_actions.weight.grad.abs().max() > 0
    generator.eval()
    image, state = batch["frames"][:, 0], batch["states"][:, 0]
    with pytest.raises(ValueError, match="video first: .* is never trained for it; it can do: forward dynamics"):
        generator.sample(image, state, batch["instruction"])
    noise = lambda: [torch.Generator().manual_seed(i) for i in range(6)]  # noqa: E731
    made = [
        generator.sample(
            image, state, batch["instruction"], actions=batch["actions"] + shift, states=batch["states"], rng=noise()
        )
        for shift in (0.0, 2.0)
    ]
    assert made[0].function_evaluations == 10
    assert not torch.equal(made[0].frames, made[1].frames)


def test_a_shared_video_branch_is_the_same_weight_for_weight_and_stays(batch: dict) -> None:
    torch.manual_seed(0)
    video, two_stage = build("vag_grid"), Generator(small(action=SYSTEMS["two_stage_temporal"]))
    two_stage.take_video_branch(video)
    before = {name: tensor.clone() for name, tensor in two_stage.state_dict().items()}
    trained = [p for p in two_stage.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    two_stage.loss(batch)[0].backward()
    optimizer.step()
    for name, tensor in two_stage.state_dict().items():
        if name.startswith(("tokenizer.", "video.")):
            assert torch.equal(tensor, video.state_dict()[name]), name
    assert any(not torch.equal(tensor, before[name]) for name, tensor in two_stage.state_dict().items())
    with pytest.raises(ValueError, match="follows actions"):
        two_stage.take_video_branch(build("vag"))


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


@dataclass
class StillConfig(DiTConfig):
    kind: str = "still"


class Still(torch.nn.Module):
    """The smallest backbone: the first frame, forever."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, noisy, first, t, scene, condition, grouped, t_action):
        hidden = (scene + condition[:, None])[:, None].expand(-1, noisy.shape[2], -1, -1)
        return self.scale * (noisy - first) / t.clamp(min=0.05).view(-1, 1, 1, 1, 1), hidden


def test_another_backbone_takes_the_place_of_the_video_branch(
    batch: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build_still(config: GeneratorConfig) -> tuple[VideoTokenizer, DiTBranch]:
        branch = DiTBranch(config)
        branch.backbone = Still()
        return VideoTokenizer(config.tokenizer), branch

    monkeypatch.setitem(VIDEOS, "still", StillConfig)
    monkeypatch.setitem(BUILDERS, "still", build_still)
    generator = Generator(small(video=StillConfig(**{**vars(small().video), "kind": "still"})))
    generator.loss(batch)[0].backward()
    assert generator.video.backbone.scale.grad.abs() > 0
    generator.save_pretrained(tmp_path)
    sample = Generator.from_pretrained(tmp_path).sample(batch["frames"][:, 0], batch["states"][:, 0], ["a"] * 6)
    assert sample.frames.shape == batch["frames"].shape
    with pytest.raises(ValueError, match="video.kind = 'wan': the other fields are those of dit"):
        Generator(small(video=replace(small().video, kind="wan")))


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
        ({"image_size": [30, 32]}, "image_size"),
        ({"image_size": [32]}, "image_size"),
        ({"image_size": [32, 48], "views": [1, 2]}, "image_size"),
        ({"views": [2]}, "views"),
        ({"action": UNetConfig(bridge=BridgeConfig(grid=[4, 4]))}, "action.bridge.grid"),
        ({"video": DiTConfig(attention="sparse")}, "video.attention"),
        ({"action": TransformerConfig(kind="unet")}, "action.kind"),
        ({"action": TemporalConfig(width=30)}, "action.width"),
        ({"action": UNetConfig(channels=[32] * 6)}, "num_frames"),
        ({"action": ActionOnlyConfig(plan_share=1.0)}, "action.plan_share"),
        ({"frame_stride": 0}, "frame_stride"),
    ],
)
def test_configs_that_do_not_fit_are_refused(changes: dict, field: str) -> None:
    with pytest.raises(ValueError, match=field.replace(".", r"\.")):
        Generator(small(**changes))


def test_both_streams_learn_one_batch(generator: Generator, batch: dict) -> None:
    """Overfitting: both losses must fall far below the loss of predicting nothing."""
    generator.trajectory.set_statistics([0.0, 0.0, 15.0, 15.0], [0.6, 0.6, 4.0, 4.0])
    batch = {**batch, "latents": torch.randn(6, *generator.config.latent_shape)}
    optimizer = torch.optim.AdamW(generator.parameters(), lr=2e-3)
    losses = []
    for _ in range(300):
        loss, metrics = generator.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append((metrics["video_loss"].item(), metrics["action_loss"].item()))
    start, end = (torch.tensor(part).mean(0) for part in (losses[:10], losses[-40:]))
    assert end[0] < 0.7 * start[0]
    assert end[1] < 0.5 * start[1]


SHIPPED_READERS = {  # of pictures of 64 pixels, since version 0.1
    "transformer": ("action.network.read.weight", (256, 4 * 4 * 192)),
    "action_only": ("action.scene.summary.0.weight", (256, 2 * 64 + 16 * 8 * 8)),
    "temporal": ("action.read.weight", (256, 2 * 16 * 8 * 8)),
    "unet": ("action.bridge.project_first.weight", (256, 16 * 8 * 8)),
    "forward_dynamics": ("video.scene.summary.0.weight", (192, 2 * 64 + 16 * 8 * 8)),
}


@pytest.mark.parametrize("kind", SHIPPED_READERS)
def test_a_large_picture_needs_hardly_more_weights_than_a_small_one(kind: str) -> None:
    def weights(image_size: int) -> dict[str, tuple[int, ...]]:
        with torch.device("meta"):
            generator = Generator(GeneratorConfig(image_size=[image_size, image_size], action=ACTIONS[kind]()))
        return {name: tuple(value.shape) for name, value in generator.state_dict().items()}

    small, large = weights(64), weights(256)
    assert small.keys() == large.keys()
    name, shape = SHIPPED_READERS[kind]
    assert small[name] == shape
    counts = [sum(math.prod(shape) for shape in shapes.values()) for shapes in (small, large)]
    assert counts[1] <= 1.1 * counts[0]


@pytest.mark.parametrize("image_size", [64, 96, 256])
def test_actions_hear_of_every_cell_of_the_video(image_size: int) -> None:
    """The gradient of the action loss reaches the video tokens of all cells and instants, at the shipped sizes."""
    torch.manual_seed(0)
    config = GeneratorConfig(image_size=[image_size, image_size], num_frames=17)
    branch = TransformerBranch(config)
    torch.nn.init.normal_(branch.network.transformer.out.weight, std=0.02)
    side = config.latent_shape[2] // config.video.patch_size
    hidden = torch.randn(1, 2, side * side, config.video.width, requires_grad=True)
    view = VideoView(torch.zeros(1, *config.latent_shape), hidden, torch.full((1,), 0.5))
    noisy = torch.randn(1, config.action_horizon, 8)
    output = branch(noisy, torch.full((1,), 0.5), torch.randn(1, config.action.width), view)
    (gradient,) = torch.autograd.grad(output.square().sum(), hidden)
    norms = gradient.norm(dim=-1)
    assert (norms > 0).all()
    assert norms.max() < 100 * norms.min()


@pytest.mark.parametrize("kind", ACTIONS)
def test_pictures_of_several_cameras_are_seen_at_the_resolution_of_one(kind: str) -> None:
    """At the shipped sizes: every view has its own positions and areas, and each reaches the output."""
    torch.manual_seed(0)
    config = GeneratorConfig(image_size=[64, 192], views=[1, 3], num_frames=17, action=ACTIONS[kind]())
    generator = Generator(config).eval()
    scene = (generator.video or generator.action).scene
    assert scene.summary[0].in_features == 3 * (2 * 64 + 16 * 8 * 8)
    image = torch.randint(0, 256, (2, 64, 192, 3), dtype=torch.uint8)
    state, words = torch.zeros(2, 4), ["push", "pull"]
    pinned = {"actions": torch.zeros(2, 16, 4), "states": torch.zeros(2, 17, 4)} if generator.action is None else {}
    sample = generator.sample(image, state, words, num_inference_steps=1, rng=torch.Generator(), **pinned)
    assert sample.frames.shape == (2, 17, 64, 192, 3)
    torch.testing.assert_close(sample.frames[:, 0], image)
    summaries = [scene(to_float_frames(image[:, None])[:, :, 0])[1]]
    for view in range(3):
        other = image.clone()
        other[:, :, 64 * view : 64 * (view + 1)] = 0
        summaries.append(scene(to_float_frames(other[:, None])[:, :, 0])[1])
        assert not torch.allclose(summaries[0], summaries[-1])


def test_areas_are_means_of_equal_parts() -> None:
    x = torch.arange(2 * 3 * 8 * 8, dtype=torch.float32).view(2, 3, 8, 8)
    assert average_areas(x, (8, 8)) is x
    assert average_areas(x, (9, 8)) is x
    expected = x.view(2, 3, 2, 4, 2, 4).mean((3, 5))
    torch.testing.assert_close(average_areas(x, (2, 2)), expected)
    torch.testing.assert_close(average_areas(x, (2, 16)), x.view(2, 3, 2, 4, 8).mean(3))
    torch.testing.assert_close(average_areas(x[:, :, :6, :6], (4, 4)).mean(), x[:, :, :6, :6].mean())
