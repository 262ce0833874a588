"""Text of pretrained video models: tiny ones of the real classes make what diffusers' own pipelines make."""

import json
import shutil
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vag_core.backbones import text as text_module
from vag_core.backbones.directory import ModelDirectory, check_directory, check_text, locate
from vag_core.backbones.models import load_model
from vag_core.backbones.text import negative_prompt, text_contexts, text_width
from vag_core.backbones.text_encoder import clean_prompt, encoder_id, load_encoder
from vag_core.flow_matching import integrate

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
KINDS = ["cosmos", "cosmos25", "wan"]
PROMPTS = ["Put the red block into the bowl.", "push  it &amp; stop", "", "word " * 300]
CPU = torch.device("cpu")
BF16 = 2**-8  # half a step, relative


class Checker(torch.nn.Module):
    """In the place of the pipeline's safety checker."""

    device, dtype = torch.device("cpu"), torch.float32


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def copy(cache: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A tiny model that a test may damage."""
    return shutil.copytree(locate(f"tiny:{request.param}", cache).path, tmp_path / "model")


def refuse(*arguments: Any) -> None:
    raise AssertionError("the encoder is loaded")


def of_pipeline(directory: ModelDirectory, prompts: list[str], max_length: int = 512) -> Tensor:
    """Of the pipeline's own `encode_prompt`; for Cosmos-Predict2.5 through the projection of its network."""
    kinds = {"cosmos": "T5EncoderModel", "cosmos25": "Qwen2_5_VLForConditionalGeneration", "wan": "UMT5EncoderModel"}
    encoder = getattr(transformers, kinds[directory.kind]).from_pretrained(directory.path / "text_encoder")
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory.path / "tokenizer")
    model = load_model(directory.path)
    parts = {"text_encoder": encoder, "tokenizer": tokenizer, "vae": model.tokenizer.vae}
    parts |= {"transformer": model.network.transformer, "scheduler": model.network.scheduler}
    if directory.kind == "wan":
        pipe = diffusers.WanPipeline(**parts, expand_timesteps=True)
    elif directory.kind == "cosmos":
        pipe = diffusers.Cosmos2VideoToWorldPipeline(**parts, safety_checker=Checker())
    else:
        pipe = diffusers.Cosmos2_5_PredictBasePipeline(**parts, safety_checker=Checker())
    with torch.no_grad():
        text, _ = pipe.encode_prompt(prompts, do_classifier_free_guidance=False, max_sequence_length=max_length)
        if directory.kind == "cosmos25":
            linear = model.network.transformer.crossattn_proj[0]
            text = torch.nn.functional.gelu(linear(text))
    return text


@pytest.mark.parametrize("kind", KINDS)
def test_contexts_equal_the_pipeline(cache: Path, tmp_path: Path, kind: str) -> None:
    directory = locate(f"tiny:{kind}", cache)
    state = torch.random.get_rng_state()
    ours = text_contexts(directory, PROMPTS, tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state)
    theirs = of_pipeline(directory, PROMPTS)
    assert ours.dtype == torch.float32
    assert ours.shape == theirs.shape == (len(PROMPTS), 512, text_width(directory))
    assert torch.equal(ours == 0, theirs == 0)
    assert (ours - theirs).abs().le(BF16 * theirs.abs() + 1e-5).all()
    zeros = (ours == 0).all(dim=-1).sum(dim=1).tolist()
    assert zeros == ([0] * 4 if kind == "cosmos25" else [512 - length for length in (zeros_of(kind))])


def zeros_of(kind: str) -> tuple[int, ...]:
    """Tokens of PROMPTS: a letter each, a mark for each word and one for the end."""
    words = [clean_prompt(kind, prompt).split() for prompt in PROMPTS]
    return tuple(min(512, 1 + sum(1 + len(word) for word in prompt)) for prompt in words)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_before_rounding_equal_the_pipeline(cache: Path, tmp_path: Path, kind: str) -> None:
    directory = locate(f"tiny:{kind}", cache)
    encoder, theirs = load_encoder(directory, CPU), of_pipeline(directory, PROMPTS[:1], 64)
    row = encoder.encode(clean_prompt(kind, PROMPTS[0]), 64)
    assert torch.allclose(row, theirs[0, : len(row)], atol=1e-6)
    assert not theirs[0, len(row) :].any()
    short = text_contexts(directory, PROMPTS[:1], tmp_path, max_length=9)
    assert (short - of_pipeline(directory, PROMPTS[:1], 9)).abs().max() < 0.02
    assert text_contexts(directory, PROMPTS[:1], tmp_path).shape[1] == 512


