"""Stable Video Diffusion: a tiny one of the real classes gives the frames of diffusers' own pipeline."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from vag_core.backbones.svd import Svd, check_svd, load_svd, locate_svd, nearest_frames, told_fps

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
UNET = Path("unet/diffusion_pytorch_model.safetensors")
ENCODER = Path("image_encoder/model.safetensors")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def svd(cache: Path) -> Svd:
    return load_svd("tiny:svd", cache=cache)


def picture(height: int = 32, width: int = 48) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8)


def seeded(seed: int = 4) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_frames_are_those_of_the_pipeline(svd: Svd) -> None:
    """diffusers' own loader, which builds every part by itself, and its own call."""
    theirs = diffusers.StableVideoDiffusionPipeline.from_pretrained(svd.directory.path, torch_dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    told: dict[str, Any] = {"num_inference_steps": 3, "fps": 9, "motion_bucket_id": 60}
    video = theirs(Image.fromarray(picture()), height=32, width=48, generator=seeded(), **told).frames[0]
    ours = svd.sample(picture(), seeded(), **told)
    assert ours.shape == (5, 32, 48, 3)
    assert np.array_equal(ours, np.stack(video))
    assert ours.std(axis=0).mean() > 1  # the frames differ
    assert not np.array_equal(svd.sample(picture(), seeded(5), **told), ours)
    assert not np.array_equal(svd.sample(picture(), seeded(), **told | {"num_inference_steps": 4}), ours)


def test_network_is_told_rate_and_motion(svd: Svd) -> None:
    """The tiny one is too narrow for its frames to show it."""
    heard: list[Any] = []
    hook = svd.pipeline.unet.register_forward_pre_hook(
        lambda module, args, told: heard.append(told["added_time_ids"]), with_kwargs=True
    )
    svd.sample(picture(), seeded(), num_inference_steps=1, fps=9, motion_bucket_id=60)
    hook.remove()
    assert torch.allclose(heard[0], torch.tensor([[8, 60, 0.02]] * 2))  # the pipeline takes one off the rate


def test_frames_decoded_in_parts_are_all_there(svd: Svd) -> None:
    assert svd.sample(picture(), seeded(), num_inference_steps=1, decode_chunk_size=2).shape == (5, 32, 48, 3)


def test_tiny_model_is_small_and_written_once(cache: Path) -> None:
    found = locate_svd("tiny:svd", cache)
    files = [file for file in found.path.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 1_000_000
    before = {file: file.stat().st_mtime_ns for file in files}
    assert locate_svd("tiny:svd", cache) == found
    assert {file: file.stat().st_mtime_ns for file in files} == before
    assert (found.size, found.num_frames, found.stride) == ((64, 64), 5, 2)
    assert locate_svd(found.path).size == (576, 1024)
    assert [file.relative_to(found.path) for file in found.weights][:2] == [ENCODER, UNET]
    again = locate_svd("tiny:svd", cache / "again")
    assert [file.read_bytes() for file in again.weights] == [file.read_bytes() for file in found.weights]
    with pytest.raises(ValueError, match=r"\[33, 64\]; expected multiples of 2"):
        found.check_size((33, 64))


def test_download_takes_the_parts_that_are_read(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny, asked = locate_svd("tiny:svd", cache).path, list[dict[str, Any]]()
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(
        hub, "snapshot_download", lambda name, **told: asked.append({"name": name, **told}) or str(tiny)
    )
    assert locate_svd("owner/svd-xt").path == tiny
    index, rest = asked
    assert (index["name"], index["allow_patterns"]) == ("owner/svd-xt", ["model_index.json"])
    assert rest["revision"] == tiny.name
    files = [str(file.relative_to(tiny)) for file in tiny.rglob("*") if file.is_file() and file.parent != tiny]
    others = ["unet/diffusion_pytorch_model.fp16.safetensors", "svd_xt.safetensors", "unet/model.py", "vae/model.bin"]
    patterns = {key: rest[key] for key in ("allow_patterns", "ignore_patterns")}
    assert set(hub.utils.filter_repo_objects([*files, *others], **patterns)) == set(files)


def change(path: Path, file: str, **values: Any) -> None:
    (path / file).write_text(json.dumps({**json.loads((path / file).read_text()), **values}))


def test_bad_directories_are_refused_in_one_line(cache: Path, tmp_path: Path) -> None:
    good, code = locate_svd("tiny:svd", cache).path, {"AutoModel": "model.Evil"}
    cases: list[tuple[Any, str]] = [
        (lambda path: (path / "model_index.json").unlink(), "no model_index.json"),
        (lambda path: change(path, "model_index.json", _class_name="WanPipeline"), "WanPipeline; expected Stable"),
        (lambda path: change(path, "model_index.json", unet=["pipeline", "UNet"]), "unet = .* expected diffusers'"),
        (lambda path: change(path, "model_index.json", scheduler=["diffusers", "DDIMScheduler"]), "EulerDiscrete"),
        (lambda path: change(path, "model_index.json", image_encoder=["x", "CLIPVisionModel"]), "transformers' CLIP"),
        (lambda path: change(path, "image_encoder/config.json", auto_map=code), "'auto_map' names code"),
        (lambda path: change(path, "feature_extractor/preprocessor_config.json", auto_map=code), "names code"),
        (lambda path: change(path, "unet/config.json", num_frames="many"), "num_frames = many"),
        (lambda path: change(path, "vae/config.json", block_out_channels=3), "block_out_channels = 3"),
        (lambda path: (path / UNET).unlink(), "half downloaded"),
        (lambda path: (path / ENCODER).rename(path / "image_encoder/pytorch_model.bin"), "half downloaded"),
        (lambda path: (path / ENCODER).write_bytes((path / ENCODER).read_bytes()[:5000]), "truncated"),
        (lambda path: (path / "scheduler/scheduler_config.json").unlink(), "not found"),
        (lambda path: (path / "feature_extractor/preprocessor_config.json").unlink(), "not found"),
    ]
    for number, (damage, text) in enumerate(cases):
        path = tmp_path / str(number)
        shutil.copytree(good, path)
        damage(path)
        with pytest.raises(ValueError, match=text) as caught:
            check_svd(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="directory not found"):
        locate_svd(tmp_path / "nothing")
    with pytest.raises(ValueError, match="tiny:wan: expected tiny:svd"):
        locate_svd("tiny:wan", cache)


@pytest.mark.parametrize(("file", "weight"), [(UNET, "conv_out.bias"), (ENCODER, "visual_projection.weight")])
def test_missing_weight_is_refused(cache: Path, tmp_path: Path, file: Path, weight: str) -> None:
    path = tmp_path / "model"
    shutil.copytree(locate_svd("tiny:svd", cache).path, path)
    save_file({name: one for name, one in load_file(path / file).items() if name != weight}, path / file)
    with pytest.raises(ValueError, match=f"missing.*'{weight}'"):
        load_svd(path)


def test_config_of_the_image_encoder_fetches_nothing(cache: Path, tmp_path: Path) -> None:
    """transformers' own loader would take the weights of the model that an adapter names."""
    path = tmp_path / "model"
    shutil.copytree(locate_svd("tiny:svd", cache).path, path)
    (path / "image_encoder/adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "no/such-model"}))
    frames = load_svd(path).sample(picture(), seeded(), num_inference_steps=1)
    assert np.array_equal(frames, load_svd("tiny:svd", cache=cache).sample(picture(), seeded(), num_inference_steps=1))
    for code in ({"_attn_implementation": "owner/kernels"}, {"quantization_config": {"bits": 4}}):
        change(path, "image_encoder/config.json", **code)
        with pytest.raises(ValueError, match="names code; expected a plain model"):
            load_svd(path)


@pytest.mark.parametrize("library", ["diffusers", "transformers"])
def test_missing_library_says_what_to_install(cache: Path, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ValueError, match=rf"needs {library}; .*lerobot_policy_vag\[video\]"):
        load_svd("tiny:svd", cache=cache)


def test_frames_are_the_nearest_in_time() -> None:
    assert told_fps(13, 10, 25) == 20  # 1.2 seconds, as the window
    assert nearest_frames(13, 10, 25, 20).tolist() == list(range(0, 25, 2))
    assert told_fps(5, 10 / 3, 25) == 20
    assert nearest_frames(5, 10 / 3, 25, 20).tolist() == [0, 6, 12, 18, 24]
    assert nearest_frames(9, 10, 5, 5).tolist() == [0, 0, 1, 2, 2, 2, 3, 4, 4]  # more than there are
    assert told_fps(2, 10, 25) == 31  # no rate that it has not learned
    assert nearest_frames(2, 10, 25, 31).tolist() == [0, 3]
    assert told_fps(93, 10, 25) == 6
    assert nearest_frames(93, 10, 25, 6).tolist()[-50:] == [24] * 50  # past the end
    assert told_fps(1, 10, 25) == 31
