"""Pretrained video models: tiny ones of the real classes give what diffusers' own pipelines give."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vag_core import Generator, GeneratorConfig
from vag_core.backbones.directory import check_directory, locate
from vag_core.backbones.models import VideoModel, fit_to_model, load_model
from vag_core.backbones.published import TRANSFORMERS
from vag_core.config import ForwardDynamicsConfig, InstructionConfig, PretrainedConfig, PretrainedTokenizerConfig
from vag_core.flow_matching import integrate
from vag_core.sampling import Guided, PinnedStreams, Settings, solve

diffusers = pytest.importorskip("diffusers")
WIDTHS = {"cosmos": 16, "cosmos25": 32, "wan": 16}
SIZE, FRAMES = 64, 9
KINDS = list(WIDTHS)


class Checker(torch.nn.Module):
    """In the place of the pipeline's safety checker."""

    device, dtype = torch.device("cpu"), torch.float32


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def inputs(kind: str) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(3)
    image = torch.rand(1, 3, SIZE, SIZE, generator=rng)
    text, free = torch.randn(2, 1, 7, WIDTHS[kind], generator=rng)
    return image, text, free


def pipeline_of(model: VideoModel) -> Any:
    parts = {"text_encoder": None, "tokenizer": None, "vae": model.tokenizer.vae}
    parts |= {"transformer": model.network.transformer, "scheduler": model.network.scheduler}
    if model.directory.kind == "wan":
        pipe = diffusers.WanImageToVideoPipeline(**parts, expand_timesteps=True)
    elif model.directory.kind == "cosmos":
        pipe = diffusers.Cosmos2VideoToWorldPipeline(**parts, safety_checker=Checker())
    else:
        pipe = diffusers.Cosmos2_5_PredictBasePipeline(**parts, safety_checker=Checker())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents_of_pipeline(model: VideoModel, noise: Tensor, steps: int, guidance: float) -> Tensor:
    image, text, free = inputs(model.directory.kind)
    given: dict[str, Any] = {"image": image}
    if model.directory.kind == "cosmos25":
        given = {"video": (2 * image - 1)[:, :, None], "num_latent_conditional_frames": 1}
    return pipeline_of(model)(
        **given,
        height=SIZE,
        width=SIZE,
        num_frames=FRAMES,
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=noise,
        prompt_embeds=text,
        negative_prompt_embeds=free,
        output_type="latent",
        return_dict=False,
    )[0]


CASES = [("cosmos", "", steps, guidance) for steps in (35, 10) for guidance in (1.0, 7.0)]
CASES += [("cosmos25", "", 36, 7.0), ("cosmos25", "", 10, 1.0), ("wan", "", 10, 5.0), ("wan", "euler", 20, 5.0)]


def generator_of(model: VideoModel) -> Generator:
    """A new generator on the model, without an action branch: it adds nothing yet to what the model makes."""
    kind = model.directory.kind
    config = GeneratorConfig(
        image_size=[SIZE, SIZE],
        num_frames=FRAMES,
        tokenizer=PretrainedTokenizerConfig(),
        video=PretrainedConfig(family=kind, path=str(model.directory.path), lora_rank=2),
        action=ForwardDynamicsConfig(),
        instruction=InstructionConfig(kind="tokens"),
    )
    fit_to_model(config, model.directory)
    generator = Generator(config, attach=False)
    generator.attach(model)
    return generator.eval()


