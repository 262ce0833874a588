"""The dual-stream generator: first image + state + instruction -> video, actions and states.

What it is by default: a planner from the first picture, and a video that follows its actions. Sampling both streams
jointly is the published mode (VAG, arXiv 2604.09330). The type of `config.action` says which of these, or of the
systems that they are compared with, a generator is.

The parts: networks (`branches`), `objective`, `sampling`, `clocks`, units (`trajectory`), files (`checkpoint`).
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vag_core import objective, sampling
from vag_core.branches import Branches
from vag_core.checkpoint import MOST_PARAMETERS, check_finite, first_line, load_network, read_config
from vag_core.config import GeneratorConfig, PretrainedConfig
from vag_core.conversion import convert_config, is_version_01, with_every_cell_read
from vag_core.sampling import GeneratedBatch as GeneratedBatch

CHECKPOINT_TYPE = "vag_generator"
WEIGHTS = "model.safetensors"


class Generator(Branches):
    """Networks, loss, sampler and checkpoint of one system."""

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Flow-matching loss of a training batch and its parts: see `objective.training_loss`."""
        return objective.training_loss(self, batch)

    def sample(
        self,
        image: Tensor,
        state: Tensor,
        instruction: list[str] | Tensor,
        *,
        frames: Tensor | None = None,
        actions: Tensor | None = None,
        states: Tensor | None = None,
        num_inference_steps: int = 10,
        guidance_scale: float = 1.0,
        method: str | None = None,
        order: str | None = None,
        rng: torch.Generator | list[torch.Generator] | None = None,
        score: bool = False,
        negative: Tensor | None = None,
    ) -> GeneratedBatch:
        """Generate one video-action pair per first image; a stream that is pinned is kept and the other follows it.

        image: (B, H, W, 3) uint8; state: (B, S) in physical units; instruction: B strings.
        frames: (B, F, H, W, 3) uint8, a pinned video: inverse dynamics. actions (B, N, A) with states (B, N + 1, S),
        a pinned trajectory: forward dynamics.
        method: see `flow_matching.integrate`, or unipc (arXiv 2302.04867), for the video of a pretrained model; None is
        Euler's, and for such a video the model's own solver.
        order: see `clocks.schedule`; None is what suits the system, `self.order`. A two-stage system has the video
        first.
        rng: where noise comes from; with one generator per pair, a pair does not depend on those beside it.
        guidance_scale: classifier-free guidance on the instruction (arXiv 2207.12598); 1 = off. It does not touch
        actions that are planned first, which are a mean. negative: (1, L, Dt) tokens of a negative prompt, in place of
        no text, of a pretrained video model, where the scale means what it means in the model's own pipeline.
        score: also compute `loss`, at the cost of five more evaluations.
        Without a video branch the frames repeat the first image.
        Raises ValueError for an image or state of another size than the generator was trained on, for an order that
        it does not know, and for what this generator was never trained to do.
        """
        order = order or self.order
        settings = sampling.Settings(num_inference_steps, guidance_scale, method, order, rng, score, negative)
        return sampling.sample(
            self, image, state, instruction, sampling.PinnedStreams(frames, actions, states), settings
        )

    def plan_actions(self, image: Tensor, state: Tensor, instruction: list[str] | Tensor) -> tuple[Tensor, Tensor]:
        """The plan that a sample of order `actions_first` begins with: actions (B, N, A) and states (B, N + 1, S).

        Arguments as for `sample`. Raises ValueError for inputs that do not fit, and for a generator without plans.
        """
        return sampling.plan_actions(self, image, state, instruction)

    @property
    def order(self) -> str:
        """How samples are best made: both streams in step, as published, or actions in one step of their own."""
        return self.clocks.order

    def tokens_of(self, size: int) -> int:
        """Tokens that the transformers of both branches read for a training batch of `size` clips."""
        config = self.config
        _, frames, height, width = config.latent_shape
        tokens = 0
        if self.video is not None and not (config.action.two_stage and self.video_is_taken):
            tokens += self.clocks.num_joint_clips(size) * frames * (height * width // config.video.patch_size**2)
        if config.action.kind in ("transformer", "action_only", "temporal"):
            tokens += size * (frames - 1)
        return tokens

    # --- weights of another generator ---

    def take_video_branch(self, other: Generator) -> None:
        """Copy tokenizer and video branch of another generator; training then leaves them as they are.

        So systems that differ in the action branch alone can share one video, weight for weight. Raises ValueError if
        their inputs differ, or the video branch was not trained by itself but follows actions.
        """
        if self.config.action.video_follows_actions or other.config.action.video_follows_actions:
            raise ValueError("a video branch that follows actions belongs to its action branch and cannot be shared")
        for name in ("image_size", "num_frames", "frame_stride", "tokenizer", "scene", "video", "instruction"):
            ours, theirs = (_but_for_places(getattr(one.config, name)) for one in (self, other))
            if ours != theirs:
                raise ValueError(f"the other generator has {name} = {theirs}, this one {ours}: no video to share")
        self._take("tokenizer", other)
        self._take("video", other)
        states = slice(self.config.action_dim, None)  # as the video branch was trained with them
        for name in ("mean", "std"):
            getattr(self.trajectory, name)[states] = getattr(other.trajectory, name)[states]
        self.video_is_taken = True

    def take_tokenizer(self, other: Generator) -> None:
        """Copy the tokenizer of another generator; training then leaves it as it is. Raises as `take_video_branch`.

        A generator without video needs none.
        """
        if self.tokenizer is not None:
            self._take("tokenizer", other)

    def _take(self, name: str, other: Generator) -> None:
        ours, theirs = getattr(self, name), getattr(other, name)
        if ours is None or theirs is None:
            raise ValueError(f"action.kind = action_only: a generator without video has no '{name}' to share")
        try:
            ours.load_state_dict(theirs.state_dict())
        except RuntimeError as error:
            raise ValueError(f"the other generator's '{name}' has other shapes ({error})") from error
        ours.requires_grad_(False)

    # --- checkpoint ---

    def save_pretrained(self, directory: str | Path) -> None:
        """Write `config.json` and `model.safetensors` into an existing or new directory.

        Raises ValueError, before anything is written, if a weight is not finite.
        """
        directory = Path(directory)
        self.save_weights(directory / WEIGHTS)
        payload = {"type": CHECKPOINT_TYPE, **self.config.to_dict()}
        (directory / "config.json").write_text(json.dumps(payload, indent=2) + "\n")

    def save_weights(self, path: Path) -> None:
        """Write the file of weights alone. Raises ValueError, before anything is written, if one is not finite."""
        own = self.state_dict()
        tensors = {name: own[name].detach().cpu().contiguous() for name in own if self.is_saved(name)}
        check_finite(tensors, f"{path.parent}: not written, ")
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path)

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        device: torch.device | str = "cpu",
        max_parameters: int = MOST_PARAMETERS,
        base: str | Path | None = None,
    ) -> Generator:
        """Load strictly from JSON and safetensors; nothing is unpickled, and nothing downloaded.

        max_parameters: numbers that the file of weights may hold. The sizes in the config are compared with that file
        before the network is built. Checkpoints of version 0.1 are converted. base: the pretrained video model, where
        it is not where the checkpoint says; it must be the same one. It alone may be downloaded, if it names one on the
        hub. Raises ValueError that says what is wrong.
        """
        path = Path(directory) / "config.json"
        weights = path.with_name(WEIGHTS)
        for file in (path, weights):
            if not file.is_file():
                raise ValueError(f"{file}: not found; expected a generator written by `vag train-generator`")
        values = read_config(path)
        kind = values.pop("type", None)
        if kind != CHECKPOINT_TYPE:
            raise ValueError(f"{path}: expected a checkpoint of type '{CHECKPOINT_TYPE}', got '{str(kind)[:80]}'")
        return cls.load(values, weights, path, max_parameters, base).to(device).eval()

    @classmethod
    def load(
        cls,
        values: dict[str, Any],
        weights: Path,
        where: Path,
        max_parameters: int = MOST_PARAMETERS,
        base: str | Path | None = None,
    ) -> Generator:
        """As `from_pretrained`, on the CPU, of a config that has been read. where: its file, which errors name."""
        try:
            values, rename = convert_config(values) if is_version_01(values) else (values, dict)
            config = with_every_cell_read(GeneratorConfig.from_dict(values), values)
            if base is not None and config.video.kind != "pretrained":
                raise ValueError(f"base={base}: this generator is not made on a pretrained video model; leave it out")
            if config.video.kind == "pretrained" and config.action.makes_video:
                from vag_core.backbones.loading import load_on_base

                generator = load_on_base(lambda: cls(config, attach=False), config, weights, max_parameters, base)
            else:
                generator = load_network(
                    lambda: cls(config), weights, max_parameters, "generator", lambda old, _: rename(old)
                )
            generator.trajectory.set_reference(generator.trajectory.reference)  # which checks it
        except ValueError as error:
            text = str(error)
            raise ValueError(text if text.startswith(str(where.parent)) else f"{where}: {text}") from error
        except Exception as error:  # sizes that no layer can have
            raise ValueError(f"{where}: no generator can be built from it ({first_line(error)})") from error
        return generator


def _but_for_places(part: Any) -> Any:
    """A part of a config, without where its model lies and how its weights are kept."""
    return replace(part, path="", dtype="auto") if isinstance(part, PretrainedConfig) else part
