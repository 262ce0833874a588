"""LeRobot's interface to the generator: a plan or a sample from the present picture, some of its steps, then again.

B scenes, T action steps of a sample, n that are executed, A action and S state width, F pictures of a sample; pictures
are (H, W, 3) uint8.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np
import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import OBS_STATE
from torch import Tensor

from policies.vag_policy.configuration_vag import UNTRAINED, VagConfig
from toolkit.base.errors import warn
from toolkit.data.episode import TASK
from toolkit.data.text import instruction_encoder
from vag_core import Generator
from vag_core.backbones.tokens import TextTokens


class VagPolicy(PreTrainedPolicy):
    """A generator in closed loop. Its file of weights is the generator's own, byte for byte."""

    config_class = VagConfig
    name = "vag_policy"

    def __init__(self, config: VagConfig, generator: Generator | None = None, **kwargs: Any) -> None:
        """generator: the one of the config; None = a new one, for weights that are loaded next."""
        super().__init__(config)
        config.validate_features()
        self.config: VagConfig = config
        self.generator = Generator(config.shape, attach=False) if generator is None else generator
        self.canvas = config.pictures
        self.predicted: Tensor | None = None  # (B, F, H, W, 3), of the newest sample
        self._reader: Callable[[list[str]], Any] | None = None
        self.reset()
        self._warn_of_windows()

    def _warn_of_windows(self) -> None:
        config = self.config
        assert config.n_action_steps is not None
        if config.n_action_steps < config.chunk_size and not config.random_start:
            known = "may have been" if config.random_start is None else "was"
            warn(
                f"n_action_steps={config.n_action_steps} of {config.chunk_size}: the generator {known} trained on "
                "windows from the start of episodes alone, and then does not know the pictures that it is asked from "
                "later; train-generator random_start=true trains one for that"
            )

    # ------------------------------------------------------------------------------------------------- acting

    def reset(self) -> None:
        """Forget queued actions; called when an environment resets."""
        self._queue: deque[Tensor] = deque(maxlen=self.config.n_action_steps)
        self.last_predicted_latents: Tensor | None = None

    @torch.no_grad()
    def predict_action_chunk(
        self, batch: dict[str, Any], noise_seeds: Sequence[int] | None = None, **kwargs: Any
    ) -> Tensor:
        """(B, T, A) in physical units.

        noise_seeds: one for each scene, whose sample then does not depend on those beside it; None = torch's global
        generator. A plan draws nothing. Raises ValueError if the batch has no instruction.
        """
        self.eval()
        if TASK not in batch:
            raise ValueError(f"no '{TASK}' in the batch: the policy needs one instruction per sample")
        tasks = [batch[TASK]] if isinstance(batch[TASK], str) else list(batch[TASK])
        scene = self.compose(batch), batch[OBS_STATE], self.read(tasks)
        if self.config.sample == "plan":
            self.predicted = None
            return self.generator.plan_actions(*scene)[0]
        rng = None if noise_seeds is None else [torch.Generator().manual_seed(seed) for seed in noise_seeds]
        config, more = self.config, dict[str, Any]()
        if self.generator.base is not None and config.guidance_scale > 1:
            more["negative"] = self.reader.negative(config.negative_prompt)
        made = self.generator.sample(
            *scene,
            num_inference_steps=config.num_inference_steps,
            guidance_scale=config.guidance_scale,
            method=config.method,
            order=config.order,
            rng=rng,
            **more,
        )
        self.predicted = made.frames if config.save_predicted_video else None
        return made.actions

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """Next action (B, A); makes a new sample every `n_action_steps` calls."""
        if not self._queue:
            chunk = self.predict_action_chunk(batch, **kwargs)[:, : self.config.n_action_steps]
            self._queue.extend(chunk.transpose(0, 1))
            if self.predicted is not None:  # what lerobot-eval collects and hands to `decode_predicted_latents`
                steps = self.predicted_at(list(range(chunk.shape[1])))
                self.last_predicted_latents = steps.permute(0, 4, 1, 2, 3).cpu()  # (B, 3, n, H, W)
        return self._queue.popleft()

    # --------------------------------------------------------------------------------------------- its inputs

    def compose(self, batch: dict[str, Any]) -> Tensor:
        """Pictures (B, 3, H, W) of each camera, in [0, 1] and of any size, as the generator sees them, (B, H, W, 3)."""
        pictures = {camera: _to_uint8(batch[camera]) for camera in self.canvas.cameras}
        return torch.from_numpy(self.canvas.compose(pictures))

    @property
    def reader(self) -> Any:
        """What turns instructions into what the generator reads, loaded when it is first asked."""
        if self._reader is None:
            device, views = str(self.generator.device), self.config.views
            if self.generator.base is not None:
                self._reader = TextTokens(self.generator.base, device, views)
            else:
                self._reader = instruction_encoder(self.config.instruction_encoder, views=views)
        return self._reader

    def read(self, tasks: list[str]) -> Any:
        """Instructions as the generator takes them."""
        return self.reader(tasks)

    # ------------------------------------------------------------------------------------ pictures of a sample

    def predicted_at(self, steps: Sequence[int]) -> Tensor:
        """Pictures (B, n, H, W, 3) of the newest sample after so many of its actions; 0 is the picture it starts from.

        Raises ValueError if none were kept.
        """
        if self.predicted is None:
            raise ValueError("no pictures: expected a sample made with save_predicted_video")
        stride = self.generator.config.frame_stride
        return self.predicted[:, [step // stride for step in steps]]

    def decode_predicted_latents(self, latents: Tensor) -> Tensor:
        """Pictures (B, 3, T, H, W) as (T, H, B * W, 3) uint8, scenes side by side: `lerobot-eval` calls it so.

        It collects `last_predicted_latents` over a rollout. Here these are the pictures of the executed steps,
        decoded with the picture that each sample began with.
        """
        return torch.cat(list(latents), dim=-1).permute(1, 2, 3, 0).contiguous()

    # ------------------------------------------------------------------------------------------------ training

    def get_optim_params(self) -> NoReturn:
        raise NotImplementedError(UNTRAINED)

    def forward(self, batch: dict[str, Tensor]) -> NoReturn:
        raise NotImplementedError(UNTRAINED)

    # ---------------------------------------------------------------------------------------------------- disk

    @classmethod
    def _load_as_safetensor(cls, model: Self, model_file: str, map_location: str, strict: bool) -> Self:
        """LeRobot's loaders come here: the generator's own reader, which is strict, in place of theirs."""
        file = Path(model_file)
        model.generator = Generator.load(model.config.generator, file, file.with_name("config.json"))
        return model

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        self.config._save_pretrained(save_directory)
        self.generator.save_weights(save_directory / "model.safetensors")


def _to_uint8(picture: Tensor) -> np.ndarray:
    """(B, 3, H, W) in [0, 1] or uint8 -> (B, H, W, 3) uint8."""
    if picture.is_floating_point():
        picture = (picture.float() * 255).round().clamp(0, 255).to(torch.uint8)
    return picture.permute(0, 2, 3, 1).cpu().numpy()
