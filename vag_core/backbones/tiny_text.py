"""Random text encoders and whole tokenizers of the real classes, for the tiny models: one token a letter or a byte."""

from __future__ import annotations

import string
from typing import Any

from vag_core.backbones.published import TEXT_PARTS
from vag_core.backbones.text_encoder import import_transformers

WIDTH, LAYERS = 16, 2  # Qwen2.5-VL's layers side by side are then the 32 numbers that the tiny network projects
LETTERS = string.ascii_letters + string.digits + string.punctuation
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}{{ part.text }}{% endfor %}<|im_end|>\n{% endfor %}"
)
T5: dict[str, Any] = {
    "vocab_size": 128,
    "d_model": WIDTH,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": LAYERS,
    "num_heads": 2,
    "feed_forward_proj": "gated-gelu",
}
QWEN: dict[str, Any] = {
    "text_config": {
        "vocab_size": 272,
        "hidden_size": WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]},
    },
    "vision_config": {
        "depth": 1,
        "hidden_size": WIDTH,
        "intermediate_size": 16,
        "num_heads": 2,
        "patch_size": 2,
        "out_hidden_size": WIDTH,
        "window_size": 8,
        "fullatt_block_indexes": [0],
    },
    "image_token_id": 268,
    "video_token_id": 269,
    "vision_start_token_id": 270,
    "vision_end_token_id": 271,
}


def tiny_text_encoder(kind: str) -> Any:
    """The text encoder of a kind of model, random."""
    network = getattr(import_transformers(), TEXT_PARTS[kind]["text_encoder"][0])
    return network(network.config_class(**(QWEN if kind == "cosmos25" else T5)))


def tiny_tokenizer(kind: str) -> Any:
    """The tokenizer of a kind of model: letters, digits and ASCII punctuation, or bytes for Cosmos-Predict2.5."""
    transformers = import_transformers()
    if kind != "cosmos25":
        special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
        return transformers.T5TokenizerFast(vocab=special + [(letter, -3.0) for letter in LETTERS], extra_ids=0)
    from tokenizers.pre_tokenizers import ByteLevel

    vocabulary = {byte: number for number, byte in enumerate(sorted(ByteLevel.alphabet()))}
    return transformers.Qwen2TokenizerFast(
        vocab=vocabulary,
        merges=[],
        eos_token="<|im_end|>",
        extra_special_tokens=["<|im_start|>"],
        chat_template=CHAT,
    )
