"""Trainings whose network is divided among processes (FSDP2): the weights of whole ones, a checkpoint that one process
loads, exact resume. On gloo, with a tiny model of the real classes."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from policies.objective import PolicyObjective
from policies.stock import load_policy
from recipes.compose import typed
from tests.policies.hub_cache import SMALL, write_all
from toolkit.data.clips import write_clips
from toolkit.data.episode import Episode
from toolkit.data.formats.lerobot_write import EpisodeWriter
from vag_core import Generator
from vag_core.backbones.directory import locate
from vag_core.generator import GeneratedBatch

pytest.importorskip("diffusers")
Together = Callable[..., list[str]]
Torchrun = Callable[..., subprocess.Popen[str]]
TRAIN = (
    "train-generator generator=vag_cosmos generator.video.path=tiny:cosmos generator.num_frames=9 "
    "generator.action.width=32 generator.action.depth=1 optim.steps=4 optim.log_every=1 optim.checkpoint_every=2 "
    "optim.warmup_steps=1 runtime.device=cpu runtime.threads=1"
)
DIVIDED = "parallelism.dp_shard=2"
# Sums of two numbers are the same in any order; that of squares, which clips the gradient, is not. A step moves weights
# by up to 3e-4, so that other gradients differ by a hundred times this.
NEAR = 1e-6
WAYS = {  # of batches of one clip every other has no video, and its process runs the network all the same
    "lora": "generator.video.train=lora optim.batch_size=2 held_out_every=4",
    "full": "generator.video.train=full optim.batch_size=1 held_out_fraction=0",
}
NETWORK = "video.network.transformer.transformer_blocks"


@pytest.fixture(scope="module")
def clips(moving_square: Callable[..., Episode], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "clips.h5"
    write_clips(path, [moving_square(seed) for seed in range(6)], 6 * 17, 20, "six")
    return path


@pytest.fixture(scope="module")
def runs(clips: Path, together: Together, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """runs(way, divided): the directory of a finished training in two processes."""
    made: dict[tuple[str, str], Path] = {}

    def run(way: str, divided: str) -> Path:
        if (way, divided) not in made:
            made[way, divided] = out = tmp_path_factory.mktemp("runs") / "out"
            together(f"{TRAIN} dataset={clips} {WAYS[way]} {divided} out={out}", out.parent)
        return made[way, divided]

    return run


def logged(out: Path) -> dict[str, list[float]]:
    """Losses and norms of gradients at each step, and those of held-out episodes."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "streams/tensorboard"))
    events.Reload()
    names = [name for name in events.Tags()["scalars"] if "loss" in name or "norm" in name]
    return {name: [event.value for event in events.Scalars(name)] for name in names}


def weights(out: Path, made: str = "generator") -> dict[str, torch.Tensor]:
    return load_file(out / made / "model.safetensors")


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_divided_blocks_learn_what_whole_ones_do(way: str, runs: Callable[[str, str], Path]) -> None:
    whole, divided = runs(way, ""), runs(way, DIVIDED)
    expected, found = logged(whole), logged(divided)
    assert len(found["loss"]) == 4
    assert len(found.get("held_out/loss", ())) == (way == "lora")
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=1e-5), name
    for made in ("generator", "best") if way == "lora" else ("generator",):
        assert furthest(weights(whole, made), weights(divided, made)) < NEAR
    learned = {name: values for name, values in weights(divided).items() if name.startswith(NETWORK)}
    if way == "lora":
        moved = [values.abs().max() for name, values in learned.items() if "lora_B" in name]
    else:
        base = load_file(locate("tiny:cosmos").path / "transformer/diffusion_pytorch_model.safetensors")
        before = {f"video.network.transformer.{name}": values for name, values in base.items()}
        moved = [(values - before[name]).abs().max() for name, values in learned.items() if values.ndim > 1]
    assert len(moved) > 20
    assert max(moved) > 100 * NEAR
    samples = [sampled(out) for out in (whole, divided)]  # one process reads it
    assert samples[1].frames.shape == (1, 9, 32, 32, 3)
    torch.testing.assert_close(samples[1].actions, samples[0].actions, rtol=1e-4, atol=1e-5)
    assert (samples[1].frames.float() - samples[0].frames.float()).abs().max() <= 1


def sampled(out: Path) -> GeneratedBatch:
    generator = Generator.from_pretrained(out / "generator")
    picture = torch.full((1, 32, 32, 3), 90, dtype=torch.uint8)
    text = torch.zeros(1, 4, generator.config.instruction.embedding_width)
    rng = [torch.Generator().manual_seed(0)]
    return generator.sample(picture, torch.full((1, 2), 10.0), text, num_inference_steps=2, rng=rng)


