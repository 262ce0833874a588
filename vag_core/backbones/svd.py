"""Stable Video Diffusion (arXiv 2311.15127) by diffusers' own pipeline: a first picture in, a video out, no actions.

H, W: pictures; N: frames that the model makes, 14 or 25 as published. Everything here raises ValueError with one line
that names the path.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vag_core.backbones.files import (
    MOST_NUMBERS,
    TEXT_WEIGHTS,
    WEIGHTS,
    check_class,
    check_weights,
    find_directory,
    read_index,
    read_plain,
    weight_files,
)
from vag_core.backbones.models import import_diffusers, import_library, load_part
from vag_core.checkpoint import first_line, load_network, read_config

PIPELINE = "StableVideoDiffusionPipeline"
PARTS = {  # library, and class
    "unet": ("diffusers", "UNetSpatioTemporalConditionModel"),
    "vae": ("diffusers", "AutoencoderKLTemporalDecoder"),
    "scheduler": ("diffusers", "EulerDiscreteScheduler"),
    "image_encoder": ("transformers", "CLIPVisionModelWithProjection"),
    "feature_extractor": ("transformers", "CLIPImageProcessor"),
}
ENCODER_KEYS = (  # of CLIPVisionConfig; other keys of a config could have the library fetch something
    *("hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers", "num_attention_heads"),
    *("num_channels", "image_size", "patch_size", "hidden_act", "layer_norm_eps"),
)
SIZE, TINY_SIZE = (576, 1024), (64, 64)  # the published models were trained on
# Frames a second that the pipeline takes. It hands the network one less, and outside of 5 to 30 its authors' script
# warns (Stability-AI/generative-models, scripts/sampling/simple_video_sample.py).
FEWEST_FPS, MOST_FPS = 6, 31


@dataclass(frozen=True)
class SvdDirectory:
    """A checked directory. size: (height, width) that it makes if nothing else is asked for; num_frames: that it
    makes; stride: what height and width are multiples of, 64 as published."""

    path: Path
    size: tuple[int, int]
    num_frames: int
    stride: int

    def check_size(self, size: tuple[int, int]) -> None:
        """Raise ValueError for a (height, width) that the networks cannot halve as often as they do."""
        if min(size) < self.stride or size[0] % self.stride or size[1] % self.stride:
            raise ValueError(f"{self.path}: pictures of {list(size)}; expected multiples of {self.stride}")

    @property
    def weights(self) -> list[Path]:
        """Its files of weights, in the same order always."""
        return sorted(file for part in ("unet", "vae", "image_encoder") for file in _weight_files(self.path / part))


def locate_svd(path: str | Path, cache: Path | None = None) -> SvdDirectory:
    """A local directory, `owner/name` on the Hugging Face hub, or `tiny:svd`, found and checked; nothing is built.

    `tiny:svd` is random, of the real classes; it is written to `cache` (by default $VAG_CACHE or ~/.cache/vag) once.
    """
    from vag_core.backbones.tiny_svd import tiny_svd_directory

    found = check_svd(find_directory(path, tiny_svd_directory, list(PARTS), cache)[0])
    return SvdDirectory(found.path, TINY_SIZE, found.num_frames, found.stride) if str(path) == "tiny:svd" else found


def check_svd(path: Path) -> SvdDirectory:
    """The directory, with all files there and whole, and the classes of the pipeline alone."""
    index = path / "model_index.json"
    _, values = read_index(index, {PIPELINE: "svd"})
    for part, (library, kind) in PARTS.items():
        check_class(index, values, part, library, (kind,))
    for part in ("unet", "vae"):
        check_weights(path / part)
    check_weights(path / "image_encoder", TEXT_WEIGHTS)
    read_plain(path / "feature_extractor" / "preprocessor_config.json")
    read_config(path / "scheduler" / "scheduler_config.json")
    halvings = sum(_levels(path / part) - 1 for part in ("unet", "vae"))
    unet = path / "unet" / "config.json"
    num_frames = read_config(unet).get("num_frames", 25)  # diffusers' own default
    if type(num_frames) is not int or not 0 < num_frames <= 1000:
        raise ValueError(f"{unet}: num_frames = {str(num_frames)[:80]}; expected a number of frames")
    return SvdDirectory(path, SIZE, num_frames, 2**halvings)


def _levels(part: Path) -> int:
    channels = read_config(part / "config.json").get("block_out_channels")
    if not isinstance(channels, list) or not 0 < len(channels) <= 10:
        raise ValueError(f"{part / 'config.json'}: block_out_channels = {str(channels)[:80]}; expected a list")
    return len(channels)


def _weight_files(part: Path) -> list[Path]:
    return weight_files(part, TEXT_WEIGHTS if part.name == "image_encoder" else WEIGHTS)


@dataclass
class Svd:
    """directory: where it is from. pipeline: diffusers' own, frozen, in evaluation mode."""

    directory: SvdDirectory
    pipeline: Any

    def sample(
        self,
        first: np.ndarray,
        rng: torch.Generator,
        *,
        num_inference_steps: int = 25,
        fps: int = 7,
        motion_bucket_id: int = 127,
        decode_chunk_size: int | None = None,
    ) -> np.ndarray:
        """One video of a first picture (H, W, 3) uint8: (N, H, W, 3) uint8, as the pipeline makes it.

        Its first frame is the model's own of that picture. rng: of the CPU. fps: pictures a second that the model is
        told its video has; motion_bucket_id: how much it shall move, 0 to 255, more is more; decode_chunk_size: frames
        decoded at once, null = all, fewer take less memory. Guidance and noise on the picture are as published. Raises
        ValueError for a size that the networks cannot halve as often as they do.
        """
        from PIL import Image

        height, width, _ = first.shape
        self.directory.check_size((height, width))
        video = self.pipeline(
            Image.fromarray(first),  # of a tensor the pipeline would not make CLIP's size
            height=height,
            width=width,
            num_frames=self.directory.num_frames,
            num_inference_steps=num_inference_steps,
            fps=fps,
            motion_bucket_id=motion_bucket_id,
            decode_chunk_size=decode_chunk_size,
            generator=rng,
            output_type="pil",
        ).frames[0]
        return np.stack([np.asarray(frame) for frame in video])


