"""Generators on pretrained video models: what is added is neutral at first, what is trained, what is saved."""

import gc
import json
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from vag_core import Generator, GeneratorConfig
from vag_core.backbones import branch
from vag_core.backbones.directory import base_id, locate
from vag_core.backbones.models import fit_to_model
from vag_core.backbones.networks import shifted
from vag_core.config import (
    ActionConfig,
    BridgeConfig,
    ForwardDynamicsConfig,
    FramewiseConfig,
    InstructionConfig,
    PretrainedConfig,
    PretrainedTokenizerConfig,
    SceneConfig,
    TemporalConfig,
    TransformerConfig,
    UNetConfig,
)
from vag_core.objective import pair_loss
from vag_core.sampling import Guided, PinnedStreams, Settings, solve

pytest.importorskip("diffusers")
PICTURE = torch.zeros(2, 3, 64, 64)
KINDS = ["cosmos", "cosmos25", "wan"]
TRANSFORMER = TransformerConfig(width=32, depth=1, heads=2)
UNET = UNetConfig(channels=[16, 32], groups=4, bridge=BridgeConfig(grid=[1, 1, 1], first_frame=False, width=32))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAG_CACHE", str(tmp_path_factory.getbasetemp() / "pretrained"))


def configured(kind: str, action: ActionConfig = TRANSFORMER, **video: Any) -> GeneratorConfig:
    config = GeneratorConfig(
        num_frames=9,
        state_dim=3,
        action_dim=2,
        tokenizer=PretrainedTokenizerConfig(),
        scene=SceneConfig(width=8, depth=1, keypoints=4),
        video=PretrainedConfig(family=kind, path=f"tiny:{kind}", **{"lora_rank": 2, **video}),
        action=action,
        instruction=InstructionConfig(kind="tokens"),
    )
    directory = locate(config.video.path)
    fit_to_model(config, directory)
    config.video.base_id = base_id(directory)
    return config


def build(kind: str, action: ActionConfig = TRANSFORMER, **video: Any) -> Generator:
    torch.manual_seed(0)
    return Generator(configured(kind, action, **video))


def batch_of(size: int = 10) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(5)
    text = torch.randn(size, 12, 16, generator=rng)
    text[:, 7:] = 0
    return {
        "frames": torch.randint(0, 256, (size, 9, 64, 64, 3), dtype=torch.uint8, generator=rng),
        "states": torch.randn(size, 9, 3, generator=rng),
        "actions": torch.randn(size, 8, 2, generator=rng),
        "instruction": text,
        "rng": torch.Generator().manual_seed(6),
    }


