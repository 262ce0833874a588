"""Loading a pretrained video model: its tokenizer and its network."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from vag_core.backbones.directory import ModelDirectory, locate
from vag_core.backbones.files import MOST_NUMBERS, WEIGHTS, read_plain, weight_files
from vag_core.backbones.networks import NETWORKS
from vag_core.backbones.wan_tokenizer import WanTokenizer
from vag_core.checkpoint import TooLargeError, check_finite, first_line, plan_network, read_config, read_shapes
from vag_core.config import GeneratorConfig, PretrainedConfig


@dataclass
class VideoModel:
    """directory: where it is from. tokenizer, network: frozen, in evaluation mode."""

    directory: ModelDirectory
    tokenizer: WanTokenizer
    network: Any  # of `networks.NETWORKS`

    def check(self, config: GeneratorConfig) -> None:
        """Raise ValueError unless the config has the model's sizes, and asks for pictures that it can make."""
        wanted = deepcopy(config)
        fit_to_model(wanted, self.directory)
        for part in ("tokenizer", "video", "instruction"):
            ours, theirs = vars(getattr(config, part)), vars(getattr(wanted, part))
            for name in ours.keys() - {"base_id"}:
                if ours[name] != theirs[name]:
                    raise ValueError(
                        f"{self.directory.path}: {part}.{name} = {theirs[name]!r}; expected {ours[name]!r}, as the "
                        "config says"
                    )
        height, width = config.image_size
        self.check_size(height, width, config.num_frames)

    def check_size(self, height: int, width: int, num_frames: int) -> None:
        """Raise ValueError for pictures [pixels] and a number of frames that the model cannot make."""
        patch, spatial = self.network.transformer.config.patch_size, self.tokenizer.spatial_stride
        rows, columns, stride = spatial * patch[1], spatial * patch[2], self.tokenizer.temporal_stride
        if height < rows or width < columns or height % rows or width % columns:
            raise ValueError(
                f"{self.directory.path}: image_size = [{height}, {width}]: expected multiples of {rows} and {columns}"
            )
        check_frames(num_frames, stride, self.network.transformer.config, self.directory.path)


def fit_to_model(config: GeneratorConfig, directory: ModelDirectory) -> None:
    """Give the config the sizes of a model. Raises ValueError for a model of another family, or one whose configs say
    no sizes."""
    network, vae = (read_config(directory.path / part / "config.json") for part in ("transformer", "vae"))
    fit_to_sizes(config, directory.kind, network, vae, directory.path)


