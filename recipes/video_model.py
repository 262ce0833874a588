"""What a command needs of a pretrained video model beside the generator: sizes of pictures, and text as its tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from recipes.common import pick_device, user_errors
from recipes.schema import SamplerConfig, TrainGeneratorConfig
from toolkit.base.errors import UserError
from toolkit.base.processes import processes
from toolkit.base.run import Run
from toolkit.data.canvas import Canvas
from toolkit.data.clips import ClipStore
from toolkit.data.formats.lerobot_layout import camera_keys, read_info
from toolkit.data.images import as_size
from toolkit.data.text import instruction_encoder
from vag_core import Generator
from vag_core.backbones import tokens
from vag_core.config import GeneratorConfig, PretrainedConfig

CANVAS, TINY_CANVAS = (432, 768), (64, 64)  # height and width of all cameras together


def is_pretrained(config: GeneratorConfig) -> bool:
    """Whether the generator's video is a pretrained model."""
    return config.video.kind == "pretrained" and config.action.makes_video


def check_reader(config: Any) -> None:
    """Raise UserError for a text encoder beside that of the video model."""
    if config.instruction_encoder is not None:
        raise UserError(
            f"instruction_encoder={config.instruction_encoder}: a pretrained video model reads text itself; leave it "
            "out"
        )


def fit_video(config: TrainGeneratorConfig, run: Run) -> Any:
    """Give the generator the sizes of its video model; returns the model's directory, None where there is no model.

    Also the size of each camera's picture, where the config names none. The model is entered in the run record, so that
    a training is not resumed on another one. Raises UserError for a directory that holds no such model, and for what
    it cannot do, before any data is read.
    """
    shape = config.generator
    if not is_pretrained(shape):
        if shape.video.kind == PretrainedConfig().kind:
            raise UserError(f"generator.action.kind={shape.action.kind} makes no video; take generator=action_only")
        config.image_size = 64 if config.image_size is None else config.image_size
        return None
    if config.tokenizer_from is not None:
        raise UserError("tokenizer_from: a pretrained video model brings its own tokenizer; leave it out")
    check_reader(config)
    from vag_core.backbones.directory import base_id, check_text, locate
    from vag_core.backbones.models import check_asked, fit_to_model, import_diffusers

    video = shape.video
    assert isinstance(video, PretrainedConfig)
    with user_errors():
        import_diffusers()
        directory = locate(video.path)
        fit_to_model(shape, directory)
        check_asked(shape, directory)
        check_text(directory)
        video.base_id = base_id(directory)
    run.add_data(video.path, video.base_id[:16])
    if config.image_size is None:
        config.image_size = cell_size(config)
    step = shape.tokenizer.spatial_stride * video.patch_size
    if any(side % step for side in as_size(config.image_size, "image_size")):
        raise UserError(f"image_size={config.image_size}: {video.path} takes multiples of {step}")
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


class TextTokens(tokens.TextTokens):
    """The same for commands: its errors are those of users, and one process of several encodes for all."""

    def prepare(self, texts: Sequence[str]) -> None:
        """Encode what the cache lacks, now, so that the encoder need not be loaded again beside the model."""
        if not processes().is_main:
            processes().wait()  # the main one loads the encoder, the others then read the cache
        super().prepare(texts)
        if processes().is_main:
            processes().wait()

    def _of(self, texts: Sequence[str]) -> Tensor:
        with user_errors():
            return super()._of(texts)


def text_reader(generator: Generator, config: Any, views: str) -> Callable[[list[str]], Any]:
    """Instructions as the generator takes them: strings, vectors of the encoder that the config names, or tokens of
    its video model. Raises UserError for an encoder beside a video model."""
    if generator.base is None:
        return instruction_encoder(config.instruction_encoder, config.max_parameters, views)
    check_reader(config)
    return TextTokens(generator.base, pick_device(config.runtime), views)


def prepare_text(encode: Any, generator: Generator, texts: Sequence[str], sampler: SamplerConfig | None = None) -> None:
    """Encode all instructions of a command at once, while the generator makes room on the GPU.

    encode: of `text_reader`; nothing is done where the generator has no video model.
    """
    if not isinstance(encode, TextTokens):
        return
    device = generator.device
    generator.to("cpu")
    encode.prepare(list(dict.fromkeys(texts)))
    if sampler is not None and sampler.guidance_scale > 1:
        encode.negative(sampler.negative_prompt)
    generator.to(device)


def sampling(encode: Any, sampler: SamplerConfig) -> dict[str, Any]:
    """Arguments of `Generator.sample` that the config names; encode: of `text_reader`."""
    given: dict[str, Any] = {"num_inference_steps": sampler.num_inference_steps, "method": sampler.method}
    given |= {"guidance_scale": sampler.guidance_scale, "order": sampler.order}
    if sampler.negative_prompt is not None and not isinstance(encode, TextTokens):
        raise UserError("sampler.negative_prompt: the generator has no pretrained video model; leave it out")
    if sampler.negative_prompt is not None and sampler.guidance_scale <= 1:
        raise UserError(
            "sampler.negative_prompt: it counts with sampler.guidance_scale above 1; give that, or leave it out"
        )
    if isinstance(encode, TextTokens) and sampler.guidance_scale > 1:
        given["negative"] = encode.negative(sampler.negative_prompt)
    return given
