"""A generator where a policy checkpoint is taken: its directory as `train-generator` writes it, or a LeRobot one.

B scenes, n executed steps, A action width; pictures are (H, W, 3) uint8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from policies.checkpoint_config import CONFIG, STRICT, WEIGHTS, Loading, read_config
from policies.checkpoint_processors import load_processors
from policies.checkpoints import try_out
from policies.factory import PolicyObjective
from policies.generator_kinds import POLICY_TYPE, kind_of_checkpoint
from policies.vag_policy.configuration_vag import UNTRAINED, VagConfig
from policies.vag_policy.modeling_vag import VagPolicy
from policies.vag_policy.processor_vag import make_vag_policy_pre_post_processors
from toolkit.base.errors import UserError
from toolkit.data.canvas import Canvas
from toolkit.data.conventions import Conventions
from toolkit.data.episode import STATE, TASK
from toolkit.data.windows import Windows
from vag_core import Generator
from vag_core.backbones.tokens import TextTokens


class GeneratorObjective(PolicyObjective):
    """`vag_policy` with its processors, as commands run policies: it acts, it is not trained."""

    policy: VagPolicy

    def loss(self, batch: dict[str, Any]) -> NoReturn:
        raise UserError(UNTRAINED)

    def settle(self) -> None:
        """The adapters of a generator are what was trained of it: they are saved as they are."""

    @torch.no_grad()
    def predict_action_chunk(self, observation: dict[str, Any], noise_seeds: Sequence[int] | None = None) -> Tensor:
        """As of other policies. Raises UserError for what the generator cannot read or sample."""
        try:
            return super().predict_action_chunk(observation, noise_seeds)
        except ValueError as error:  # of vag_core, which knows no command line
            raise UserError(str(error)) from error

    def check_instructions(self, tasks: Sequence[str]) -> None:
        """Raise UserError for an instruction that the generator cannot read.

        Those of a pretrained video model are all encoded here, while the generator makes room on the GPU.
        """
        generator = self.policy.generator
        texts = list(dict.fromkeys(tasks))
        try:
            reader, device = self.policy.reader, generator.device
            if isinstance(reader, TextTokens):
                generator.to("cpu")
                reader.prepare(texts)
                if self.config.guidance_scale > 1:
                    reader.negative(self.config.negative_prompt)
                generator.to(device)
            elif texts:
                generator.check_instruction(reader(texts))
        except ValueError as error:
            raise UserError(str(error)) from error

    def imagined(self, row: int) -> np.ndarray | None:
        """Pictures (n + 1, H, W, 3) that the newest sample of a scene shows before, between and after its n executed
        actions, of the first camera; None where none are kept."""
        if self.policy.predicted is None:
            return None
        seen = self.policy.predicted_at(range(self.n_action_steps + 1))[row].cpu().numpy()
        return next(iter(self.policy.canvas.take_apart(seen).values()))


def load_generator_policy(
    directory: str | Path,
    device: str = "cpu",
    loading: Loading = STRICT,
    settings: Mapping[str, Any] | None = None,
    base: str | None = None,
) -> GeneratorObjective:
    """The policy that a generator is, in evaluation mode.

    directory: of `train-generator`, or of `generator-policy`. settings: fields of `VagConfig` in place of those of the
    checkpoint. base: the pretrained video model, where it is not where the checkpoint says. Raises UserError for what
    is damaged or does not fit, and for a way to sample that the generator was never trained for.
    """
    directory, settings = Path(directory), dict(settings or {})
    written = kind_of_checkpoint(directory) == POLICY_TYPE
    try:
        if written:
            read = read_config(directory, loading)
            assert isinstance(read, VagConfig)
            config = replace(read, **settings)
            config.validate_features()
            weights, path = directory / WEIGHTS, directory / CONFIG
            generator = Generator.load(config.generator, weights, path, loading.max_parameters, base)
        else:
            generator = Generator.from_pretrained(directory, "cpu", loading.max_parameters, base)
            config = config_of(generator, directory, settings)
        policy = VagPolicy(config, generator)
    except ValueError as error:
        text = str(error)
        raise UserError(text if text.startswith(str(directory)) else f"{directory}: {text}") from error
    config.device = device
    processors = (
        load_processors(config, directory, device, loading) if written else make_vag_policy_pre_post_processors(config)
    )
    objective = GeneratorObjective(policy.to(device), *processors).eval()
    if written:
        _try_out(directory, objective)
    return objective


def config_of(generator: Generator, directory: Path, settings: Mapping[str, Any]) -> VagConfig:
    """How a generator acts; what its directory says beside its weights goes along. Raises ValueError."""
    trained, windows = Conventions.of(directory), Windows.read(directory)
    canvas = trained.canvas or Canvas.single(generator.config.image_size)
    return VagConfig(
        generator=generator.config.to_dict(),
        canvas=canvas.to_dict(),
        name_views=trained.name_views,
        random_start=None if windows is None else windows.random_start,
        device="cpu",
        push_to_hub=False,
        **settings,
    )


def _try_out(directory: Path, objective: GeneratorObjective) -> None:
    """Raise UserError unless the processors of a checkpoint leave an observation and actions as they are.

    The generator is not asked: that takes seconds, and of a pretrained video model a text encoder.
    """
    cameras = {camera: torch.rand(1, 3, *objective.picture_size) for camera in objective.cameras}
    seen: dict[str, Any] = {**cameras, STATE: torch.rand(1, int(objective.state_dim or 0)), TASK: ["try"]}
    chunk = torch.rand(1, objective.n_action_steps, objective.action_dim)

    def act() -> Tensor:
        prepared = objective._prepare(dict(seen))
        for key in (*cameras, STATE):
            if not torch.equal(prepared[key].cpu(), seen[key]):
                raise UserError(f"{directory}: its preprocessor changes {key}; a generator takes it as it is")
        actions: Tensor = objective.postprocessor(chunk)
        if not torch.equal(actions, chunk):
            raise UserError(f"{directory}: its postprocessor changes the actions; a generator gives them as they are")
        return actions

    try_out(directory, act, tuple(chunk.shape))
