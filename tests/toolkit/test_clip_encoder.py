"""The clip encoder: what goes in, what names it, what it learns from, and its file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from toolkit.base.errors import UserError
from toolkit.evaluation.clip_encoder import (
    ClipEncoder,
    encode_clips,
    info_nce,
    load_clip_encoder,
    network_input,
    random_clip_encoders,
    save_clip_encoder,
    train_clip_encoder,
)


@pytest.mark.parametrize("shape", [(3, 2, 32, 32, 3), (2, 13, 48, 80, 3), (1, 30, 128, 128, 3)])
def test_takes_clips_of_any_length_and_size(shape) -> None:
    clips = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    features = encode_clips(ClipEncoder(), clips)
    assert features.shape == (shape[0], 64)
    assert np.isfinite(features).all()


def test_features_of_a_clip_do_not_depend_on_its_batch(reaches) -> None:
    clips, _ = reaches(5)
    whole = encode_clips(ClipEncoder(), clips)
    assert np.allclose(encode_clips(ClipEncoder(), clips, batch_size=2), whole, atol=1e-4)
    assert np.allclose(encode_clips(ClipEncoder(), clips[::-1]), whole[::-1], atol=1e-4)


def test_frames_are_chosen_not_blended() -> None:
    clips = np.broadcast_to(np.arange(0, 250, 10, dtype=np.uint8)[None, :, None, None, None], (1, 25, 64, 64, 3))
    x = network_input(clips)
    levels = x[0, 0, :, 0, 0] * 127.5 + 127.5
    assert x.shape == (1, 3, 12, 64, 64)
    assert levels[0] == pytest.approx(0, abs=1e-4)
    assert levels[-1] == pytest.approx(240, abs=1e-4)
    assert torch.allclose(levels / 10, (levels / 10).round(), atol=1e-4)


def test_sees_order_and_appearance(reaches) -> None:
    clips, _ = reaches(4)
    for encoder in random_clip_encoders(2):
        features = encode_clips(encoder, clips)
        for changed in (clips[:, ::-1], np.repeat(clips[:, :1], 13, axis=1), clips[..., ::-1]):
            assert np.linalg.norm(encode_clips(encoder, changed) - features, axis=1).min() > 0.1


def test_id_names_the_weights() -> None:
    state = torch.get_rng_state()
    encoder, others = ClipEncoder(1), random_clip_encoders()
    assert torch.equal(torch.get_rng_state(), state)
    assert len(encoder.encoder_id) == 12
    assert int(encoder.encoder_id, 16) >= 0
    assert encoder.encoder_id == others[0].encoder_id
    assert len({other.encoder_id for other in others}) == 5
    with torch.no_grad():
        encoder.project.bias[3] += 1e-6
    assert encoder.encoder_id != others[0].encoder_id


def test_standardised_features_of_the_reference(reaches) -> None:
    clips, _ = reaches(20)
    (encoder,) = random_clip_encoders(1, reference=clips)
    features = encode_clips(encoder, clips)
    assert np.allclose(features.mean(0), 0, atol=1e-4)
    assert np.allclose(features.std(0), 1, atol=1e-3)
    encoder.standardise(clips)  # anew, not on top
    assert np.allclose(encode_clips(encoder, clips), features, atol=1e-4)


def test_info_nce_known_answers() -> None:
    axes = torch.eye(4)
    loss = float(np.log(1 + 3 * np.exp(-10)))  # cosine 1 with its own key, 0 with the other three, temperature 0.1
    assert info_nce(3 * axes[:2], axes) == pytest.approx(loss, rel=1e-3)
    assert info_nce(axes[:2], torch.ones(5, 4)) == pytest.approx(np.log(5))
    assert info_nce(axes[:2], axes[[1, 0, 2, 3]]) == pytest.approx(10 + loss, rel=1e-3)


def test_training_repeats_with_its_seed(reaches) -> None:
    clips, _ = reaches(6)
    first, again, other = (train_clip_encoder(clips, steps=1, seed=seed, batch_size=3) for seed in (0, 0, 1))
    assert first.encoder_id == again.encoder_id != other.encoder_id
    assert not any(weight.requires_grad for weight in first.parameters())
    with pytest.raises(ValueError, match="at least two"):
        train_clip_encoder(clips[:1], steps=2)


@pytest.mark.parametrize(
    "clips",
    [
        np.zeros((2, 4, 32, 32, 3), np.float32),
        np.zeros((2, 4, 32, 32, 4), np.uint8),
        np.zeros((4, 32, 32, 3), np.uint8),
        np.zeros((2, 1, 32, 32, 3), np.uint8),
        np.zeros((0, 4, 32, 32, 3), np.uint8),
    ],
)
def test_refuses_what_is_no_clip(clips) -> None:
    with pytest.raises(ValueError, match="uint8 with B >= 1 and F >= 2"):
        encode_clips(ClipEncoder(), clips)
    with pytest.raises(ValueError, match="uint8 with B >= 1 and F >= 2"):
        train_clip_encoder(clips, steps=1)


def test_file_round_trip(tmp_path: Path, reaches) -> None:
    clips, _ = reaches(4)
    (encoder,) = random_clip_encoders(1, reference=clips)
    save_clip_encoder(encoder, tmp_path / "new" / "encoder.safetensors")
    loaded = load_clip_encoder(tmp_path / "new" / "encoder.safetensors")
    assert loaded.encoder_id == encoder.encoder_id
    assert np.array_equal(encode_clips(loaded, clips), encode_clips(encoder, clips))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["encoder.safetensors"]


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    with pytest.raises(UserError, match="encoder.safetensors"):
        load_clip_encoder(path)
    save_clip_encoder(ClipEncoder(), path)
    weights = load_file(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="not the weights of a clip encoder"):
        load_clip_encoder(path)
    save_file({**weights, "extra": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="extra"):
        load_clip_encoder(path)
    save_file({**weights, "mean": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="mean"):
        load_clip_encoder(path)
