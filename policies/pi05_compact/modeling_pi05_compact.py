"""pi0.5 (arXiv 2504.16054) in small: a prefix that sees, and an action expert that flow-matches a chunk.

Read top to bottom: layers -> prefix -> suffix -> loss -> sampler -> LeRobot's policy interface.
B samples, N prefix tokens (image, words, state), T action steps, P of them to a token, A action width, S state width,
M = T / P tokens, D stream width, h query heads, g key-value heads, d head width. Time: t = 0 is data, t = 1 is noise.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
import torch.nn.functional as F
from lerobot.policies.common.flow_matching import euler_integrate, sample_noise, sample_time_beta
from lerobot.policies.common.vla_utils import create_sinusoidal_pos_embedding, pad_vector
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION, OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS, OBS_STATE
from timm.layers import SwiGLU
from torch import Tensor, nn

from policies.action_steps import tell_chunk_begins
from policies.observation_encoder import ObservationEncoder, letterboxed
from policies.pi05_compact.configuration_pi05_compact import Pi05CompactConfig
from policies.pi05_compact.training_draws import COUNT, NOISE, TIME
from policies.strict_loading import StrictLoading
from toolkit.data.episode import ACTION_DIM_IS_PAD, ACTION_IS_PAD
from vag_core.flow_matching import interpolate, velocity

KeysValues = tuple[Tensor, Tensor]  # (B, g, N, d) each

# ------------------------------------------------------------------------------------------------- layers


def rms_norm(x: Tensor) -> Tensor:
    """x / rms(x). Written out because torch's own takes three times as long on a CPU."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class RMSNorm(nn.Module):
    """RMS norm with a learned scale, for the prefix."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x) * self.weight


class AdaptiveRMSNorm(nn.Module):
    """adaRMS: scale, shift and residual gate from the time condition; at the start all times are treated alike.

    The gate starts at one. At zero (adaRMS-Zero, as for pi0.5 with its pretrained prefix) a policy trained from
    scratch is slow to look at the picture: on "find the dot" it is 25 pixels off after 100 steps instead of 5.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 3 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, M, D), condition (B, D) -> normalised x (B, M, D), gate (B, 1, D)."""
        scale, shift, gate = self.modulation(condition)[:, None].chunk(3, dim=-1)
        return rms_norm(x) * (1 + scale) + shift, 1 + gate


class Projections(nn.Module):
    """Query, key, value and output maps of one stream; both streams meet in the same heads."""

    def __init__(self, config: Pi05CompactConfig, width: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.query = nn.Linear(width, self.heads * self.head_dim, bias=False)
        self.key_value = nn.Linear(width, 2 * self.kv_heads * self.head_dim, bias=False)
        self.output = nn.Linear(self.heads * self.head_dim, width, bias=False)

    def keys_values(self, x: Tensor) -> KeysValues:
        """x (B, N, D) -> keys and values (B, g, N, d)."""
        kv = self.key_value(x).unflatten(-1, (2, self.kv_heads, self.head_dim))  # (B, N, 2, g, d)
        keys, values = kv.permute(2, 0, 3, 1, 4).unbind(0)
        return keys, values

    def attend(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """x (B, N, D) asks; keys, values (B, g, K, d) answer where mask (B, K) is true."""
        query = self.query(x).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)  # (B, h, N, d)
        answer = F.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask[:, None, None], enable_gqa=self.heads != self.kv_heads
        )
        return self.output(answer.transpose(1, 2).flatten(2))  # (B, N, D)


class PrefixLayer(nn.Module):
    """Pre-norm transformer layer over the prefix. Of the last one, the expert needs keys and values only."""

    def __init__(self, config: Pi05CompactConfig, is_last: bool) -> None:
        super().__init__()
        self.is_last = is_last
        self.attention_norm = RMSNorm(config.width)
        self.attention = Projections(config, config.width)
        if is_last:
            del self.attention.query, self.attention.output
        else:
            self.mlp_norm = RMSNorm(config.width)
            self.mlp = SwiGLU(config.width, config.mlp_width, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, KeysValues]:
        """x (B, N, D), mask (B, N) -> the same after the layer, and what the expert attends to."""
        normed = self.attention_norm(x)
        keys, values = self.attention.keys_values(normed)
        if not self.is_last:
            x = x + self.attention.attend(normed, keys, values, mask)
            x = x + self.mlp(self.mlp_norm(x))
        return x, (keys, values)


class ExpertLayer(nn.Module):
    """The layer of the action expert that matches a prefix layer: one attention over prefix and actions."""

    def __init__(self, config: Pi05CompactConfig) -> None:
        super().__init__()
        self.attention_norm = AdaptiveRMSNorm(config.expert_width)
        self.attention = Projections(config, config.expert_width)
        self.mlp_norm = AdaptiveRMSNorm(config.expert_width)
        self.mlp = SwiGLU(config.expert_width, config.expert_mlp_width, bias=False)

    def forward(self, x: Tensor, condition: Tensor, prefix: KeysValues, mask: Tensor) -> Tensor:
        """x (B, M, D), condition (B, D), prefix keys and values (B, g, N, d), mask (B, N + M)."""
        normed, gate = self.attention_norm(x, condition)
        keys, values = self.attention.keys_values(normed)
        keys = torch.cat([prefix[0], keys], dim=2)  # (B, g, N + M, d)
        values = torch.cat([prefix[1], values], dim=2)
        x = x + gate * self.attention.attend(normed, keys, values, mask)
        normed, gate = self.mlp_norm(x, condition)
        return x + gate * self.mlp(normed)


class StateEmbedding(nn.Module):
    """One token per state dimension: its value, cut into bins, through an embedding of that dimension.

    pi0.5 writes the bins as numbers into the prompt and relies on a language model that knows numbers. Trained
    from scratch, a free vector per bin would know nothing of a bin it has not seen, so the table is factorised:
    a fixed sine-cosine code of the bin times a learned matrix per dimension, and neighbours share.
    """

    code: Tensor

    def __init__(self, dimensions: int, bins: int, width: int, features: int = 32) -> None:
        super().__init__()
        self.bins = bins
        centres = (torch.arange(bins) + 0.5) / bins
        # Shortest wave: 32 bins, so that neighbours are alike and still distinct.
        code = create_sinusoidal_pos_embedding(centres, features, 32 / bins, 4.0, device=centres.device)
        self.register_buffer("code", code.float(), persistent=False)
        self.weight = nn.Parameter(torch.randn(dimensions, features, width) / features**0.5)
        self.bias = nn.Parameter(0.5 * torch.randn(dimensions, width))

    def forward(self, state: Tensor) -> Tensor:
        """state (B, S), normalised to about [-1, 1] -> (B, S, D)."""
        size = state.shape[1]
        bins = ((state + 1) * (self.bins / 2)).floor().clamp(0, self.bins - 1).long()
        return torch.einsum("bsf,sfd->bsd", self.code[bins], self.weight[:size]) + self.bias[:size]


# -------------------------------------------------------------------------------------------------- model


class Pi05Compact(nn.Module):
    """The network. Actions enter and leave at their real width; the padding to `max_action_dim` stays inside."""

    def __init__(self, config: Pi05CompactConfig) -> None:
        super().__init__()
        assert config.input_features is not None
        self.config = config
        cameras = [tuple(feature.shape) for feature in config.image_features.values()]
        vision = config.vision_backbone, config.vision_weights
        self.image_encoder = ObservationEncoder(cameras[0], config.width, *vision, other_shapes=cameras[1:])
        # Told to every token of a camera which one it is; one camera alone needs no name.
        self.camera_embedding = nn.Parameter(torch.empty(len(cameras), config.width)) if len(cameras) > 1 else None
        self.word_embedding = nn.Embedding(config.tokenizer_buckets, config.width)
        self.word_position = nn.Parameter(torch.empty(config.tokenizer_max_length, config.width))
        self.state_embedding = StateEmbedding(config.max_state_dim, config.state_bins, config.width)
        self.prefix_layers = nn.ModuleList(
            PrefixLayer(config, is_last=i == config.depth - 1) for i in range(config.depth)
        )

        patch, tokens = config.action_patch, config.chunk_size // config.action_patch
        self.action_in = nn.Linear(patch * config.max_action_dim, config.expert_width)
        self.action_position = nn.Parameter(torch.empty(tokens, config.expert_width))
        self.time_in = nn.Linear(config.expert_width, config.expert_width)
        self.time_out = nn.Linear(config.expert_width, config.expert_width)
        self.expert_layers = nn.ModuleList(ExpertLayer(config) for _ in range(config.depth))
        self.final_norm = AdaptiveRMSNorm(config.expert_width)
        self.action_out = nn.Linear(config.expert_width, patch * config.max_action_dim)
        self._initialise()

    def _initialise(self) -> None:
        # Learned positions in place of Gemma's rotary ones: every token has a fixed seat here. As large as what
        # they are added to; at the usual 0.02 the first thousand steps cannot tell one place from another.
        for table in (self.word_embedding.weight, self.word_position, self.action_position, self.camera_embedding):
            if table is not None:
                nn.init.normal_(table, std=0.5)

    # ------------------------------------------------------------------------------------------- prefix

    def embed_pictures(self, images: list[Tensor]) -> Tensor:
        """One (B, 3, H, W) in [0, 1] for each camera -> tokens (B, C * N, D)."""
        tokens = [self.image_encoder(image) for image in images]
        if self.camera_embedding is not None:
            tokens = [part + name for part, name in zip(tokens, self.camera_embedding, strict=True)]
        return torch.cat(tokens, dim=1)

    def embed_prefix(
        self, images: list[Tensor], words: Tensor, word_mask: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """A picture (B, 3, H, W) of each camera, words and word_mask (B, L), state (B, S) -> tokens, mask (B, N)."""
        longest = int(word_mask.any(0).sum())  # columns without a single word cost time and change nothing
        prompt = self.word_embedding(words[:, :longest]) + self.word_position[:longest]
        pictures = self.embed_pictures(images)
        tokens = torch.cat([pictures, prompt, self.state_embedding(state)], dim=1)  # (B, N, D)
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        first = pictures.shape[1]
        mask[:, first : first + longest] = word_mask[:, :longest]
        return tokens, mask

    def encode_prefix(
        self, images: list[Tensor], words: Tensor, word_mask: Tensor, state: Tensor
    ) -> tuple[list[KeysValues], Tensor]:
        """Bidirectional pass over the prefix, which no action can reach -> keys and values per layer, mask (B, N)."""
        tokens, mask = self.embed_prefix(images, words, word_mask, state)
        cache = []
        for layer in self.prefix_layers:
            tokens, keys_values = layer(tokens, mask)
            cache.append(keys_values)
        return cache, mask

    # ------------------------------------------------------------------------------------------- suffix

    def embed_time(self, t: Tensor) -> Tensor:
        """t (B,) -> condition (B, D) of every adaRMS."""
        waves = create_sinusoidal_pos_embedding(
            t, self.time_in.in_features, self.config.min_period, self.config.max_period, device=t.device
        )
        return F.silu(self.time_out(F.silu(self.time_in(waves.to(t.dtype)))))

    def denoise(
        self,
        x_t: Tensor,
        t: Tensor,
        prefix: list[KeysValues],
        prefix_mask: Tensor,
        step_is_pad: Tensor | None = None,
    ) -> Tensor:
        """Velocity at x_t (B, T, A), t (B,). A token whose steps are all marked in step_is_pad (B, T) is not seen."""
        width, patch = x_t.shape[-1], self.config.action_patch
        condition = self.embed_time(t)
        steps = torch.ones(x_t.shape[:2], dtype=torch.bool, device=x_t.device) if step_is_pad is None else ~step_is_pad
        mask = torch.cat([prefix_mask, steps.unflatten(1, (-1, patch)).any(-1)], dim=1)  # (B, N + M)
        x = pad_vector(x_t, self.config.max_action_dim)
        x = self.action_in(x.unflatten(1, (-1, patch)).flatten(2)) + self.action_position  # (B, M, D)
        for layer, keys_values in zip(self.expert_layers, prefix, strict=True):
            x = layer(x, condition, keys_values, mask)
        x, _ = self.final_norm(x, condition)
        return self.action_out(x).unflatten(-1, (patch, -1)).flatten(1, 2)[..., :width]  # (B, T, A)

    # --------------------------------------------------------------------------------------------- loss

    def sample_time(self, batch_size: int, device: torch.device) -> Tensor:
        """t = 0.999 * Beta(1.5, 1) + 0.001, (B,): more weight on the noisy end (arXiv 2410.24164, appendix B)."""
        config = self.config
        return sample_time_beta(
            batch_size,
            device,
            alpha=config.time_sampling_beta_alpha,
            beta=config.time_sampling_beta_beta,
            scale=config.time_sampling_scale,
            offset=config.time_sampling_offset,
        )

    def flow_matching_loss(
        self,
        prefix: list[KeysValues],
        prefix_mask: Tensor,
        actions: Tensor,
        step_is_pad: Tensor,
        noise: Tensor,
        t: Tensor,
        dim_is_pad: Tensor | None = None,
        count: Tensor | None = None,
    ) -> Tensor:
        """Mean squared error of the velocity over real steps (arXiv 2410.24164, eq. 1); actions, noise (B, T, A).

        dim_is_pad (B, A) marks dimensions that the robot of a sample does not have: they enter as zeros, as the
        padding inside the network does, and their error does not count. count: by which the sum of errors is divided;
        None = how many are real.
        """
        real = (~step_is_pad)[..., None].to(actions.dtype)  # (B, T, 1)
        x_t = torch.where(step_is_pad[..., None], noise, interpolate(actions, noise, t))  # nothing of what is not there
        if dim_is_pad is not None:
            here = (~dim_is_pad)[:, None].to(actions.dtype)
            x_t, real = x_t * here, real * here
        error = (
            self.denoise(x_t, t, prefix, prefix_mask, step_is_pad) - velocity(actions, noise)
        ).square()  # (B, T, A)
        return (error * real).sum() / (real.expand_as(error).sum() if count is None else count).clamp(min=1)

    # ------------------------------------------------------------------------------------------ sampler

    @torch.no_grad()
    def sample(self, prefix: list[KeysValues], prefix_mask: Tensor, noise: Tensor) -> Tensor:
        """Euler steps from noise (B, T, A) to actions; the prefix was computed once."""
        return euler_integrate(
            lambda x_t, t: self.denoise(x_t, t, prefix, prefix_mask), noise, self.config.num_inference_steps
        )


# ------------------------------------------------------------------------------------------------- policy


class Pi05CompactPolicy(StrictLoading, PreTrainedPolicy):
    """LeRobot's interface to the network. Batches arrive through the policy's own preprocessor."""

    config_class = Pi05CompactConfig
    name = "pi05_compact"

    def __init__(self, config: Pi05CompactConfig, **kwargs: Any) -> None:
        super().__init__(config)
        config.validate_features()
        self.config: Pi05CompactConfig = config
        self.model = Pi05Compact(config)
        config.vision_weights = None  # now part of the policy's own weights; a checkpoint must not need the file
        self.reset()

    def get_optim_params(self) -> Any:
        return self.parameters()

    def reset(self) -> None:
        """Forget queued actions; called when an environment resets."""
        self._queue: deque[Tensor] = deque(maxlen=self.config.n_action_steps)

    def encode_prefix(self, batch: dict[str, Tensor]) -> tuple[list[KeysValues], Tensor]:
        """Prefix of a preprocessed batch."""
        pictures = [batch[camera] for camera in self.config.image_features]
        words = batch[OBS_LANGUAGE_TOKENS], batch[OBS_LANGUAGE_ATTENTION_MASK]
        return self.model.encode_prefix(pictures, *words, batch[OBS_STATE])

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Training loss. Raises ValueError if the chunk is not `chunk_size` long."""
        actions = batch[ACTION]  # (B, T, A)
        if actions.shape[1] != self.config.chunk_size:
            raise ValueError(f"{actions.shape[1]} action steps in the batch: expected {self.config.chunk_size}")
        step_is_pad = batch.get(ACTION_IS_PAD)
        if step_is_pad is None:
            step_is_pad = torch.zeros(actions.shape[:2], dtype=torch.bool, device=actions.device)
        prefix, prefix_mask = self.encode_prefix(batch)
        dim_is_pad = batch.get(ACTION_DIM_IS_PAD)
        draws = self.config.flow_samples
        if draws > 1:
            dim_is_pad = None if dim_is_pad is None else dim_is_pad.repeat(draws, 1)
            prefix = [(k.repeat(draws, 1, 1, 1), v.repeat(draws, 1, 1, 1)) for k, v in prefix]
            prefix_mask, step_is_pad = prefix_mask.repeat(draws, 1), step_is_pad.repeat(draws, 1)
            actions = actions.repeat(draws, 1, 1)
        noise, t = batch.get(NOISE), batch.get(TIME)
        if noise is None or t is None:
            noise = sample_noise(actions.shape, actions.device)
            t = self.model.sample_time(actions.shape[0], actions.device)
        loss = self.model.flow_matching_loss(
            prefix, prefix_mask, actions, step_is_pad, noise, t, dim_is_pad, batch.get(COUNT)
        )
        return loss, {"loss": loss.item()}

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Tensor], noise: Tensor | None = None, **kwargs: Any) -> Tensor:
        """(B, chunk_size, A) normalised actions; the state of the random generator decides unless noise is given.

        A picture of another size is letterboxed, since `lerobot-eval` passes on what the simulator renders.
        """
        self.eval()
        tell_chunk_begins(batch)
        prefix, prefix_mask = self.encode_prefix(self._with_own_picture_size(batch))
        action = self.config.action_feature
        assert action is not None
        if noise is None:
            shape = (prefix_mask.shape[0], self.config.chunk_size, action.shape[0])
            noise = self.config.sampling_temperature * sample_noise(shape, prefix_mask.device)
        return self.model.sample(prefix, prefix_mask, noise)

    def _with_own_picture_size(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        sizes = {key: feature.shape[1:] for key, feature in self.config.image_features.items()}
        return {**batch, **{key: letterboxed(batch[key], (size[0], size[1])) for key, size in sizes.items()}}

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:
        """Next action (B, A); predicts a new chunk every `n_action_steps` calls."""
        if not self._queue:
            chunk = self.predict_action_chunk(batch, **kwargs)[:, : self.config.n_action_steps]
            self._queue.extend(chunk.transpose(0, 1))
        return self._queue.popleft()
