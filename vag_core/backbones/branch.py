"""A pretrained video model as the video branch of a generator: what is added to it, and what of it is trained.

Actions are heard through a vector for each latent frame that is added to its tokens; the state is added to the first
padding place of the text. Both begin at zero, so that a new generator makes the model's own videos.

Shapes: as in `branches`; text (B, L, Dt) tokens of the model's own encoder, with zeros as padding; W = width of the
model's tokens.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from vag_core.backbones.clock import VideoClock
from vag_core.backbones.networks import PretrainedNetwork, shifted
from vag_core.config import GeneratorConfig, PretrainedConfig
from vag_core.flow_matching import sample_time
from vag_core.layers import TimeEmbedding

HEARING_WIDTH = 256
LORA = ".lora_"  # in the names of added matrices
PROJECTION = "crossattn_proj."  # of text, which comes projected


class Hearing(nn.Module):
    """The noisy trajectory and its clock -> what is added to the tokens of each latent frame; zero at first."""

    def __init__(self, group_width: int, width: int) -> None:
        """group_width: numbers of the trajectory that belong to a latent frame; width: of the model's tokens."""
        super().__init__()
        self.embed = nn.Linear(group_width, HEARING_WIDTH)
        self.time = TimeEmbedding(HEARING_WIDTH)
        self.out = nn.Linear(HEARING_WIDTH, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, grouped: Float[Tensor, "b k n"], t: Float[Tensor, " b"]) -> Float[Tensor, "b k w"]:
        """grouped (B, T-1, n) at times t (B,) -> (B, T-1, W)."""
        return self.out(F.silu(self.embed(grouped) + self.time(t)[:, None]))


class PretrainedBranch(nn.Module):
    """The branch; `attach` gives it its model."""

    network: PretrainedNetwork

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        assert isinstance(config.video, PretrainedConfig)
        self.config = config.video
        self.hearing = Hearing(config.group_width, config.video.width) if config.action.video_follows_actions else None
        self.reads = config.action.kind == "transformer"  # the model's tokens, beside the video itself
        self.state = nn.Linear(config.state_dim, config.instruction.embedding_width)
        nn.init.zeros_(self.state.weight)
        nn.init.zeros_(self.state.bias)
        self.text_width = config.instruction.embedding_width

    # --- the model ---

    def attach(self, network: PretrainedNetwork) -> None:
        """Take the network in, with what its training needs. Raises ValueError for layers that are not there."""
        config = self.config
        if not 0 <= config.read_depth <= len(network.blocks):
            raise ValueError(f"video.read_depth = {config.read_depth}: the model has {len(network.blocks)} blocks")
        self.read_depth = (config.read_depth or round(2 / 3 * len(network.blocks))) if self.reads else 0
        for name, weight in network.named_parameters():
            weight.requires_grad_(config.train == "full" and PROJECTION not in name)
        if config.train == "lora":
            add_lora(network, config)
        if config.gradient_checkpointing:  # also of a frozen one: gradients of what it hears pass through it
            network.transformer.enable_gradient_checkpointing()
        if config.fps:
            network.set_fps(config.fps)
        self.network = network

    def is_trained(self, name: str) -> bool:
        """Whether a checkpoint holds the weight of this name; the rest is the model's own."""
        inside = name.startswith("network.")
        return not inside or LORA in name or (self.config.train == "full" and PROJECTION not in name)

    # --- as `VideoBranch` ---

    @property
    def guidance_offset(self) -> float:
        """See `VideoBranch`."""
        return self.network.guidance_offset

    def draw_time(
        self, size: int, device: torch.device, rng: torch.Generator | None = None
    ) -> Float[Tensor, " {size}"]:
        """Times as the model was trained on, with its published shift; few at pure noise, which it hardly saw."""
        return shifted(sample_time(size, device, self.config.noise_share, rng), self.network.shift)

    def within(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """See `VideoBranch`."""
        return self.network.within(t)

    def clock(self, steps: int, method: str | None = None) -> VideoClock:
        """See `VideoBranch`."""
        return self.network.clock(steps, method)

    def check_instruction(self, instruction: list[str] | Tensor) -> None:
        """See `VideoBranch`."""
        if not isinstance(instruction, Tensor) or instruction.ndim != 3 or instruction.shape[2] != self.text_width:
            raise ValueError(
                f"instruction: expected tokens (B, L, {self.text_width}) of the video model's text encoder"
            )

    def encode(
        self,
        image: Float[Tensor, "b 3 height width"],
        state: Float[Tensor, "b s"],
        instruction: list[str] | Tensor,
        keep: Shaped[Tensor, " b"] | None = None,
    ) -> tuple[None, Float[Tensor, "b l d"]]:
        """See `VideoBranch`: no tokens of the first frame, which the model sees, and the text with the state.

        The state is added where the zeros begin, which is neutral at first; after a text that fills all places, to the
        last of them. A text that is dropped is all zeros, as in diffusers' training of Cosmos-Predict2.5.
        """
        self.check_instruction(instruction)
        text = cast(Tensor, instruction).to(state.device)
        if keep is not None:
            text = text * keep[:, None, None].to(text.dtype)
        length = text.any(-1).sum(1).clamp(max=text.shape[1] - 1)  # (B,)
        place = F.one_hot(length, text.shape[1])[..., None]  # (B, L, 1)
        return None, text + place * self.state(state)[:, None].to(text.dtype)

    def forward(
        self,
        noisy: Float[Tensor, "b c k h w"],
        first: Float[Tensor, "b c 1 h w"],
        t: Float[Tensor, " b"],
        scene: None,
        condition: Float[Tensor, "b l d"],
        grouped: Float[Tensor, "b k n"],
        t_action: Float[Tensor, " b"],
        asked: float | None = None,
    ) -> tuple[Float[Tensor, "b c k h w"], Float[Tensor, "b k s v"] | None]:
        """See `VideoBranch`. Hidden tokens are those of an inner block, standardised, since few of their channels are
        far larger than all others; None for an action branch that reads none."""
        added = None if self.hearing is None else self.hearing(grouped, t_action)
        velocity, hidden = self.network(noisy, first, t, condition, asked, added, self.read_depth)
        return velocity, None if hidden is None else F.layer_norm(hidden.float(), hidden.shape[-1:])


def add_lora(network: PretrainedNetwork, config: PretrainedConfig) -> None:
    """Add matrices of low rank (arXiv 2106.09685), in float32. Raises ValueError for targets that are not there."""
    from peft import LoraConfig

    lora = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=list(config.lora_targets))
    transformer: Any = network.transformer
    names = [name for name, layer in transformer.named_modules() if isinstance(layer, nn.Linear)]
    for target in config.lora_targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            last = ", ".join(sorted({".".join(name.split(".")[3:]) for name in names} - {""})[:12])
            raise ValueError(f"video.lora_targets: no layer of the model ends in '{target}'; expected some of {last}")
    transformer.add_adapter(lora)
    for name, weight in transformer.named_parameters():
        if LORA in name:
            weight.data = weight.data.float()