def train(generator: Generator, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW([p for p in generator.parameters() if p.requires_grad], 1e-2)
    for _ in range(steps):
        loss, _ = generator.train().loss(batch_of())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    generator.eval()


def sample(generator: Generator, **settings: Any) -> Any:
    batch = batch_of(2)
    given = {"num_inference_steps": 3, "rng": torch.Generator().manual_seed(7), **settings}
    return generator.sample(batch["frames"][:, 0], batch["states"][:, 0], batch["instruction"], **given)


def base_of(generator: Generator) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in generator.state_dict().items() if not generator.is_saved(name)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("action", [TRANSFORMER, UNET], ids=["transformer", "unet"])
def test_three_joint_steps_change_heads_and_lora_and_nothing_of_the_base(kind: str, action: ActionConfig) -> None:
    generator = build(kind, action)
    base, before = base_of(generator), {k: v.clone() for k, v in generator.state_dict().items()}
    assert len(base) > 50
    train(generator)
    assert base_id(generator.base) == generator.config.video.base_id
    now = generator.state_dict()
    assert all(torch.equal(now[name], value) for name, value in base.items())
    changed = {name for name, value in before.items() if not torch.equal(now[name], value)}
    adapters = {name for name in now if ".lora_B" in name}
    assert adapters
    assert adapters <= changed
    assert {"action.state.weight", "video.state.weight"} <= changed
    assert ("video.hearing.out.weight" in changed) == (action is TRANSFORMER)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_added_leaves_the_velocity_bit_equal(kind: str) -> None:
    """LoRA, hearing and state begin at zero: a new generator makes the model's own velocity, whatever it is given."""
    generator = build(kind).eval()
    batch, video, network = batch_of(2), generator.video, generator.video.network
    rng = torch.Generator().manual_seed(1)
    _, frames, height, width = generator.config.latent_shape
    latents = torch.randn(2, generator.config.latent_shape[0], frames, height, width, generator=rng)
    t, text = torch.tensor([0.3, 0.8]), batch["instruction"]
    with torch.no_grad():
        _, context = video.encode(PICTURE, torch.randn(2, 3), text)
        grouped, heard = torch.randn(2, frames - 1, generator.config.group_width), torch.tensor([0.2, 1.0])
        ours, hidden = video(latents[:, :, 1:], latents[:, :, :1], t, None, context, grouped, heard)
        network.transformer.disable_adapters()
        theirs, _ = network(latents[:, :, 1:], latents[:, :, :1], t, text)
    assert torch.equal(context, text)
    assert torch.equal(ours, theirs)
    assert ours.std() > 0.1
    assert hidden.shape == (2, frames - 1, height * width // 4, generator.config.video.width)


@pytest.mark.parametrize("kind", KINDS)
def test_video_hears_actions_and_state_after_training(kind: str) -> None:
    generator = build(kind)
    train(generator)
    batch, rng = batch_of(2), torch.Generator().manual_seed(1)
    channels, frames, height, width = generator.config.latent_shape
    latents, t = torch.randn(2, channels, frames, height, width, generator=rng), torch.tensor([0.3, 0.8])

    @torch.no_grad()
    def velocity(state: Tensor, grouped: Tensor) -> Tensor:
        _, context = generator.video.encode(PICTURE, state, batch["instruction"])
        return generator.video(latents[:, :, 1:], latents[:, :, :1], t, None, context, grouped, t)[0]

    state, grouped = torch.zeros(2, 3), torch.zeros(2, frames - 1, generator.config.group_width)
    still = velocity(state, grouped)
    assert (velocity(state, grouped + 1) - still).abs().max() > 1e-3
    assert (velocity(state + 3, grouped) - still).abs().max() > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_gives_equal_gradients_and_keeps_no_hidden_tokens(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, original = list[weakref.ref](), branch.F.layer_norm

    def watched(hidden: Tensor, *shape: Any) -> Tensor:
        seen.append(weakref.ref(hidden))
        return original(hidden, *shape)

    monkeypatch.setattr(branch.F, "layer_norm", watched)
    gradients = []
    for checkpointing in (True, False):
        generator = build(kind, gradient_checkpointing=checkpointing).eval()  # no dropout
        assert generator.video.network.transformer.gradient_checkpointing is checkpointing
        for name, weight in generator.named_parameters():
            if ".lora_B" in name:
                weight.data = 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name)))
        seen.clear()
        generator.loss(batch_of())[0].backward()
        gradients.append({name: weight.grad for name, weight in generator.named_parameters()})
        gc.collect()
        hidden = [one for one in seen if one() is not None]
        assert seen
        assert not hidden
        assert not any(module._forward_hooks for module in generator.video.network.modules())
    on, off = gradients
    assert sum(value is not None for value in on.values()) > 20
    for name, value in on.items():
        assert (value is None) == (off[name] is None), name
        assert value is None or torch.equal(value, off[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_action_loss_reaches_blocks_up_to_the_read_one(kind: str) -> None:
    generator, batch = build(kind, read_depth=2).eval(), batch_of(2)
    for name, weight in generator.named_parameters():
        if ".lora_" in name:
            weight.data = 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name)))
    for out in (generator.action.network.transformer.out, generator.video.hearing.out):
        torch.nn.init.normal_(out.weight, std=0.1)
    trajectory = generator.trajectory.pack(batch["actions"], batch["states"])
    latents = torch.randn(2, *generator.config.latent_shape)
    picture = torch.rand(2, 3, 64, 64)
    conditions = generator.encode_conditions(picture, latents[:, :, :1], batch["states"][:, 0], batch["instruction"])
    t, valid = torch.tensor([0.4, 0.6]), torch.ones(2, 8, dtype=torch.bool)
    _, action = pair_loss(generator, latents, trajectory, conditions, t, t, valid)
    action.sum().backward()
    for number, block in enumerate(generator.video.network.blocks):
        reached = [
            weight.grad is not None and bool(weight.grad.any())
            for name, weight in block.named_parameters()
            if ".lora_" in name
        ]
        assert reached
        assert all(reached) if number < 2 else not any(reached)
    assert generator.video.hearing.out.weight.grad.any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["frozen", "lora", "full"])