@pytest.mark.parametrize("copy", KINDS, indirect=True)
def test_weights_may_lie_in_many_files(copy: Path, tmp_path: Path) -> None:
    directory = check_directory(copy)
    whole = text_contexts(directory, PROMPTS[:1], tmp_path)
    for name, part in (("text_encoder", load_encoder(directory, CPU).encoder), ("transformer", network_of(directory))):
        shutil.rmtree(copy / name)
        part.save_pretrained(copy / name, max_shard_size="10KB")
        assert len(list((copy / name).glob("*.safetensors"))) > 1
    assert encoder_id(directory, 512) not in {folder.name for folder in (tmp_path / "text").iterdir()}
    assert torch.equal(text_contexts(check_directory(copy), PROMPTS[:1], tmp_path), whole)


def network_of(directory: ModelDirectory) -> Any:
    return load_model(directory.path).network.transformer


@pytest.mark.parametrize("kind", KINDS)
def test_encoder_is_freed(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    encoders = []

    def load(*given: Any) -> Any:
        encoder = load_encoder(*given)
        encoders.append(weakref.ref(encoder.encoder))
        return encoder

    monkeypatch.setattr(text_module, "load_encoder", load)
    text_contexts(locate(f"tiny:{kind}", cache), PROMPTS, tmp_path)
    assert [encoder() for encoder in encoders] == [None]


def test_cut_short_write_leaves_nothing(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = locate("tiny:cosmos", cache)

    def full(*given: Any) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        with pytest.raises(ValueError, match="cannot be written .No space left"):
            text_contexts(directory, ["push"], tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert text_contexts(directory, ["push"], tmp_path).any()


@pytest.mark.parametrize("kind", KINDS)
def test_second_call_loads_no_encoder(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    directory = locate(f"tiny:{kind}", cache)
    first = text_contexts(directory, PROMPTS, tmp_path)
    monkeypatch.setattr(text_module, "load_encoder", refuse)
    monkeypatch.setitem(sys.modules, "transformers", None)
    again = text_contexts(directory, [*PROMPTS[::-1], PROMPTS[0]], tmp_path)
    assert torch.equal(again, torch.stack([*first.flip(0), first[0]]))
    with pytest.raises(AssertionError, match="the encoder is loaded"):
        text_contexts(directory, ["another"], tmp_path)
    assert text_contexts(directory, [], tmp_path).shape == (0, 512, text_width(directory))


def test_encoder_is_loaded_once_for_all_that_is_missing(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, loads = locate("tiny:wan", cache), []
    monkeypatch.setattr(text_module, "load_encoder", lambda *given: loads.append(given) or load_encoder(*given))
    text_contexts(directory, ["one"], tmp_path)
    text_contexts(directory, ["one", "two", "three", "two", " three"], tmp_path)
    assert len(loads) == 2
    files = list((tmp_path / "text").rglob("*"))
    assert sorted(file.suffix for file in files if file.is_file()) == [".safetensors"] * 3  # " three" is cleaned
    assert sum(file.stat().st_size for file in files if file.is_file()) < 3 * 1000  # without padding


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_file_is_made_again(cache: Path, tmp_path: Path, kind: str) -> None:
    directory = locate(f"tiny:{kind}", cache)
    whole = text_contexts(directory, PROMPTS[:1], tmp_path)
    (file,) = (tmp_path / "text").rglob("*.safetensors")
    content = file.read_bytes()
    wrong = {"context": torch.zeros(3, text_width(directory) + 1, dtype=torch.bfloat16)}
    for damage in (
        lambda: file.write_bytes(content[:-9]),
        lambda: file.write_bytes(b"\0" * len(content)),
        lambda: save_file(wrong, file),
        lambda: save_file({"other": torch.zeros(1)}, file),
        lambda: save_file({"context": wrong["context"][:, 1:] * torch.nan}, file),
    ):
        damage()
        assert torch.equal(text_contexts(directory, PROMPTS[:1], tmp_path), whole)
        assert file.read_bytes() == content


@pytest.mark.parametrize("copy", KINDS, indirect=True)
def test_another_encoder_has_another_id(copy: Path) -> None:
    directory = check_directory(copy)
    known = {encoder_id(directory, 512)}

    def changed(change: Any) -> None:
        """Another id, and the first one again if the change is taken back."""
        before = {file: file.read_bytes() for file in copy.rglob("*") if file.is_file()}
        change()
        new = encoder_id(directory, 512)
        assert new not in known
        known.add(new)
        for file, content in before.items():
            file.write_bytes(content)
        assert encoder_id(directory, 512) in known

    def edit(name: str, **changes: Any) -> None:
        (copy / name).write_text(json.dumps({**json.loads((copy / name).read_text()), **changes}))

    def scale(name: str, factor: float, key: str = "") -> None:
        weights = load_file(copy / name)
        key = key or sorted(weights)[-1]
        save_file(weights | {key: weights[key] * factor}, copy / name, metadata={"format": "pt"})

    assert encoder_id(directory, 64) not in known
    changed(lambda: scale("text_encoder/model.safetensors", 1.5))
    changed(lambda: edit("text_encoder/config.json", layer_norm_epsilon=1e-5))
    changed(lambda: edit("tokenizer/tokenizer_config.json", pad_token="!"))
    projection = "transformer/diffusion_pytorch_model.safetensors"
    if directory.kind == "cosmos25":
        changed(lambda: scale(projection, 1.5, "crossattn_proj.0.weight"))
    same = encoder_id(directory, 512)
    scale(projection, 1.5, "proj_out.weight")
    assert encoder_id(directory, 512) == same


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_bad_text_parts_are_refused_in_one_line(cache: Path, tmp_path: Path) -> None:
    encoder, tokenizer = Path("text_encoder"), Path("tokenizer")
    code = {"AutoModel": "model.Model"}
    cases: list[tuple[Any, str]] = [
        (lambda path: shutil.rmtree(path / encoder), "text_encoder: not found; text needs"),
        (lambda path: shutil.rmtree(path / tokenizer), "tokenizer: not found; text needs"),
        (lambda path: (path / encoder / "model.safetensors").unlink(), "half downloaded"),
        (lambda path: (path / encoder / "config.json").unlink(), "config.json: not found"),
        (lambda path: (path / tokenizer / "tokenizer.json").unlink(), "tokenizer.json: not found"),
        (lambda path: (path / tokenizer / "tokenizer_config.json").unlink(), "tokenizer_config.json: not found"),
        (lambda path: shorten(path / encoder / "model.safetensors"), "truncated"),
        (lambda path: edit_json(path / "model_index.json", text_encoder=["a", "Code"]), "expected transformers' UMT5"),
        (lambda path: edit_json(path / "model_index.json", tokenizer=[None, None]), "expected transformers' T5Tok"),
        (lambda path: edit_json(path / tokenizer / "tokenizer_config.json", tokenizer_class="CLIPTokenizer"), "CLIP"),
        (lambda path: edit_json(path / tokenizer / "tokenizer_config.json", auto_map=code), "'auto_map' names code"),
        (lambda path: edit_json(path / encoder / "config.json", auto_map=code), "'auto_map' names code"),
        (lambda path: edit_json(path / encoder / "config.json", _attn_implementation="a/b"), "names code"),
        (lambda path: (path / encoder / "adapter_config.json").write_text("{}"), "adapter of another model"),
        (lambda path: edit_json(path / encoder / "config.json", d_model=1 << 20), "larger text encoder than the file"),
        (lambda path: edit_json(path / encoder / "config.json", num_layers=3), "missing weight 'encoder.block.2"),
        (lambda path: edit_json(path / "transformer" / "config.json", text_dim="wide"), "text_dim = wide"),
        (lambda path: edit_json(path / "transformer" / "config.json", text_dim=17), "gives 16 numbers a token"),
        (lambda path: drop(path / encoder / "model.safetensors"), "missing weight"),
        (lambda path: (path / tokenizer / "tokenizer.json").write_text("{}"), "cannot be loaded"),
    ]
    good = locate("tiny:wan", cache).path
    for number, (damage, text) in enumerate(cases):
        path = shutil.copytree(good, tmp_path / str(number))
        damage(path)
        with pytest.raises(ValueError, match=text) as caught:
            text_contexts(check_directory(path), ["push"], tmp_path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        if "text_dim" not in text and "numbers" not in text:
            assert load_model(path).network  # which needs no text


def shorten(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:3000])


def drop(file: Path) -> None:
    weights = load_file(file)
    save_file(
        {name: weight for name, weight in weights.items() if "final" not in name}, file, metadata={"format": "pt"}
    )


@pytest.mark.parametrize("copy", ["cosmos25"], indirect=True)
def test_qwen_with_bad_parts_is_refused_in_one_line(copy: Path, tmp_path: Path) -> None:
    directory = check_directory(copy)
    template = copy / "tokenizer" / "chat_template.jinja"
    template.write_text("{{ messages.nothing.inside }}")
    with pytest.raises(ValueError, match="its chat template cannot be used"):
        text_contexts(directory, ["push"], tmp_path)
    template.write_text("{{ messages[1].content[0].text }}")
    assert text_contexts(directory, ["push"], tmp_path).any()
    weights = load_file(copy / "transformer" / "diffusion_pytorch_model.safetensors")
    del weights["crossattn_proj.0.bias"]
    save_file(weights, copy / "transformer" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match="missing weight 'crossattn_proj.0.bias'"):
        text_contexts(directory, ["push"], tmp_path)
    edit_json(copy / "transformer" / "config.json", use_crossattn_projection=False)
    with pytest.raises(ValueError, match="config.json: no use_crossattn_projection"):
        check_directory(copy)


@pytest.mark.parametrize("copy", KINDS, indirect=True)
def test_tokenizer_of_a_larger_vocabulary_is_refused(copy: Path, tmp_path: Path) -> None:
    file = copy / "text_encoder" / "config.json"
    config, weights = json.loads(file.read_text()), load_file(copy / "text_encoder" / "model.safetensors")
    for part in (config, config.get("text_config", {})):
        part |= {"vocab_size": 4} if "vocab_size" in part else {}
    file.write_text(json.dumps(config))
    few = {name: weight[:4] if len(weight) in (128, 272) else weight for name, weight in weights.items()}
    save_file(few, copy / "text_encoder" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="tokenizer: makes ids .* all below the encoder's 4"):
        text_contexts(check_directory(copy), ["push"], tmp_path)


@pytest.mark.parametrize("copy", ["cosmos"], indirect=True)
def test_bad_prompts_and_caches_are_refused_in_one_line(copy: Path, tmp_path: Path) -> None:
    directory = check_directory(copy)
    with pytest.raises(ValueError, match="expected a list of prompts"):
        text_contexts(directory, "push", tmp_path)
    with pytest.raises(ValueError, match="max_length = 0"):
        text_contexts(directory, ["push"], tmp_path, max_length=0)
    with pytest.raises(ValueError, match="is not valid text"):
        text_contexts(directory, ["push \ud800"], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written .*VAG_CACHE"):
        text_contexts(directory, ["push"], tmp_path / "file")
    weights = load_file(copy / "text_encoder" / "model.safetensors")
    weights["shared.weight"][:] = torch.nan
    save_file(weights, copy / "text_encoder" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="text_encoder: 'push' holds numbers that are not finite"):
        text_contexts(directory, ["push"], tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_missing_transformers_says_what_to_install(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    directory = locate(f"tiny:{kind}", cache)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"pip install 'lerobot_policy_vag\[video\]'"):
        text_contexts(directory, ["push"], tmp_path)


def test_missing_diffusers_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r"pip install 'lerobot_policy_vag\[video\]'"):
        negative_prompt("cosmos")


def test_negative_prompts_are_those_of_the_pipelines() -> None:
    for kind, pipeline in (("cosmos", "Cosmos2VideoToWorldPipeline"), ("cosmos25", "Cosmos2_5_PredictBasePipeline")):
        module = sys.modules[getattr(diffusers, pipeline).__module__]
        assert negative_prompt(kind) == module.DEFAULT_NEGATIVE_PROMPT
        assert negative_prompt(kind).startswith("The video captures")
    assert negative_prompt("wan") == ""


def test_prompts_are_cleaned_as_wan_does() -> None:
    from diffusers.pipelines.wan.pipeline_wan import prompt_clean

    for prompt in ("  a \n\t b ", "fish &amp;amp; chips", "&nbsp;x&nbsp; y", "plain", ""):
        assert clean_prompt("wan", prompt) == prompt_clean(prompt)
        assert clean_prompt("cosmos", prompt) == prompt


def test_projected_text_is_not_projected_again(cache: Path, tmp_path: Path) -> None:
    """Sampling from the cache equals sampling from what the encoder gives, but for the rounding to bfloat16."""
    directory, prompts = locate("tiny:cosmos25", cache), [PROMPTS[0], negative_prompt("cosmos25")]
    model, encoder = load_model(directory.path), load_encoder(directory, CPU)
    raw = torch.stack([encoder.layers(prompt, 512) for prompt in prompts]).float()
    assert raw.shape == (2, 512, 32)
    projected = model.network.project(raw)
    assert projected.shape == (2, 512, 16)
    assert torch.equal(model.network.project(projected), projected)
    rng = torch.Generator().manual_seed(4)
    first = model.tokenizer.encode_first(torch.rand(1, 3, 32, 32, generator=rng))
    noise = torch.randn(1, 4, 2, 4, 4, generator=rng)

    @torch.no_grad()
    def sample(text: Tensor) -> Tensor:
        def velocity(streams: tuple[Tensor, ...], times: tuple[float, ...]) -> tuple[Tensor]:
            t = torch.full((1,), times[0])
            given, without = (model.network(streams[0], first, t, one[None])[0] for one in text)
            return (without + 4 * (given - without),)

        clock = model.network.clock(6)
        return integrate(velocity, (noise,), [(t,) for t in clock.times], steppers=(clock.stepper,))[0]

    assert torch.equal(sample(projected), sample(raw))
    kept = text_contexts(directory, prompts, tmp_path)
    assert (kept - projected).abs().le(BF16 * projected.abs() + 1e-6).all()
    assert 0 < (sample(kept) - sample(raw)).abs().max() < 0.005
    assert (sample(kept.flip(0)) - sample(raw)).abs().max() > 0.1
    names = model.network.transformer.state_dict()
    assert "crossattn_proj.0.weight" in names


def test_text_of_the_hub_is_fetched_when_it_is_asked_for(cache: Path, tmp_path: Path, monkeypatch: Any) -> None:
    good, snapshot, asked = locate("tiny:wan", cache).path, tmp_path / "0123abcd", []

    def snapshot_download(name: str, revision: str | None, allow_patterns: Any, **options: Any) -> str:
        asked.append((name, revision))
        assert options == {"ignore_patterns": ["*.fp16.*"], "local_files_only": False}
        for pattern in allow_patterns:
            for file in good.glob(pattern):
                (snapshot / file.relative_to(good)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, snapshot / file.relative_to(good))
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    directory = locate("someone/model@a/branch")
    assert not (snapshot / "text_encoder").exists()
    assert load_model(directory.path).network
    check_text(directory)
    assert asked == [("someone/model", "a/branch"), *[("someone/model", "0123abcd")] * 2]
    assert {file.relative_to(good) for file in good.rglob("*")} == {
        f.relative_to(snapshot) for f in snapshot.rglob("*")
    }
    here = replace(directory, path=good, hub="")
    assert torch.equal(text_contexts(directory, ["a"], tmp_path), text_contexts(here, ["a"], tmp_path))
