"""The validity card: corruptions do what they say, and a trained encoder ranks their strengths."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from toolkit.evaluation import validity
from toolkit.evaluation.clip_encoder import ClipEncoder, encode_clips, train_clip_encoder
from toolkit.evaluation.validity import CORRUPTIONS, rank_agreement, validity_card


@pytest.fixture(name="encoder", scope="module")
def _encoder(reaches) -> ClipEncoder:
    return train_clip_encoder(reaches(96, seed=1)[0], steps=16, batch_size=6)


def marked(count: int = 6, length: int = 9) -> np.ndarray:
    """Clips of which every frame has a grey level of its own."""
    levels = 10 + 4 * np.arange(count * length, dtype=np.uint8).reshape(count, length)
    return np.broadcast_to(levels[:, :, None, None, None], (count, length, 8, 8, 3)).copy()


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_freeze_holds_the_last_frames() -> None:
    clips = marked()
    assert np.array_equal(validity.freeze(clips, 0, rng()), clips)
    half = validity.freeze(clips, 0.5, rng())
    assert np.array_equal(half[:, :5], clips[:, :5])
    assert (half[:, 5:] == clips[:, 4:5]).all()
    assert (validity.freeze(clips, 1, rng()) == clips[:, :1]).all()


def test_shuffle_moves_a_share_of_the_frames() -> None:
    clips = marked()
    for share, moved in ((0.34, 3), (1, 9)):
        shuffled = validity.shuffle(clips, share, rng())
        assert ((shuffled != clips).all((2, 3, 4)).sum(1) == moved).all()
        assert np.array_equal(np.sort(shuffled, axis=1), clips)


def test_reverse_turns_a_share_of_the_clips_and_keeps_them_turned() -> None:
    clips = marked()
    few, more = (validity.reverse(clips, share, rng()) for share in (1 / 3, 2 / 3))
    turned = [{i for i in range(6) if np.array_equal(found[i], clips[i, ::-1])} for found in (few, more)]
    assert [len(part) for part in turned] == [2, 4]
    assert turned[0] < turned[1]
    assert all(np.array_equal(few[i], clips[i]) for i in range(6) if i not in turned[0])


def test_blur_and_noise_stay_within_frames_and_have_their_size() -> None:
    flat = np.full((2, 3, 40, 40, 3), 128, np.uint8)
    flat[:, 1] = 60
    assert np.array_equal(validity.blur(flat, 3, rng()), flat)
    point = np.zeros((1, 1, 31, 31, 3), np.uint8)
    point[0, 0, 15, 15] = 255
    wide = validity.blur(point, 1, rng())[0, 0, :, :, 0].astype(float)
    assert wide[15, 15] == pytest.approx(255 / (2 * np.pi), abs=2)  # the peak of a normal density
    added = validity.noise(flat, 12, rng()).astype(float) - flat
    assert added.std() == pytest.approx(12, rel=0.03)
    assert abs(added.mean()) < 0.3


def test_trained_encoder_knows_a_clip_from_its_disorders(encoder: ClipEncoder, reaches) -> None:
    clips, _ = reaches(30, seed=2)
    slightly = np.roll(clips, 1, axis=3)
    anchors, same = (torch.from_numpy(encode_clips(encoder, views)) for views in (clips, slightly))
    near = F.cosine_similarity(anchors, same)
    for name in ("freeze", "shuffle", "reverse"):
        worse = torch.from_numpy(encode_clips(encoder, CORRUPTIONS[name][0](clips, 1, rng())))
        assert (F.cosine_similarity(anchors, worse) < near).float().mean() > 0.9


def test_trained_encoder_passes_its_card(encoder: ClipEncoder, reaches) -> None:
    card = validity_card(encoder, reaches(96)[0], splits=8)
    assert card["encoder_id"] == encoder.encoder_id
    assert card["n"] == 48
    assert [row["corruption"] for row in card["rows"]] == ["blur", "noise", "freeze", "shuffle", "reverse"]
    for row in card["rows"]:
        assert len(row["distances"]) == len(row["strengths"]) == 4
        assert all(a < b for a, b in pairwise([card["floor"], *row["distances"]])), row
        assert row["monotone"]


def test_blind_encoder_fails_its_card(reaches) -> None:
    encoder = ClipEncoder()
    torch.nn.init.zeros_(encoder.project.weight)
    card = validity_card(encoder, reaches(8)[0], splits=2)
    assert card["floor"] == 0
    assert not any(row["monotone"] for row in card["rows"])
    with pytest.raises(ValueError, match="at least 4 clips"):
        validity_card(encoder, reaches(3)[0])


def test_rank_agreement_known_answers() -> None:
    order = np.array([1.0, 2, 3, 4])
    assert rank_agreement(np.stack([order, order**3])) == {"mean": 1, "lowest": 1}
    assert rank_agreement(np.stack([order, -order]))["lowest"] == -1
    swapped = rank_agreement(np.stack([order, 10 * order, [2, 1, 3, 4]]))  # one of six pairs is the other way round
    assert swapped["lowest"] == pytest.approx(4 / 6)
    assert swapped["mean"] == pytest.approx((1 + 4 / 6 + 4 / 6) / 3)
    with pytest.raises(ValueError, match="E, S >= 2"):
        rank_agreement(order[None])
