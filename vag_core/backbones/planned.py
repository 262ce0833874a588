"""A pretrained video model on torch's `meta` device: its sizes, and no weight of it. For estimates.

The sizes are those of its config files where they are on this disk, of the tiny models, or else the published ones.
Nothing is downloaded and nothing written.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vag_core.backbones.directory import ModelDirectory
from vag_core.backbones.files import TINY, find_directory, read_index, read_plain
from vag_core.backbones.models import VideoModel, fit_to_sizes, import_diffusers
from vag_core.backbones.networks import NETWORKS
from vag_core.backbones.published import PIPELINES, SCHEDULERS, TRANSFORMERS, VAES
from vag_core.backbones.wan_tokenizer import WanTokenizer
from vag_core.checkpoint import unfilled
from vag_core.config import GeneratorConfig, PretrainedConfig

PARTS = ("transformer", "vae", "scheduler")


@dataclass(frozen=True)
class ModelSizes:
    """What a model is built from. is_published: of `published`, since the model is not on this disk."""

    name: str
    kind: str
    network: dict[str, Any]
    vae: dict[str, Any]
    scheduler: tuple[str, dict[str, Any]]
    is_published: bool = False

    @classmethod
    def of(cls, video: PretrainedConfig) -> ModelSizes:
        """Of the model that a config names. Raises ValueError for a directory that says no sizes."""
        name = video.path
        if name.startswith(TINY):
            from vag_core.backbones.tiny import TINY as NETWORK_SIZES
            from vag_core.backbones.tiny import tiny_vae

            kind = name.removeprefix(TINY)
            if kind not in NETWORK_SIZES:
                raise ValueError(f"{name}: expected one of {', '.join(TINY + one for one in NETWORK_SIZES)}")
            return cls(name, kind, NETWORK_SIZES[kind], tiny_vae(kind), SCHEDULERS[kind])
        if (folder := _folder(name)) is None:
            kind = video.family
            return cls(name, kind, TRANSFORMERS[kind], VAES[kind], SCHEDULERS[kind], is_published=True)
        kind, _ = read_index(folder / "model_index.json", PIPELINES)
        files = (folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json") for part in PARTS)
        network, vae, scheduler = map(read_plain, files)
        return cls(name, kind, network, vae, (str(scheduler.get("_class_name", SCHEDULERS[kind][0])), scheduler))

    def fit(self, config: GeneratorConfig) -> None:
        """Give a generator's config these sizes. Raises ValueError as `models.fit_to_sizes`."""
        fit_to_sizes(config, self.kind, self.network, self.vae, self.name)


def _folder(name: str) -> Path | None:
    """Where the config files of a model are on this disk; None for one of the hub that is not, or not whole."""
    if Path(name).exists():
        return Path(name)
    try:
        folder, _ = find_directory(name, lambda kind, cache: cache, PARTS, allowed=False)
    except ValueError:
        return None
    inside = [folder / part / "config.json" for part in PARTS[:2]]
    return folder if not folder.exists() or all(file.is_file() for file in inside) else None


class PlannedModel(VideoModel):
    """Its config files may not be there, so `Branches.attach` asks the networks alone."""

    def check(self, config: GeneratorConfig) -> None:
        """Raise ValueError for pictures that the model cannot make."""
        height, width = config.image_size
        self.check_size(height, width, config.num_frames)


def planned_model(sizes: ModelSizes, dtype: torch.dtype) -> PlannedModel:
    """The model on the `meta` device, with the weights of its network in `dtype` but for those that diffusers keeps
    in float32. Raises ValueError for sizes that no layer can have."""
    diffusers = import_diffusers()
    kind = "WanTransformer3DModel" if sizes.kind == "wan" else "CosmosTransformer3DModel"
    name, values = sizes.scheduler
    if name not in {one for one, _ in SCHEDULERS.values()}:
        raise ValueError(f"{sizes.name}: scheduler {name[:80]}; expected one of the pipelines' own")
    scheduler = getattr(diffusers, name).from_config(values)
    try:
        with unfilled():
            transformer = getattr(diffusers, kind).from_config(sizes.network)
            vae = diffusers.AutoencoderKLWan.from_config(sizes.vae)
            _cast(transformer, dtype)
            network = NETWORKS[sizes.kind](transformer, scheduler).eval().requires_grad_(False)
            tokenizer = _tokenizer(vae)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{sizes.name}: no model has the sizes of its configs ({error})") from error
    return PlannedModel(ModelDirectory(Path(sizes.name), sizes.kind, name), tokenizer, network)


def _tokenizer(vae: Any) -> WanTokenizer:
    """With as many numbers for the latents as there are channels; published sizes hold none."""
    channels = vae.config.z_dim
    if len(vae.config.latents_mean) != channels:
        vae.register_to_config(latents_mean=[0.0] * channels, latents_std=[1.0] * channels)
    return WanTokenizer(vae)


def _cast(transformer: Any, dtype: torch.dtype) -> None:
    kept = set(transformer._keep_in_fp32_modules or ())
    for name, weight in transformer.named_parameters():
        if not kept & set(name.split(".")):
            weight.data = weight.data.to(dtype)