def fit_to_sizes(
    config: GeneratorConfig, kind: str, network: dict[str, Any], vae: dict[str, Any], where: str | Path
) -> None:
    """The same by the configs of transformer and vae; where: begins the errors."""
    video = config.video
    assert isinstance(video, PretrainedConfig)
    if kind != video.family:
        raise ValueError(f"{where}: a model of the kind {kind}; expected {video.family}, as video.family says")
    try:
        video.width = int(network["num_attention_heads"] * network["attention_head_dim"])
        video.patch_size = int(network["patch_size"][1])
        config.tokenizer.latent_channels = int(vae["z_dim"])
        config.tokenizer.temporal_stride = int(vae.get("scale_factor_temporal", 4))
        config.tokenizer.spatial_stride = int(vae.get("scale_factor_spatial", 8))
        config.instruction.embedding_width = int(network["text_dim" if kind == "wan" else "text_embed_dim"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{where}: the configs of transformer and vae lack {error}") from error


def check_asked(config: GeneratorConfig, directory: ModelDirectory) -> None:
    """Raise ValueError for frames and depths that the model's config does not allow, before anything is loaded."""
    network, video = read_config(directory.path / "transformer" / "config.json"), config.video
    assert isinstance(video, PretrainedConfig)
    check_frames(config.num_frames, config.tokenizer.temporal_stride, network, directory.path)
    layers = network.get("num_layers")
    if isinstance(layers, int) and video.read_depth > layers:
        raise ValueError(f"video.read_depth = {video.read_depth}: the model has {layers} blocks; expected at most that")


def check_frames(num_frames: int, stride: int, network: Mapping[str, Any], where: Path) -> None:
    """Raise ValueError for a number of frames that the network, by its config, cannot make; where: begins the line."""
    if num_frames < 1 + stride or (num_frames - 1) % stride:
        raise ValueError(f"{where}: num_frames = {num_frames}: expected 1 + a multiple of {stride}")
    sizes = network.get("max_size")
    most = sizes[0] if sizes else network.get("rope_max_seq_len", 1024)
    if (latents := 1 + (num_frames - 1) // stride) > most:
        raise ValueError(f"{where}: num_frames = {num_frames} are {latents} latents; the model knows {most}")


def weights_type(config: PretrainedConfig) -> torch.dtype:
    """Of the network: what the config says, or what suits this machine."""
    if config.dtype == "auto":
        return torch.bfloat16 if torch.cuda.is_available() and config.train != "full" else torch.float32
    return torch.bfloat16 if config.dtype == "bfloat16" else torch.float32


def import_diffusers() -> Any:
    """The library. Raises ValueError that says how to install it."""
    return import_library("diffusers")


def import_library(name: str) -> Any:
    """A library of the extra `video`. Raises ValueError that says how to install it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ValueError(
            f"a pretrained video model needs {name}; run: pip install 'lerobot_policy_vag[video]'"
        ) from error


def load_model(
    path: str | Path | ModelDirectory, dtype: torch.dtype = torch.float32, cache: Path | None = None
) -> VideoModel:
    """The model at a path of `directory.locate`, on the CPU.

    dtype: of the network; the tokenizer is float32. Raises ValueError for a directory that is no such model, a weight
    that is missing or of another shape, and if diffusers is not installed.
    """
    diffusers = import_diffusers()
    directory = path if isinstance(path, ModelDirectory) else locate(path, cache)
    try:
        scheduler = getattr(diffusers, directory.scheduler).from_pretrained(
            directory.path, subfolder="scheduler", local_files_only=True
        )
    except Exception as error:
        raise ValueError(f"{directory.path / 'scheduler'}: cannot be loaded ({first_line(error)})") from error
    kind = "CosmosTransformer3DModel" if directory.kind.startswith("cosmos") else "WanTransformer3DModel"
    transformer = load_part(getattr(diffusers, kind), directory.path, "transformer", dtype)
    vae = load_part(diffusers.AutoencoderKLWan, directory.path, "vae", torch.float32)
    network = NETWORKS[directory.kind](transformer, scheduler).eval().requires_grad_(False)
    return VideoModel(directory, WanTokenizer(vae), network)


def load_part(kind: Any, path: Path, name: str, dtype: torch.dtype) -> Any:
    """A part of a checked directory, of a class of diffusers. Raises ValueError for weights that do not fit it, and for
    a config that asks for a larger part than they are."""
    folder = path / name
    shapes = {
        key: shape for file in weight_files(folder, WEIGHTS) for key, shape in read_shapes(file, MOST_NUMBERS).items()
    }
    try:
        plan_network(lambda: kind.from_config(read_plain(folder / "config.json")), shapes, f"{folder}: ", name)
    except TooLargeError:
        raise
    except Exception as error:  # sizes that no layer can have
        raise ValueError(f"{folder}: cannot be built ({first_line(error)})") from error
    try:
        part, report = kind.from_pretrained(
            path,
            subfolder=name,
            torch_dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # diffusers has requirements of its own for every model
        raise ValueError(f"{folder}: cannot be loaded ({first_line(error)})") from error
    for fault in ("missing_keys", "unexpected_keys"):
        if names := sorted(report[fault]):
            raise ValueError(f"{folder}: {fault.replace('_keys', '')} weight '{names[0]}'")
    check_finite(part.state_dict(), f"{folder}: ")
    return part
