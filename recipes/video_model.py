"""What a command needs of a pretrained video model beside the generator: sizes of pictures, and text as its tokens."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recipes.common import instruction_encoder, pick_device, user_errors
from recipes.schema import SamplerConfig, TrainGeneratorConfig
from toolkit.base.errors import UserError
from toolkit.base.processes import processes
from toolkit.data.canvas import Canvas
from toolkit.data.clips import ClipStore
from toolkit.data.formats.lerobot_layout import camera_keys, read_info
from vag_core import Generator
from vag_core.config import GeneratorConfig, PretrainedConfig

CANVAS, TINY_CANVAS = (432, 768), (64, 64)  # height and width of all cameras together
KEPT = 256  # texts in memory


def is_pretrained(config: GeneratorConfig) -> bool:
    """Whether the generator's video is a pretrained model."""
    return config.video.kind == "pretrained" and config.action.makes_video


def fit_video(config: TrainGeneratorConfig) -> Any:
    """Give the generator the sizes of its video model; returns the model's directory, None where there is no model.

    Also the size of each camera's picture, where the config names none. Raises UserError for a directory that holds
    no such model.
    """
    shape = config.generator
    if not is_pretrained(shape):
        config.image_size = 64 if config.image_size is None else config.image_size
        return None
    if config.instruction_encoder is not None:
        raise UserError(f"instruction_encoder={config.instruction_encoder}: a pretrained video model reads text itself")
    from vag_core.backbones.directory import base_id, locate
    from vag_core.backbones.models import fit_to_model, import_diffusers

    video = shape.video
    assert isinstance(video, PretrainedConfig)
    with user_errors():
        import_diffusers()
        directory = locate(video.path)
        fit_to_model(shape, directory)
        video.base_id = base_id(directory)
    if config.image_size is None:
        config.image_size = cell_size(config)
    return directory


def cell_size(config: TrainGeneratorConfig, count: int | None = None) -> list[int]:
    """Height and width of each camera's picture, so that all together make what the model knows; it is said.

    count: of cameras; None = those of the config, or of the first dataset.
    """
    first = config.dataset if isinstance(config.dataset, str) else next(iter(config.dataset), "")
    if Path(first).is_file():
        return list(ClipStore.open(first).canvas.cell)
    count = len(config.cameras) if count is None else count
    if not count:
        count = len(camera_keys(read_info(Path(first))))
    rows, columns = Canvas(dict.fromkeys(map(str, range(max(1, count))), (1, 1)), (1, 1)).grid
    step, video = config.generator.tokenizer.spatial_stride * config.generator.video.patch_size, config.generator.video
    assert isinstance(video, PretrainedConfig)
    sides = TINY_CANVAS if video.path.startswith("tiny:") else CANVAS
    size = [max(1, round(side / parts / step)) * step for side, parts in zip(sides, (rows, columns), strict=True)]
    if processes().is_main:
        whole = f"{rows * size[0]}x{columns * size[1]} in all"
        print(f"image_size=[{size[0]},{size[1]}] for each of {max(1, count)} cameras, {whole}", flush=True)
    return size


def fit_rate(config: TrainGeneratorConfig, store: ClipStore) -> None:
    """Tell the video model how fast the pictures of a window follow each other, unless the config does."""
    video = config.generator.video
    if isinstance(video, PretrainedConfig) and not video.fps:
        video.fps = store.fps / config.generator.frame_stride


class TextTokens:
    """Instructions as tokens (B, L, Dt) of a video model's text encoder, from the disk cache where it has them."""

    def __init__(self, directory: Any, device: str, views: str = "") -> None:
        """directory: of `vag_core.backbones.directory.locate`; views: `Conventions.views`, said after each text."""
        self.directory, self.device, self.views = directory, device, views
        self._kept = OrderedDict[str, Tensor]()

    def prepare(self, texts: Sequence[str]) -> None:
        """Encode what the cache lacks, now, so that the encoder need not be loaded again beside the model."""
        if not processes().is_main:
            processes().wait()  # the main one loads the encoder, the others then read the cache
        for start in range(0, len(texts), KEPT):
            self(texts[start : start + KEPT])
        if processes().is_main:
            processes().wait()

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(B, L, Dt) float32. Raises UserError for a model without its text encoder."""
        said = [f"{text}; {self.views}" if self.views else text for text in texts]
        return self._of(said)

    def negative(self, prompt: str | None) -> Tensor:
        """(1, L, Dt) of a negative prompt, of the model's own pipeline for None."""
        from vag_core.backbones.text import negative_prompt

        return self._of([negative_prompt(self.directory.kind) if prompt is None else prompt])

    def _of(self, texts: Sequence[str]) -> Tensor:
        from vag_core.backbones.text import text_contexts

        if missing := [text for text in dict.fromkeys(texts) if text not in self._kept]:
            with user_errors():
                contexts = text_contexts(self.directory, missing, device=self.device)
            self._kept.update(zip(missing, contexts, strict=True))
        found = torch.stack([self._kept[text] for text in texts])
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return found


def text_reader(generator: Generator, config: Any, views: str) -> Callable[[list[str]], Any]:
    """Instructions as the generator takes them: strings, vectors of the encoder that the config names, or tokens of
    its video model. Raises UserError for an encoder beside a video model."""
    if generator.base is None:
        return instruction_encoder(config.instruction_encoder, config.max_parameters, views)
    if config.instruction_encoder is not None:
        raise UserError(f"instruction_encoder={config.instruction_encoder}: a pretrained video model reads text itself")
    return TextTokens(generator.base, pick_device(config.runtime), views)


def sampling(encode: Any, sampler: SamplerConfig) -> dict[str, Any]:
    """Arguments of `Generator.sample` that the config names; encode: of `text_reader`."""
    given: dict[str, Any] = {"num_inference_steps": sampler.num_inference_steps, "method": sampler.method}
    given |= {"guidance_scale": sampler.guidance_scale, "order": sampler.order}
    if isinstance(encode, TextTokens):
        return given | ({"negative": encode.negative(sampler.negative_prompt)} if sampler.guidance_scale > 1 else {})
    if sampler.negative_prompt is not None:
        raise UserError("sampler.negative_prompt: the generator has no pretrained video model; leave it out")
    return given
