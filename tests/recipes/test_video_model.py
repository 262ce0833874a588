"""Text and sizes of pretrained video models in commands: asked for once, and refused before any data is read."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes import cli
from recipes.video_model import TextTokens
from vag_core.backbones import text
from vag_core.backbones.directory import locate
from vag_core.backbones.text import text_contexts

pytest.importorskip("diffusers")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAG_CACHE", str(tmp_path_factory.getbasetemp() / "video-model"))


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An entry for each time that a text encoder is loaded."""
    times, load = list[int](), text.load_encoder
    monkeypatch.setattr(text, "load_encoder", lambda *given: times.append(1) or load(*given))
    return times


@pytest.mark.parametrize("kind", ["cosmos", "cosmos25", "wan"])
def test_texts_are_encoded_once_and_equal_the_contexts(kind: str, loaded: list[int]) -> None:
    directory = locate(f"tiny:{kind}")
    texts = [f"{kind} {number}" for number in range(6)]
    tokens = TextTokens(directory, "cpu", views="left: top camera")
    tokens.prepare(texts)
    assert len(loaded) == 1
    found = tokens([texts[4], texts[0], texts[4]])
    said = [f"{one}; left: top camera" for one in (texts[4], texts[0], texts[4])]
    assert torch.equal(found, text_contexts(directory, said))
    assert tokens.negative("blurry").shape == (1, 512, 16)
    assert len(loaded) == 2


def test_texts_may_be_asked_for_by_two_threads_and_few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vag_core.backbones.tokens.KEPT", 2)
    tokens, texts = TextTokens(locate("tiny:wan"), "cpu"), [f"wan {number}" for number in range(6)]
    whole = tokens(texts)
    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(tokens, [texts, texts[::-1]] * 4):
            assert torch.equal(found, whole) or torch.equal(found, whole.flip(0))
    assert len(tokens._kept) == 2
    assert all(rows.untyped_storage().nbytes() == rows.nbytes for rows in tokens._kept.values())  # no part of others


MODEL = ["generator=vag_cosmos", "generator.video.path=tiny:cosmos"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["image_size=[60,64]"], "tiny:cosmos takes multiples of 16"),
        (["generator.num_frames=10"], "num_frames = 10: expected 1 \\+ a multiple of 4"),
        (["generator.num_frames=4001"], "are 1001 latents; the model knows 128"),
        (["generator.video.read_depth=50"], "read_depth = 50: the model has 3 blocks"),
        (["generator.video.family=wan"], "expected wan, as video.family says"),
        (["tokenizer_from=x"], "brings its own tokenizer; leave it out"),
        (["instruction_encoder=x"], "reads text itself; leave it out"),
        (["generator/action=action_only"], "makes no video; take generator=action_only"),
        (["generator.video.path=nowhere/model"], "no such directory here"),
    ],
)
def test_what_the_model_cannot_do_is_refused_before_data_is_read(
    words: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = f"out={tmp_path / 'run'}"
    assert cli.main(["train-generator", f"dataset={tmp_path / 'no-data'}", *MODEL, *words, out]) == 2
    error: Any = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(expected, error), error
    assert "no-data" not in error