@pytest.mark.slow
def test_a_killed_divided_training_goes_on_bit_for_bit(
    clips: Path,
    runs: Callable[[str, str], Path],
    together: Together,
    torchrun: Torchrun,
    killed: Callable[..., str],
    tmp_path: Path,
) -> None:
    """Its checkpoint holds halves of the blocks, in a file of each process."""
    words, cut = f"{TRAIN} dataset={clips} {WAYS['full']} {DIVIDED}", tmp_path / "cut"
    started = torchrun(f"{words} out={cut}")
    said = killed(started, cut / "streams/checkpoints")
    assert "FSDP2: 3 units" in said
    assert json.loads((cut / "run.json").read_text())["status"] == "running"
    saved = next((cut / "streams/checkpoints").glob("step_*"))
    expected = weights(runs("full", DIVIDED))
    for part, times in (("model", 1), ("ema", 1), ("optimizer", 2)):
        halves = [load_file(saved / f"{part}-shard-{i}-of-2.safetensors") for i in (1, 2)]
        assert halves[0].keys() == halves[1].keys()
        blocks = [name for name, tensor in expected.items() if name.startswith(NETWORK) and tensor.ndim > 1]
        assert len(halves[0]) == times * len(blocks)
        assert all(one.shape == other.shape for one, other in zip(halves[0].values(), halves[1].values(), strict=True))
        assert not halves[0].keys() & load_file(saved / f"{part}.safetensors").keys()
    model = [load_file(saved / f"model-shard-{i}-of-2.safetensors") for i in (1, 2)]
    assert all(2 * len(half[name]) == len(expected[name]) for half in model for name in half)
    together(f"{words} out={cut} resume=true", tmp_path)
    assert furthest(expected, weights(cut)) == 0
    assert logged(cut)["loss"][-2:] == logged(runs("full", DIVIDED))["loss"][-2:]


@pytest.mark.slow
@pytest.mark.long
def test_two_groups_of_two_learn_what_four_whole_ones_do(clips: Path, together: Together, tmp_path: Path) -> None:
    words = f"{TRAIN} dataset={clips} {WAYS['lora']}"
    together(f"{words} out={tmp_path / 'whole'}", tmp_path, size=4)
    together(f"{words} {DIVIDED} parallelism.dp_replicate=2 out={tmp_path / 'divided'}", tmp_path, size=4)
    for made in ("generator", "best"):
        assert furthest(weights(tmp_path / "whole", made), weights(tmp_path / "divided", made)) < NEAR


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_frozen_blocks_in_bfloat16(precision: str, clips: Path, together: Together, tmp_path: Path) -> None:
    """As on a GPU: adapters of float32 beside weights of bfloat16, or all that is trained computed in bfloat16.

    A last bit of bfloat16 may turn a step of a single weight around, not many of them.
    """
    kind = {"no": "lora generator.video.dtype=bfloat16", "bf16": "full runtime.mixed_precision=bf16"}[precision]
    words = f"{TRAIN} dataset={clips} generator.video.train={kind} optim.batch_size=2"
    together(f"{words} out={tmp_path / 'whole'}", tmp_path)
    together(f"{words} {DIVIDED} out={tmp_path / 'divided'}", tmp_path)
    expected, found = (logged(tmp_path / name) for name in ("whole", "divided"))
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=5e-3), name
    one, other = (torch.cat([w.flatten() for w in weights(tmp_path / name).values()]) for name in ("whole", "divided"))
    assert (one - other).square().mean().sqrt() < 5e-6


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("parallelism.dp_shard=3", "parallelism.dp_shard=3: make 3 processes, this command was started in 2"),
        (
            "parallelism.dp_replicate=2 parallelism.dp_shard=2",
            "parallelism.dp_replicate=2 parallelism.dp_shard=2: make 4",
        ),
        ("generator=vag image_size=32 parallelism.dp_shard=2", "no network of this model names blocks to divide"),
    ],
)
def test_what_cannot_be_divided_is_one_line(
    words: str, told: str, clips: Path, together: Together, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    train = TRAIN if "generator=vag" not in words else "train-generator generator.num_frames=17"
    complaints = together(f"{train} dataset={clips} {words} out={out}", tmp_path)
    assert sum(text.count("vag: error") for text in complaints) == 1, complaints
    assert told in "".join(complaints)
    assert not (out / "tokenizer").exists()


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("kind", ["smolvla", "fastwam"])
@pytest.mark.parametrize("trained", ["", "policy.lora_rank=4"])
def test_pretrained_policies_are_divided(
    kind: str,
    trained: str,
    moving_square: Callable[..., Episode],
    torchrun: Torchrun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SmolVLA calls the layers of its blocks one by one; FastWAM has blocks of its own."""
    write_all(tmp_path / "hub")
    with EpisodeWriter(tmp_path / "data", 10, ["y", "x"], ["dy", "dx"]) as writer:
        for seed in range(4):
            episode = moving_square(seed)
            writer.add(replace(episode, images=None, cameras={"observation.images.top": episode.images}))
    options = {name: list(value) if isinstance(value, tuple) else value for name, value in SMALL[kind].items()}
    for name in ("video_dit_config", "action_dit_config") if kind == "fastwam" else ():
        options[name] = {**options[name], "action_dim": 2}
    words = (
        f"pretrain policy={kind} policy.options={typed(options)} real=[{tmp_path / 'data'}] optim.steps=3 "
        f"optim.batch_size=2 optim.learning_rate=1e-4 runtime.device=cpu runtime.threads=1 {trained}"
    )
    learned = []
    for name, divided in (("whole", ""), ("divided", DIVIDED)):
        started = torchrun(f"{words} {divided} out={tmp_path / name}", HF_HUB_CACHE=str(tmp_path / "hub"))
        said, complaints = started.communicate(timeout=250)
        assert started.returncode == 0, complaints[-3000:]
        assert ("FSDP2: " in said) == bool(divided)
        learned.append(weights(tmp_path / name, "pretrained_model"))
    assert furthest(*learned) < NEAR
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert isinstance(load_policy(tmp_path / "divided/pretrained_model"), PolicyObjective)
