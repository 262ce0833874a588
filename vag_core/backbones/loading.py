"""A generator that was made on a pretrained video model, from a file that holds what was trained of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file

from vag_core.backbones.directory import base_id, locate
from vag_core.backbones.models import load_model, weights_type
from vag_core.checkpoint import check_finite, check_names, plan_network, read_shapes
from vag_core.config import GeneratorConfig, PretrainedConfig

if TYPE_CHECKING:
    from vag_core.generator import Generator


def load_on_base(
    build: Callable[[], Generator],
    config: GeneratorConfig,
    weights: Path,
    max_parameters: int,
    base: str | Path | None = None,
) -> Generator:
    """The generator that `build` makes without its model, with the model, and with the weights of a safetensors file.

    base: where the model is, if not where the config says. Sizes are compared with the file before anything is built.
    Raises ValueError for another model than the one that it was made on, and as `checkpoint.load_network`.
    """
    video = config.video
    assert isinstance(video, PretrainedConfig)
    shapes = read_shapes(weights, max_parameters)
    own = {name: shape for name, shape in shapes.items() if not name.startswith("video.network.")}
    plan = plan_network(build, own, f"{weights}: ", "generator")
    check_names(plan, own, weights, "generator")
    where = video.path if base is None else base
    try:
        directory = locate(where, fetch=base is not None)
    except ValueError as error:
        text = f"made on the video model {video.path} (id {video.base_id[:16]}); base=PATH says where that is"
        raise ValueError(f"{text} ({error})") from error
    if (found := base_id(directory)) != video.base_id:
        raise ValueError(
            f"made on the video model {video.path} (id {video.base_id[:16]}); {directory.path} is another one (id "
            f"{found[:16]}): base=PATH says where the right one is"
        )
    generator = build()
    generator.attach(load_model(directory, weights_type(video)))
    check_names(generator, shapes, weights, "generator", generator.is_saved)
    tensors = load_file(weights)
    check_finite(tensors, f"{weights}: ")
    generator.load_state_dict(tensors, strict=False)
    return generator