@pytest.mark.parametrize(("kind", "solver", "steps", "guidance"), CASES)
def test_sampler_equals_the_pipeline(
    cache: Path, monkeypatch: pytest.MonkeyPatch, kind: str, solver: str, steps: int, guidance: float
) -> None:
    """The pipelines leave some noise on the first latent; ours is the picture's. LoRA and hearing begin at zero."""
    model = load_model(f"tiny:{kind}", cache=cache)
    if solver:
        model.network.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0)
    if kind == "cosmos":  # it draws from the posterior, where the others take its mode
        posterior = diffusers.models.autoencoders.vae.DiagonalGaussianDistribution
        monkeypatch.setattr(posterior, "sample", lambda self, generator=None: self.mode())
    image, text, free = inputs(kind)
    first = model.tokenizer.encode_first(image)
    own = torch.randn(first.shape[1], 2, *first.shape[3:], generator=torch.Generator().manual_seed(4))
    noise = torch.cat([first[0], own], dim=1)[None]
    theirs = latents_of_pipeline(model, noise, steps, guidance)

    generator = generator_of(model)
    if kind == "cosmos25":
        text, free = model.network.project(text), model.network.project(free)
    state, actions = torch.randn(1, 4), torch.randn(1, 8, 4)
    guided, unguided = (
        generator.encode_conditions(image, first, state, tokens, torch.ones(1)) for tokens in (text, free)
    )
    rng = torch.Generator().manual_seed(4)
    settings = Settings(steps, guidance, None, "actions_once", rng, score=False)
    slopes = Guided(generator, guided, unguided if guidance > 1 else None, settings)
    pinned = PinnedStreams(actions=actions, states=torch.randn(1, 9, 4))
    with torch.no_grad():
        ours, _, _ = solve(generator, state, slopes, pinned, settings)
    assert ours.std() > 0.1
    assert (ours - theirs[:, :, 1:]).abs().max() < 1e-4


def test_grid_of_times_is_that_of_the_scheduler(cache: Path) -> None:
    model = load_model("tiny:cosmos", cache=cache)
    scheduler = pipeline_of(model).scheduler  # the pipeline sets the ends of the grid
    scheduler.set_timesteps(sigmas=torch.linspace(0, 1, 35, dtype=torch.float64))
    sigmas = scheduler.sigmas[:-1].double()
    assert torch.allclose(torch.tensor(model.network.clock(35).times).double(), sigmas / (1 + sigmas), atol=1e-6)
    for kind in ("cosmos25", "wan"):
        network = load_model(f"tiny:{kind}", cache=cache).network
        clock = network.clock(10)
        network.scheduler.set_timesteps(10)
        assert clock.times == network.scheduler.sigmas.tolist()
        expected = network.scheduler.timesteps.tolist() if kind == "wan" else clock.times[:-1]
        assert clock.asked == expected


def test_video_has_its_solver_beside_a_stream_of_euler_steps(cache: Path) -> None:
    clock = load_model("tiny:wan", cache=cache).network.clock(6)
    times = [(t, 1 - i / 6) for i, t in enumerate(clock.times)]
    slope, noise = torch.tensor([[0.3]]), torch.ones(1, 1)
    alone = integrate(lambda x, t: (-x[0],), (noise,), [t[:1] for t in times], steppers=(clock.stepper,))
    clock = load_model("tiny:wan", cache=cache).network.clock(6)
    both = integrate(lambda x, t: (-x[0], slope), (noise, noise), times, steppers=(clock.stepper, None))
    assert torch.equal(both[0], alone[0])
    assert torch.allclose(both[1], noise - slope)
    assert (integrate(lambda x, t: (-x[0],), (noise,), [t[:1] for t in times])[0] - alone[0]).abs() > 1e-3
    with pytest.raises(ValueError, match="solver of its own"):
        integrate(lambda x, t: x, (noise,), [(1.0,), (0.0,)], "heun", (clock.stepper,))


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizer_is_causal_and_frozen(cache: Path, kind: str) -> None:
    tokenizer = load_model(f"tiny:{kind}", cache=cache).tokenizer
    frames = torch.rand(2, 3, FRAMES, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    latents = tokenizer.encode(frames)
    side = SIZE // tokenizer.spatial_stride
    assert latents.shape == (2, tokenizer.channels, 3, side, side)
    assert torch.equal(tokenizer.encode_first(frames[:, :, 0]), latents[:, :, :1])
    assert torch.equal(tokenizer.encode(frames[:, :, :5]), latents[:, :, :2])
    decoded = tokenizer.decode(latents, frames[:, :, 0])
    assert decoded.shape == frames.shape
    assert torch.equal(decoded[:, :, 0], frames[:, :, 0])
    assert not any(weight.requires_grad for weight in tokenizer.parameters())


@pytest.mark.parametrize(("kind", "count"), [("cosmos", 1_956_413_440), ("wan", 4_999_787_712)])
def test_published_sizes(kind: str, count: int) -> None:
    name = "WanTransformer3DModel" if kind == "wan" else "CosmosTransformer3DModel"
    with torch.device("meta"):
        network = getattr(diffusers, name)(**TRANSFORMERS[kind])
    assert sum(weight.numel() for weight in network.parameters()) == count


@pytest.mark.parametrize("kind", KINDS)
def test_tiny_model_is_small_and_written_once(cache: Path, kind: str) -> None:
    path = locate(f"tiny:{kind}", cache).path
    files = [file for file in path.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 1_000_000
    before = {file: file.stat().st_mtime_ns for file in files}
    assert locate(path).kind == kind
    assert locate(f"tiny:{kind}", cache).path == path
    assert {file: file.stat().st_mtime_ns for file in files} == before


def damage_index(path: Path, **changes: Any) -> None:
    index = path / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), **changes}))