def test_a_checkpoint_holds_what_is_trained_and_loads_bit_equal(kind: str, mode: str, tmp_path: Path) -> None:
    generator = build(kind, train=mode)
    train(generator, 1)
    generator.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        saved = set(file.keys())
    trained = {name for name, weight in generator.named_parameters() if weight.requires_grad}
    frozen = {name for name, weight in generator.named_parameters() if not weight.requires_grad}
    assert trained <= saved
    assert not saved & frozen
    assert {name for name in saved if name.startswith("video.network.")} == {
        name for name in trained if name.startswith("video.network.")
    }
    assert bool({n for n in saved if n.startswith("video.network.")}) == (mode != "frozen")
    again = Generator.from_pretrained(tmp_path)
    ours, theirs = sample(generator, score=True), sample(again, score=True)
    for name in ("frames", "actions", "states", "loss"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert again.config == generator.config


def test_a_checkpoint_names_its_base_and_refuses_another(tmp_path: Path) -> None:
    generator, other = build("cosmos"), locate("tiny:wan").path
    generator.save_pretrained(tmp_path)
    assert sample(Generator.from_pretrained(tmp_path, base=generator.base.path)).frames.shape[0] == 2
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    assert config["video"]["base_id"] == base_id(generator.base)
    with pytest.raises(ValueError, match="made on the video model tiny:cosmos .* is another one"):
        Generator.from_pretrained(tmp_path, base=other)
    for path in ("/nowhere/model", "somebody/model"):
        file.write_text(json.dumps({**config, "video": {**config["video"], "path": path}}))
        with pytest.raises(ValueError, match="base=PATH says where that is"):
            Generator.from_pretrained(tmp_path)
    assert Generator.from_pretrained(tmp_path, base="tiny:cosmos").base.path == generator.base.path
    file.write_text(json.dumps({**config, "video": {**config["video"], "lora_rank": 4}}))
    with pytest.raises(ValueError, match="of another shape"):
        Generator.from_pretrained(tmp_path)
    build_own = GeneratorConfig()
    build_own.action = TRANSFORMER
    Generator(build_own).save_pretrained(tmp_path / "own")
    with pytest.raises(ValueError, match="not made on a pretrained video model"):
        Generator.from_pretrained(tmp_path / "own", base="tiny:cosmos")


@pytest.mark.parametrize(
    ("action", "given"),
    [
        (TemporalConfig(width=32, depth=1, heads=2), "nothing"),
        (FramewiseConfig(), "nothing"),
        (ForwardDynamicsConfig(), "actions"),
        (TRANSFORMER, "video"),
        (TRANSFORMER, "actions"),
    ],
)
def test_every_system_trains_and_samples(action: ActionConfig, given: str) -> None:
    generator, batch = build("wan", action), batch_of(2)
    train(generator, 1)
    pinned: Any = {"video": {"frames": batch["frames"]}, "nothing": {}}.get(given)
    if pinned is None:
        pinned = {name: batch[name] for name in ("actions", "states")}
    made = sample(generator, **pinned)
    assert made.frames.shape == batch["frames"].shape
    assert made.actions.isfinite().all()
    assert torch.equal(made.frames[:, 0], batch["frames"][:, 0])


@pytest.mark.parametrize("order", ["synchronised", "video_first", "actions_once"])
@pytest.mark.parametrize("kind", KINDS)
def test_orders_of_sampling_by_the_model_s_own_clock(kind: str, order: str) -> None:
    plans = 0.8 if order == "synchronised" else 0.0
    generator = build(kind, TransformerConfig(width=32, depth=1, heads=2, plan_share=plans))
    train(generator, 1)
    evaluations = len(generator.video.clock(3).times) - 1
    plain = sample(generator, order=order)
    extra = {"synchronised": 0, "video_first": 3, "actions_once": 1}[order]
    assert plain.function_evaluations == evaluations + extra
    guided = sample(generator, order=order, guidance_scale=4.0, negative=batch_of(1)["instruction"].flip(2))
    assert guided.function_evaluations == 2 * plain.function_evaluations
    assert not torch.equal(guided.frames, plain.frames)
    assert torch.equal(sample(generator, order=order, guidance_scale=1.0).frames, plain.frames)


@pytest.mark.parametrize("kind", KINDS)
def test_solvers_come_to_the_same_video_and_those_of_second_order_sooner(kind: str) -> None:
    """At as many evaluations of the network, against many steps of Heun's method."""
    generator = build(kind, ForwardDynamicsConfig())
    batch = batch_of(1)
    picture = batch["frames"][:, :1].float().movedim(-1, 1)[:, :, 0] / 255
    first = generator.tokenizer.encode_first(picture)
    guided = generator.encode_conditions(picture, first, batch["states"][:, 0], batch["instruction"], torch.ones(1))
    pinned = PinnedStreams(actions=batch["actions"], states=batch["states"])

    @torch.no_grad()
    def latents(steps: int, method: str | None) -> Tensor:
        settings = Settings(steps, 1.0, method, "actions_once", torch.Generator().manual_seed(4), score=False)
        return solve(generator, batch["states"][:, 0], Guided(generator, guided, None, settings), pinned, settings)[0]

    exact = latents(200, "heun")
    errors = {
        method: (latents(steps, method) - exact).square().mean().sqrt().item() / exact.std().item()
        for method, steps in ((None, 36), ("euler", 36), ("heun", 18), ("adams_bashforth", 36), ("unipc", 36))
    }
    own = {"cosmos": "euler"}.get(kind, "unipc")
    assert errors[None] == errors[own]
    assert max(errors.values()) < 0.2
    if kind != "wan":  # whose pipeline rounds the times that the network is told, which costs as much as the steps
        assert max(errors["unipc"], errors["heun"], errors["adams_bashforth"]) < 0.5 * errors["euler"]


def test_training_times_are_shifted_and_within_what_the_model_knows() -> None:
    cosmos, wan = build("cosmos").video, build("wan").video
    rng = torch.Generator().manual_seed(0)
    t = wan.draw_time(20_000, torch.device("cpu"), rng)
    own = torch.sigmoid(torch.randn(20_000, generator=rng))
    assert (t == 1).float().mean().item() == pytest.approx(0.05, abs=0.01)
    assert t[t < 1].median().item() == pytest.approx(shifted(own, 5.0).median().item(), abs=0.02)
    assert cosmos.within(torch.tensor([0.0, 1e-4, 0.5, 1.0])).tolist() == pytest.approx(
        [0, 0.002 / 1.002, 0.5, 80 / 81]
    )


def test_bad_configs_are_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases: list[tuple[Any, str]] = [
        (lambda c: setattr(c, "image_size", [72, 64]), "expected multiples of"),
        (lambda c: setattr(c, "num_frames", 10), "expected 1 \\+ a multiple of"),
        (lambda c: setattr(c.video, "lora_targets", ["nothing"]), "no layer of the model ends in 'nothing'"),
        (lambda c: setattr(c.video, "read_depth", 9), "the model has 3 blocks"),
        (lambda c: setattr(c.video, "train", "half"), "expected one of frozen, lora, full"),
        (lambda c: setattr(c.video, "family", "wan"), "expected wan, as video.family says"),
        (lambda c: setattr(c.video, "width", 64), "video.width = 32; expected 64"),
        (lambda c: setattr(c.instruction, "kind", "bytes"), "comes with its tokenizer and its tokens of text"),
        (lambda c: setattr(c.video, "path", str(tmp_path)), "has no model_index.json"),
    ]
    for change, text in cases:
        config = configured("cosmos", TransformerConfig(width=32, depth=1, heads=2))
        change(config)
        with pytest.raises(ValueError, match=text) as caught:
            Generator(config)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"expected a \(B, L, 16\)|expected tokens \(B, L, 16\)"):
        build("cosmos").sample(batch_of(1)["frames"][:, 0], torch.zeros(1, 3), ["push"])
    config = configured("cosmos")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r"lerobot_policy_vag\[video\]"):
        Generator(config)
