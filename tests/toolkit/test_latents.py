"""Latents: encoded once per clips, encoder and window, in files that outlive a kill; windows that begin anywhere."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from toolkit.base import processes as processes_module
from toolkit.data import latents as module
from toolkit.data.batches import GeneratorClips
from toolkit.data.clips import ClipStore
from toolkit.data.latents import LatentClips, open_latents
from toolkit.data.selection import subset


@pytest.fixture(autouse=True)
def cache_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VAG_CACHE", str(tmp_path / "own-cache"))
    return tmp_path / "own-cache"


class Encoder:
    """Gives the number of a window and a third; fails at one of them, if told to."""

    def __init__(self, fails_at: int = -1) -> None:
        self.asked, self.fails_at = list[int](), fails_at

    def __call__(self, windows: np.ndarray) -> Iterator[Tensor]:
        for window in windows.tolist():
            if window == self.fails_at:
                raise RuntimeError("killed")
            self.asked.append(window)
            yield torch.tensor([[window, 1 / 3]])


def test_latents_are_encoded_once_per_clips_encoder_and_window(store: ClipStore) -> None:
    encode = Encoder()
    for _ in range(2):
        latents = open_latents(store, "encoder", "9 frames", 6, encode)
        assert torch.equal(latents[np.array([5, 0, 5])], torch.tensor([[5, 1 / 3], [0, 1 / 3], [5, 1 / 3]]))
        assert len(latents) == 6
    assert encode.asked == list(range(6))
    other = subset(store, np.array([1, 0, 2, 3, 4, 5]))
    for key in ((store, "other", "9 frames"), (store, "encoder", "5 frames"), (other, "encoder", "9 frames")):
        before = len(encode.asked)
        open_latents(*key, 6, encode)
        assert len(encode.asked) == before + 6


def test_a_killed_encoding_goes_on_where_it_was(store: ClipStore, cache_directory: Path) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        open_latents(store, "encoder", "w", 10, Encoder(fails_at=7), size=3)
    encode = Encoder()
    latents = open_latents(store, "encoder", "w", 10, encode, size=3)
    assert encode.asked == [6, 7, 8, 9]
    assert [len(file) for file in latents.files] == [3, 3, 3, 1]
    assert latents[np.arange(10)][:, 0].tolist() == list(range(10))
    assert not [path for path in cache_directory.iterdir() if "part" in path.name]


def test_files_of_several_windows_hold_bfloat16(store: ClipStore) -> None:
    latents = open_latents(store, "encoder", "w", 4, Encoder(), size=2)
    assert latents[np.array([3])].dtype == torch.float32
    assert latents[np.array([3])].tolist() == [[3, float(torch.tensor(1 / 3).bfloat16())]]
    assert latents.files[0].dtype.itemsize == 2


def test_processes_begin_with_different_files(store: ClipStore, monkeypatch: pytest.MonkeyPatch) -> None:
    second = processes_module.Processes({**dict.fromkeys(processes_module.PLACES, "1"), "WORLD_SIZE": "2", "RANK": "1"})
    monkeypatch.setattr(module, "processes", lambda: second)
    encode = Encoder()
    assert open_latents(store, "encoder", "w", 4, encode, size=1)[np.arange(4)][:, 0].tolist() == [0, 1, 2, 3]
    assert encode.asked == [2, 3, 0, 1]


@pytest.mark.parametrize("every", [1, 3])
def test_windows_anywhere_get_their_own_latents(store: ClipStore, every: int) -> None:
    """Each window that is drawn finds the latents of its episode and start, and none is drawn that has none."""
    clips = GeneratorClips(store, 64, 9, seed=0, random_start=True, start_every=every)
    assert clips.windows_of.tolist() == [(length - 9) // every + 1 for length in store.episode_lengths]
    places = [(e, every * k) for e, count in enumerate(clips.windows_of) for k in range(count)]
    source = LatentClips(clips, torch.tensor(places))
    seen = set()
    for step in range(20):
        episodes, starts = clips.draw(step)
        assert source.batch(step)["latents"].tolist() == np.stack([episodes, starts], axis=1).tolist()
        seen |= set(zip(episodes.tolist(), starts.tolist(), strict=True))
    assert seen == set(places)