def test_bad_directories_are_refused_in_one_line(cache: Path, tmp_path: Path) -> None:
    good = locate("tiny:wan", cache).path
    weights = Path("transformer/diffusion_pytorch_model.safetensors")
    shards = json.dumps({"weight_map": {"a": "one.safetensors"}})
    cases: list[tuple[Any, str]] = [
        (lambda path: (path / "model_index.json").unlink(), "no model_index.json"),
        (lambda path: damage_index(path, _class_name="FluxPipeline"), "FluxPipeline; expected one of"),
        (lambda path: damage_index(path, transformer=["pipeline", "WanTransformer3DModel"]), "expected diffusers'"),
        (lambda path: damage_index(path, expand_timesteps=False), "expected Wan2.2-TI2V"),
        (lambda path: (path / weights).unlink(), "half downloaded"),
        (lambda path: (path / weights).write_bytes((path / weights).read_bytes()[:5000]), "truncated"),
        (lambda path: (path / f"{weights}.index.json").write_text(shards), "one.safetensors: not found"),
        (lambda path: (path / "vae" / "config.json").unlink(), "not found"),
    ]
    for number, (damage, text) in enumerate(cases):
        path = tmp_path / str(number)
        shutil.copytree(good, path)
        damage(path)
        with pytest.raises(ValueError, match=text) as caught:
            check_directory(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="directory not found"):
        locate(tmp_path / "nothing")
    with pytest.raises(ValueError, match="tiny:flux: expected one of tiny:cosmos"):
        locate("tiny:flux", cache)


def test_missing_weight_is_refused(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "model"
    shutil.copytree(locate("tiny:wan", cache).path, path)
    file = path / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    save_file({name: weight for name, weight in weights.items() if name != "proj_out.bias"}, file)
    with pytest.raises(ValueError, match="missing weight 'proj_out.bias'"):
        load_model(path)


@pytest.mark.parametrize(
    ("part", "change", "text"),
    [
        ("transformer", {"ffn_dim": 10**9}, "asks for a larger transformer than the file holds"),
        ("vae", {"base_dim": 10**6}, "asks for a larger vae than the file holds"),
        ("transformer", {"num_attention_heads": "many"}, "cannot be built"),
    ],
)
def test_a_config_larger_than_its_weights_is_refused_before_it_is_built(
    cache: Path, tmp_path: Path, part: str, change: dict[str, Any], text: str
) -> None:
    path = tmp_path / "model"
    shutil.copytree(locate("tiny:wan", cache).path, path)
    config = path / part / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    with pytest.raises(ValueError, match=text) as caught:
        load_model(path)
    assert str(path / part) in str(caught.value)


def test_sizes_that_do_not_divide_are_refused(cache: Path) -> None:
    model = load_model("tiny:wan", cache=cache)
    model.check_size(448, 768, 93)
    for size, text in (((432, 768, 93), "multiples of 32"), ((448, 768, 92), "1 \\+ a multiple of 4")):
        with pytest.raises(ValueError, match=text):
            model.check_size(*size)
    with pytest.raises(ValueError, match="the model knows 128"):
        load_model("tiny:cosmos", cache=cache).check_size(432, 768, 513)


def test_missing_diffusers_says_what_to_install(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r"lerobot_policy_vag\[video\]"):
        load_model("tiny:cosmos", cache=cache)
