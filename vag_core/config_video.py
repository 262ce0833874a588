"""Configs of the video: its tokenizer, its branch, and the encoder of the first frame."""

from __future__ import annotations

from dataclasses import dataclass

from vag_core.options import DEPTHS, WIDTHS, option

ATTENTIONS = ("full", "factorised")
FAMILIES = ("cosmos", "cosmos25", "wan")  # of pretrained models
TRAINED = ("frozen", "lora", "full")
DTYPES = ("auto", "float32", "bfloat16")


@dataclass
class TokenizerConfig:
    """Causal video tokenizer: the first frame alone, then groups of `temporal_stride` frames. TOKENIZERS holds one for
    each kind."""

    kind: str = option("", "what the tokenizer is; chosen by the group generator/tokenizer")
    latent_channels: int = option(16, "channels of a latent cell", least=1, most=1024)
    temporal_stride: int = option(
        8, "frames per latent frame after the first; 1 = per-frame tokenizer", least=1, most=1024
    )
    spatial_stride: int = option(8, "pixels per latent cell", least=1, most=256)


@dataclass
class ConvTokenizerConfig(TokenizerConfig):
    """Our small convolutional one, trained with the generator."""

    kind: str = option("conv", "what the tokenizer is; chosen by the group generator/tokenizer")
    width: int = option(192, "channels inside", **WIDTHS)
    depth: int = option(3, "residual blocks in the encoder and in the decoder", **DEPTHS)
    kl_weight: float = option(1e-5, "of the latents' distance from a normal distribution", least=0, most=1000)


@dataclass
class PretrainedTokenizerConfig(TokenizerConfig):
    """That of the pretrained video model, frozen; its sizes are read from the model."""

    kind: str = option("pretrained", "what the tokenizer is; chosen by the group generator/tokenizer")
    temporal_stride: int = option(
        4, "frames per latent frame after the first; 1 = per-frame tokenizer", least=1, most=1024
    )


TOKENIZERS: dict[str, type[TokenizerConfig]] = {
    "conv": ConvTokenizerConfig,
    "pretrained": PretrainedTokenizerConfig,
}


@dataclass
class SceneConfig:
    """Encoder of the first frame at full resolution: where things are, more precisely than the latents say."""

    width: int = option(96, "channels of the map", **WIDTHS)
    depth: int = option(3, "residual blocks", **DEPTHS)
    stride: int = option(4, "pixels per cell of the map", least=1, most=256)
    keypoints: int = option(64, "positions that spatial softmax reads off", least=1, most=4096)
    grid: int = option(8, "areas a side of the summary; a finer map is averaged over them", least=1, most=1024)


@dataclass
class VideoConfig:
    """What all video branches have. VIDEOS holds one for each kind."""

    kind: str = option("", "what the video branch is; chosen by the group generator/video")
    width: int = option(192, "of the tokens", **WIDTHS)
    patch_size: int = option(2, "latent cells per token, in height and in width", least=1, most=256)


@dataclass
class DiTConfig(VideoConfig):
    """Our latent video diffusion transformer (adaLN-Zero), trained from scratch."""

    kind: str = option("dit", "what the video branch is; chosen by the group generator/video")
    depth: int = option(6, "blocks", **DEPTHS)
    heads: int = option(6, "of the attention", least=1, most=1024)
    attention: str = option(
        "full", "full: all space-time tokens at once; factorised: space and time in turn", choices=ATTENTIONS
    )


@dataclass
class PretrainedConfig(VideoConfig):
    """A published video model, see `backbones`: fine-tuned whole or with LoRA (arXiv 2106.09685), or frozen.

    width, patch_size and base_id are read from the model.
    """

    kind: str = option("pretrained", "what the video branch is; chosen by the group generator/video")
    width: int = option(2048, "of the tokens", **WIDTHS)
    family: str = option("cosmos", "kind of the model", choices=FAMILIES)
    path: str = option(
        "tiny:cosmos",
        "directory of the model in the format of diffusers, owner/name[@revision] on the Hugging Face hub, or "
        "tiny:cosmos, tiny:cosmos25, tiny:wan: small random ones",
    )
    base_id: str = option("none", "SHA-256 of the model's files; read from the model")
    train: str = option("lora", "what of it is trained", choices=TRAINED)
    lora_rank: int = option(32, "of the added matrices", least=1, most=1024)
    lora_alpha: int = option(32, "their factor is lora_alpha / lora_rank", least=1, most=100_000)
    lora_targets: list[str] = option(
        ["to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2"], "ends of the names of the layers that get them"
    )
    read_depth: int = option(0, "blocks before the tokens that actions read; 0 = two thirds of them", least=0, most=512)
    gradient_checkpointing: bool = option(True, "compute a block again in the backward pass instead of keeping it")
    dtype: str = option(
        "auto", "of the frozen weights; auto = bfloat16 on a GPU, float32 on a CPU and for train=full", choices=DTYPES
    )
    fps: float = option(
        0.0, "pictures a second that Cosmos-Predict2 is told; 0 = those of the data", least=0, most=10_000
    )
    noise_share: float = option(
        0.05, "of the training clips at pure noise; the rest as the model was trained", least=0, most=1
    )

    def check(self) -> None:
        """Raise ValueError for a word that is none of the choices."""
        for name, value, choices in (
            ("family", self.family, FAMILIES),
            ("train", self.train, TRAINED),
            ("dtype", self.dtype, DTYPES),
        ):
            if value not in choices:
                raise ValueError(f"video.{name} = {value!r}: expected one of {', '.join(choices)}")


VIDEOS: dict[str, type[VideoConfig]] = {"dit": DiTConfig, "pretrained": PretrainedConfig}
