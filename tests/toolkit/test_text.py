"""Instruction encoding: the same everywhere, order-insensitive where it should be, and no network."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from toolkit.base.errors import UserError
from toolkit.data.text import PAD, InstructionEmbedder, InstructionTokenizer, split_words


def test_words_are_lower_case_and_without_punctuation() -> None:
    assert split_words("Push the  PUCK, to_the goal!") == ["push", "the", "puck", "to", "the", "goal"]


def test_tokens_are_padded_masked_and_truncated() -> None:
    ids, mask = InstructionTokenizer(length=4, buckets=128).encode(["push", "a b c d e f", ""])
    assert ids.shape == mask.shape == (3, 4)
    assert ids.dtype == torch.int64
    assert mask.dtype == torch.bool
    assert mask.tolist() == [[True, False, False, False], [True] * 4, [False] * 4]
    assert (ids[~mask] == PAD).all()
    assert (ids[mask] != PAD).all()
    assert ids.max() < 128


def test_tokens_follow_the_words() -> None:
    ids, _ = InstructionTokenizer(length=8).encode(["open the door", "Open the door.", "door the open"])
    assert torch.equal(ids[0], ids[1])
    assert not torch.equal(ids[0], ids[2])
    assert torch.equal(ids[0, :3].sort().values, ids[2, :3].sort().values)


def test_tokenizer_refuses_empty_sizes() -> None:
    with pytest.raises(UserError, match="length 0"):
        InstructionTokenizer(length=0)


def test_embedding_is_a_unit_vector_and_tells_instructions_apart() -> None:
    vectors = InstructionEmbedder().embed(["push the puck", "pull the puck", "open the faucet", ""])
    assert vectors.shape == (4, 64)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors[:3].norm(dim=1), torch.ones(3))
    assert vectors[3].norm() == 0
    near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert far < near < 1 - 1e-3


def test_embedding_knows_word_order() -> None:
    vectors = InstructionEmbedder(width=256).embed(["red on blue", "blue on red"])
    assert vectors[0] @ vectors[1] < 0.9


def test_same_numbers_in_another_process() -> None:
    text = "Pick up the puck and place it"
    code = (
        "from toolkit.data.text import InstructionEmbedder, InstructionTokenizer as T;"
        f"print(T().encode([{text!r}])[0].tolist(), InstructionEmbedder().embed([{text!r}]).tolist())"
    )
    there = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONHASHSEED": "1"}, capture_output=True, text=True, check=True
    ).stdout
    here = f"{InstructionTokenizer().encode([text])[0].tolist()} {InstructionEmbedder().embed([text]).tolist()}\n"
    assert there == here


def test_missing_text_model_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="directory not found"):
        InstructionEmbedder(path=tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no config\.json"):
        InstructionEmbedder(path=tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match="safetensors"):
        InstructionEmbedder(path=tmp_path)


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_text_model_on_disk(tmp_path: Path, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = ["[PAD]", "[UNK]", "push", "pull", "the", "puck"]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(tmp_path)
    if kind == "bert":
        config = transformers.BertConfig(
            vocab_size=6, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        )
        transformers.BertModel(config).save_pretrained(tmp_path)
    else:
        config = transformers.T5Config(vocab_size=6, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        transformers.T5EncoderModel(config).save_pretrained(tmp_path)
    embedder = InstructionEmbedder(path=tmp_path)
    together = embedder.embed(["push the puck", "pull"])
    assert together.shape == (2, embedder.width) == (2, 16)
    assert torch.equal(InstructionEmbedder(path=tmp_path).embed(["pull"])[0], together[1])


def model_files(directory: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor] | None = None) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tensors or {"a": torch.ones(2)}, directory / "model.safetensors")
    return directory


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", {"model_type": "bert", "auto_map": {"AutoModel": "evil.Model"}}, "'auto_map' names code"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.T", None]}}, "'auto_map' names code"),
        ("config.json", {"model_type": "t5", "text_config": {"auto_map": {}}}, "'auto_map' names code"),
        ("config.json", {"model_type": "bert", "quantization_config": {}}, "'quantization_config' names code"),
        ("config.json", {"model_type": "bert", "attn_implementation": "evil/kernel"}, "expected a plain name"),
        ("config.json", {"model_type": "bert", "num_hidden_layers": 10**9}, "'num_hidden_layers' is 1000000000"),
        ("config.json", {"model_type": "bert", "hidden_size": float("nan")}, "'hidden_size' is nan"),
        ("config.json", json.loads("[" * 70 + "]" * 70), "nested more than 64 deep"),
        ("adapter_config.json", {"base_model_name_or_path": "evil/x"}, "is an adapter of another model"),
        ("model.safetensors.index.json", {"weight_map": {"a": "../x.safetensors"}}, "expected a plain name"),
        ("modules.json", "{", "not valid JSON"),
    ],
)
def test_a_text_model_that_names_code_is_refused(tmp_path: Path, file: str, content: Any, message: str) -> None:
    directory = model_files(tmp_path / "model", {"model_type": "bert"})
    (directory / file).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=message) as refusal:
        InstructionEmbedder(path=directory)
    assert "\n" not in str(refusal.value)


def test_what_a_text_model_asks_for_is_compared_with_its_files(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    small = {"vocab_size": 6, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    for name, values in (
        ("wide", {"hidden_size": 100_000}),
        ("deep", {"num_hidden_layers": 1_000_000}),
        ("wordy", {"vocab_size": 10_000_000}),
    ):
        directory = model_files(tmp_path / name, {"model_type": "bert", **small, **values})
        with pytest.raises(UserError, match="asks for a larger model than its"):
            InstructionEmbedder(path=directory)
    with pytest.raises(UserError, match="is missing from its"):
        InstructionEmbedder(path=model_files(tmp_path / "empty", {"model_type": "bert", **small}))
    with pytest.raises(UserError, match=r"holds 2 numbers; at most 1 are loaded, more with max_parameters=2"):
        InstructionEmbedder(path=tmp_path / "empty", max_parameters=1)
