"""The models that can be loaded, and the published sizes of their networks and tokenizers.

Sizes: diffusers' scripts/convert_cosmos_to_diffusers.py and scripts/convert_wan_to_diffusers.py.
"""

from __future__ import annotations

from typing import Any

PIPELINES = {  # the pipeline that `model_index.json` names, and the kind of backbone
    "Cosmos2VideoToWorldPipeline": "cosmos",
    "Cosmos2_5_PredictBasePipeline": "cosmos25",
    "WanPipeline": "wan",
    "WanImageToVideoPipeline": "wan",
}
EULER, UNIPC = "FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler"
PARTS: dict[str, dict[str, tuple[str, ...]]] = {  # classes that a part of the model may have, by kind of backbone
    "cosmos": {"transformer": ("CosmosTransformer3DModel",), "vae": ("AutoencoderKLWan",), "scheduler": (EULER,)},
    "cosmos25": {"transformer": ("CosmosTransformer3DModel",), "vae": ("AutoencoderKLWan",), "scheduler": (UNIPC,)},
    "wan": {"transformer": ("WanTransformer3DModel",), "vae": ("AutoencoderKLWan",), "scheduler": (UNIPC, EULER)},
}
T5_TOKENIZERS = ("T5TokenizerFast", "T5Tokenizer")
TEXT_PARTS: dict[str, dict[str, tuple[str, ...]]] = {  # the same, of transformers
    "cosmos": {"text_encoder": ("T5EncoderModel",), "tokenizer": T5_TOKENIZERS},
    "cosmos25": {
        "text_encoder": ("Qwen2_5_VLForConditionalGeneration",),
        "tokenizer": ("Qwen2TokenizerFast", "Qwen2Tokenizer"),
    },
    "wan": {"text_encoder": ("UMT5EncoderModel",), "tokenizer": T5_TOKENIZERS},
}

_COSMOS: dict[str, Any] = {
    "in_channels": 17,
    "out_channels": 16,
    "num_attention_heads": 16,
    "attention_head_dim": 128,
    "num_layers": 28,
    "mlp_ratio": 4.0,
    "text_embed_dim": 1024,
    "adaln_lora_dim": 256,
    "max_size": (128, 240, 240),
    "patch_size": (1, 2, 2),
    "rope_scale": (1.0, 3.0, 3.0),
    "concat_padding_mask": True,
    "extra_pos_embed_type": None,
}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "cosmos": _COSMOS,  # Cosmos-Predict2-2B-Video2World
    "cosmos25": {  # Cosmos-Predict2.5-2B
        **_COSMOS,
        "use_crossattn_projection": True,
        "crossattn_proj_in_channels": 100_352,
        "encoder_hidden_states_channels": 1024,
    },
    "wan": {  # Wan2.2-TI2V-5B
        "added_kv_proj_dim": None,
        "attention_head_dim": 128,
        "cross_attn_norm": True,
        "eps": 1e-6,
        "ffn_dim": 14_336,
        "freq_dim": 256,
        "in_channels": 48,
        "num_attention_heads": 24,
        "num_layers": 30,
        "out_channels": 48,
        "patch_size": (1, 2, 2),
        "qk_norm": "rms_norm_across_heads",
        "text_dim": 4096,
    },
}
VAES: dict[str, dict[str, Any]] = {  # AutoencoderKLWan
    "cosmos": {"z_dim": 16},  # that of Wan2.1, which are the defaults
    "cosmos25": {"z_dim": 16},
    "wan": {  # that of Wan2.2
        "base_dim": 160,
        "decoder_base_dim": 256,
        "z_dim": 48,
        "is_residual": True,
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_temporal": 4,
        "scale_factor_spatial": 16,
    },
}
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {  # as published
    "cosmos": (EULER, {"use_karras_sigmas": True}),
    "cosmos25": (
        UNIPC,
        {
            "use_karras_sigmas": True,
            "use_flow_sigmas": True,
            "prediction_type": "flow_prediction",
            "sigma_max": 200.0,
            "sigma_min": 0.01,
        },
    ),
    "wan": (
        UNIPC,
        {
            "prediction_type": "flow_prediction",
            "use_flow_sigmas": True,
            "num_train_timesteps": 1000,
            "flow_shift": 5.0,
        },
    ),
}
