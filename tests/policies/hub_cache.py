"""LeRobot's policies made small: their settings, and a hub cache on disk with tiny models of what they name.

Weights are random, the code is real.


models--ORG--NAME/refs/main          the name of the one commit
models--ORG--NAME/snapshots/COMMIT/  its files
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

COMMIT = "0" * 40
SMOLVLM = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
PALIGEMMA = "google/paligemma-3b-pt-224"
UMT5 = "google/umt5-xxl"
WAN = "Wan-AI/Wan2.2-TI2V-5B-Diffusers"
WORDS = ["push", "the", "puck", "open", "small", "door", "A", "video", "Task", ":", "a"]

VIDEO = {"hidden_dim": 48, "ffn_dim": 32, "freq_dim": 16, "text_dim": 32, "num_heads": 2, "attn_head_dim": 24}
SMALL: dict[str, dict[str, Any]] = {
    "act": {
        **{"chunk_size": 8, "n_action_steps": 4, "dim_model": 32, "n_heads": 2, "dim_feedforward": 32},
        "pretrained_backbone_weights": None,
    },
    "diffusion": {"n_obs_steps": 2, "horizon": 8, "n_action_steps": 4, "down_dims": (16, 32)},
    "smolvla": {
        **{"chunk_size": 8, "n_action_steps": 4, "load_vlm_weights": True, "resize_imgs_with_padding": (64, 64)},
        **{"num_vlm_layers": 2, "num_steps": 2, "tokenizer_max_length": 8},
    },
    "fastwam": {
        **{"action_horizon": 8, "n_action_steps": 4, "num_video_frames": 9, "action_video_freq_ratio": 1},
        **{"image_size": (32, 64), "torch_dtype": "float32", "tokenizer_max_len": 16, "context_len": 16},
        "num_inference_steps": 2,
        "video_dit_config": {
            **{**VIDEO, "patch_size": [1, 2, 2], "in_dim": 48, "out_dim": 48, "num_layers": 1, "eps": 1e-6},
            **{"seperated_timestep": True, "video_attention_mask_mode": "first_frame_causal"},
            **{"action_conditioned": False, "action_dim": 3, "action_group_causal_mask_mode": "group_diagonal"},
        },
        "action_dit_config": {**VIDEO, "hidden_dim": 32, "num_layers": 1, "eps": 1e-6, "action_dim": 3},
    },
}


def snapshot(cache: Path, repository: str) -> Path:
    """An empty snapshot of a repository, which `refs/main` names."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(COMMIT)
    place = folder / "snapshots" / COMMIT
    place.mkdir(parents=True, exist_ok=True)
    return place


def write_tokenizer(place: Path, special: dict[str, str]) -> None:
    """A tokenizer of a few words, whose first entries are padding, end and unknown. special: more of them, by name."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "</s>", "<unk>", *special.values(), *WORDS, *map(str, range(256))]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        bos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=special,
    )
    fast.save_pretrained(place)


def write_smolvlm(cache: Path) -> None:
    """SmolVLM2 with two layers, a tokenizer and a processor."""
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    place = snapshot(cache, SMOLVLM)
    special = {
        "fake_image_token": "<fake_token_around_image>",
        "image_token": "<image>",
        "end_of_utterance_token": "<end_of_utterance>",
        "global_image_token": "<global-img>",
    }
    write_tokenizer(place, special)
    config = SmolVLMConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 16,
        },
        text_config={
            "model_type": "llama",
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "vocab_size": 300,
            "pad_token_id": 0,
        },
        scale_factor=2,
        image_token_id=4,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    SmolVLMForConditionalGeneration(config).save_pretrained(place)
    edge = {"longest_edge": 64}
    picture = {"image_processor_type": "SmolVLMImageProcessor", "size": edge, "max_image_size": edge}
    (place / "preprocessor_config.json").write_text(json.dumps({**picture, "processor_class": "SmolVLMProcessor"}))
    (place / "processor_config.json").write_text(
        json.dumps({"processor_class": "SmolVLMProcessor", "image_seq_len": 4})
    )
    video = {"video_processor_type": "SmolVLMVideoProcessor", "size": edge, "max_image_size": edge, "num_frames": 2}
    (place / "video_preprocessor_config.json").write_text(json.dumps({**video, "fps": 1}))


def write_paligemma_tokenizer(cache: Path) -> None:
    """The tokenizer of pi0 and pi0.5."""
    write_tokenizer(place := snapshot(cache, PALIGEMMA), {"image_token": "<image>"})
    (place / "config.json").write_text(json.dumps({"model_type": "paligemma"}))


def write_wan(cache: Path) -> None:
    """Wan2.2's VAE with its 48 channels and strides, and a text encoder, both tiny, and the tokenizer of UMT5."""
    from diffusers import AutoencoderKLWan
    from transformers import UMT5Config, UMT5EncoderModel

    write_tokenizer(place := snapshot(cache, UMT5), {})
    (place / "config.json").write_text(json.dumps({"model_type": "umt5"}))
    place = snapshot(cache, WAN)
    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=8,
        decoder_base_dim=8,
        z_dim=48,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
        latents_mean=[0.0] * 48,
        latents_std=[1.0] * 48,
    )
    vae.save_pretrained(place / "vae")
    text = UMT5Config(
        vocab_size=300, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2, pad_token_id=0, eos_token_id=1
    )
    UMT5EncoderModel(text).save_pretrained(place / "text_encoder")


def write_all(cache: Path) -> None:
    """What SMALL and the tokenizer of pi0.5 need."""
    write_smolvlm(cache)
    write_paligemma_tokenizer(cache)
    write_wan(cache)
