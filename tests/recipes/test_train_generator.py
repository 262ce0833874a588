"""Which episodes lend their actions to a generator's training, and how often each is drawn."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from recipes import cli
from recipes.compose import compose_config
from recipes.train_generator import TrainingData, check_window, episode_shares, labelled_episodes, tokenizer_stage
from toolkit.base.errors import UserError
from toolkit.data.clips import ClipStore, write_clips
from toolkit.data.episode import Episode
from toolkit.data.selection import subset
from vag_core import Generator
from vag_core.clocks import clocks_of
from vag_core.tokenizer import VideoTokenizer


def test_a_share_of_every_instruction_is_labelled(store: ClipStore) -> None:
    assert labelled_episodes([store], 1.0) is None
    labelled = labelled_episodes([store], 0.34)
    assert labelled is not None
    assert np.bincount(store.episode_tasks[labelled]).tolist() == [1, 1]  # of three each
    assert labelled.tolist() == [True, True, False, False, False, False]
    rows = store.rows_of(np.flatnonzero(labelled))
    assert rows.tolist() == [*range(17), *range(17, 35)]


def test_each_dataset_keeps_the_labels_that_it_is_said_to(store: ClipStore) -> None:
    labelled = labelled_episodes([store, store], [0, 0.34])
    assert labelled is not None
    assert np.flatnonzero(labelled).tolist() == [6, 7]
    assert labelled_episodes([store, store], [1, 1]) is None
    for wrong in (0, [0.0, 0.0], [1.0]):
        with pytest.raises(UserError, match="labelled_fraction=.*one for each of dataset="):
            labelled_episodes([store, store], wrong)


def test_labels_in_datasets_that_are_never_drawn_are_refused(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train-generator", f"dataset=[{dataset},{dataset}]", "labelled_fraction=[1,0]", f"out={tmp_path / 'out'}"]
    assert cli.main([*words, "dataset_shares=[0,1]"]) == 2
    assert "dataset_shares=[0, 1] draws from no dataset that keeps actions" in capsys.readouterr().err.replace(".0", "")


def test_long_episodes_among_short_ones_are_not_forgotten(capsys: pytest.CaptureFixture[str]) -> None:
    """On average much is covered, of two episodes in five a tenth."""
    config: Any = OmegaConf.to_object(compose_config("train-generator", ["dataset=x"]))
    store: Any = SimpleNamespace(episode_lengths=np.array([81] * 6 + [801] * 4), fps=20)
    assert check_window(config, store) == (pytest.approx(0.64, abs=1e-3), 0)
    said = "80 steps (4.0 s) and covers less than half of 40% of the episodes (of up to 801 steps), at its start"
    assert said in capsys.readouterr().err
    store.episode_lengths[6:] = 100
    check_window(config, store)
    assert not capsys.readouterr().err


def test_the_video_hears_actions_where_few_have_labels(moving_square: Callable[..., Episode], tmp_path: Path) -> None:
    """At the shipped settings, with labels on a tenth of the episodes."""
    config: Any = OmegaConf.to_object(compose_config("train-generator", ["dataset=x", "labelled_fraction=0.1"]))
    shape = config.generator
    episodes = [moving_square(seed, length=20, size=shape.image_size[0]) for seed in range(40)]
    write_clips(tmp_path / "clips.h5", episodes, 800, 20, "x")
    store = ClipStore.open(tmp_path / "clips.h5")
    labelled = labelled_episodes([store], config.labelled_fraction)
    data = TrainingData(store, config, [40], None, labelled, [], [-1])
    clips, joint = data.labelled_clips(), clocks_of(shape.action).num_joint_clips(config.optim.batch_size)
    assert (config.optim.batch_size, joint) == (64, 13)
    shares = np.mean([clips.batch(step)["has_actions"][:joint].numpy() for step in range(20)], axis=1)
    assert shares.min() >= 0.1
    shape.state_dim = shape.action_dim = 2
    torch.manual_seed(0)
    generator = Generator(shape).train()
    batch = clips.batch(0)
    batch["latents"] = torch.randn(64, *shape.latent_shape)
    batch["image"] = batch.pop("frames")[:, 0]
    generator.video.backbone.out.weight.data.normal_(std=0.02)  # zero at first, so nothing behind it would learn
    generator.loss(batch)[0].backward()
    assert generator.video.backbone.embed_actions.weight.grad.abs().sum() > 0


def test_latents_are_scaled_on_episodes_of_all_tasks(
    moving_square: Callable[..., Episode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first 32 episodes are those of one task, in a dataset that was recorded task by task."""
    episodes = [replace(moving_square(0, length=5), task="push" if i < 32 else "pull") for i in range(48)]
    for episode in episodes[32:]:
        episode.images[:] = 255
    write_clips(tmp_path / "clips.h5", episodes, 240, 20, "x")
    words = ["dataset=x", "image_size=32", "generator.num_frames=9", "tokenizer_optim.steps=1"]
    config: Any = OmegaConf.to_object(compose_config("train-generator", [*words, "tokenizer_optim.batch_size=1"]))
    config.generator.state_dim = config.generator.action_dim = 2
    data = TrainingData(ClipStore.open(tmp_path / "clips.h5"), config, [48], None, None, [], [-1])
    shown: list[torch.Tensor] = []
    monkeypatch.setattr(VideoTokenizer, "calibrate", lambda _, frames: shown.append(frames))
    run: Any = SimpleNamespace(directory=tmp_path / "run", note_result=lambda _: None, write=lambda: None)
    tokenizer_stage(config, run, Generator(config.generator), data)
    white = (shown[0] == 1).flatten(1).all(1)
    assert len(shown[0]) == 32
    assert 0.3 < white.float().mean() < 0.4  # 16 of 48


def test_each_dataset_has_its_share_however_many_episodes_it_has(store: ClipStore) -> None:
    small = subset(store, np.array([0, 1]))
    assert episode_shares([small, store], None) is None
    shares = episode_shares([small, store], [1, 3])
    assert shares is not None
    np.testing.assert_allclose(shares, [0.25 / 2] * 2 + [0.75 / 6] * 6)
    for wrong in ([1.0], [0.0, 0.0]):
        with pytest.raises(UserError, match="for each of dataset="):
            episode_shares([small, store], wrong)