def load_svd(path: str | Path, device: str = "cpu", cache: Path | None = None) -> Svd:
    """The model at a path of `locate_svd`: float16 on a GPU, as its authors run it, float32 elsewhere.

    Raises ValueError for a directory that is no such model, a weight that is missing or of another shape, and if
    diffusers or transformers is not installed.
    """
    diffusers, transformers = import_diffusers(), import_library("transformers")
    directory = locate_svd(path, cache)
    folder, dtype = directory.path, torch.float16 if device.startswith("cuda") else torch.float32
    unet, vae = (load_part(getattr(diffusers, PARTS[part][1]), folder, part, dtype) for part in ("unet", "vae"))
    encoder = _image_encoder(transformers, folder / "image_encoder")
    try:
        scheduler = diffusers.EulerDiscreteScheduler.from_config(
            read_config(folder / "scheduler" / "scheduler_config.json")
        )
        extractor = transformers.CLIPImageProcessor.from_dict(
            read_config(folder / "feature_extractor" / "preprocessor_config.json")
        )
        pipeline = diffusers.StableVideoDiffusionPipeline(
            vae=vae, image_encoder=encoder, unet=unet, scheduler=scheduler, feature_extractor=extractor
        )
    except Exception as error:  # the libraries have requirements of their own
        raise ValueError(f"{folder}: cannot be loaded ({first_line(error)})") from error
    pipeline.set_progress_bar_config(disable=True)
    for network in (unet, vae, encoder.to(dtype)):
        network.eval().requires_grad_(False).to(device)
    return Svd(directory, pipeline)


def _image_encoder(transformers: Any, folder: Path) -> Any:
    """Built of the sizes in its config alone: the library's own loader follows adapters and more that it names."""
    config = read_config(folder / "config.json")
    try:
        sizes = transformers.CLIPVisionConfig(**{key: config[key] for key in ENCODER_KEYS if key in config})
        build = partial(transformers.CLIPVisionModelWithProjection, sizes)
        return load_network(
            build,
            folder / TEXT_WEIGHTS,
            MOST_NUMBERS,
            "CLIP image encoder",
            lambda weights, _: {name: value for name, value in weights.items() if not name.endswith("position_ids")},
        )
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"{folder}: cannot be loaded ({first_line(error)})") from error


def told_fps(num_frames: int, rate: float, made: int) -> int:
    """Pictures a second at which `made` frames last as long as a clip of `num_frames` at `rate`, as near as it goes."""
    seconds = (num_frames - 1) / rate
    return int(np.clip(round((made - 1) / seconds), FEWEST_FPS, MOST_FPS)) if seconds > 0 else MOST_FPS


def nearest_frames(num_frames: int, rate: float, made: int, fps: float) -> np.ndarray:
    """Of `made` frames at `fps`, which is nearest in time to each frame of a clip at `rate` [1/s]: (num_frames,) int.

    Both begin at the same instant; past the end it is the last one.
    """
    return np.minimum(np.rint(np.arange(num_frames) / rate * fps).astype(int), made - 1)
