"""The tokenizer: shapes, causality, unit variance, and that it learns."""

import pytest
import torch

from toolkit.data.batches import GeneratorClips, TokenizerClips
from toolkit.data.clips import ClipStore
from vag_core.config import ConvTokenizerConfig
from vag_core.tokenizer import VideoTokenizer, to_float_frames, to_uint8_frames


@pytest.fixture
def tokenizer() -> VideoTokenizer:
    torch.manual_seed(0)
    return VideoTokenizer(ConvTokenizerConfig(latent_channels=8, temporal_stride=4, width=32, depth=1))


def test_shapes(tokenizer: VideoTokenizer) -> None:
    frames = torch.rand(2, 3, 9, 32, 32)
    latents = tokenizer.encode(frames)
    assert latents.shape == (2, 8, 3, 4, 4)
    assert tokenizer.decode(latents).shape == frames.shape
    assert tokenizer.encode_first(frames[:, :, 0]).shape == (2, 8, 1, 4, 4)
    with pytest.raises(ValueError, match="8 frames"):
        tokenizer.encode(frames[:, :, :8])


def test_a_tokenizer_of_single_frames() -> None:
    tokenizer = VideoTokenizer(ConvTokenizerConfig(latent_channels=8, temporal_stride=1, width=32, depth=1))
    frames = torch.rand(2, 3, 4, 32, 32)
    assert tokenizer.encode(frames).shape == (2, 8, 4, 4, 4)
    assert tokenizer.decode(tokenizer.encode(frames)).shape == frames.shape


def test_latents_do_not_see_the_future(tokenizer: VideoTokenizer) -> None:
    frames = torch.rand(1, 3, 9, 32, 32)
    changed = frames.clone()
    changed[:, :, 5:] = 0
    before, after = tokenizer.encode(frames), tokenizer.encode(changed)
    assert torch.equal(before[:, :, :2], after[:, :, :2])
    assert not torch.equal(before[:, :, 2], after[:, :, 2])
    assert torch.equal(tokenizer.encode_first(frames[:, :, 0]), before[:, :, :1])


def test_pixels_survive_the_layout(tokenizer: VideoTokenizer) -> None:
    pictures = torch.randint(0, 256, (2, 9, 32, 32, 3), dtype=torch.uint8)
    assert torch.equal(to_uint8_frames(to_float_frames(pictures)), pictures)
    # A new decoder adds nothing to the first frame: every pixel comes back at its own place.
    frames = to_float_frames(pictures)
    decoded = tokenizer.decode(tokenizer.encode(frames), frames[:, :, 0])
    torch.testing.assert_close(decoded, frames[:, :, :1].expand_as(frames), atol=0.2, rtol=0)
    assert torch.equal(decoded[:, :, 0], frames[:, :, 0])


def test_training_reconstructs_motion_and_calibration_gives_unit_variance(
    tokenizer: VideoTokenizer, store: ClipStore
) -> None:
    clips = GeneratorClips(store, 4, 17, seed=0, random_start=False)
    data = TokenizerClips(clips, temporal_stride=4, groups=2)
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=3e-3)
    for step in range(160):
        loss, metrics = tokenizer.loss(data.batch(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if not step:
            start = metrics["psnr"]
    assert metrics["psnr"] > start + 3
    frames = to_float_frames(clips.batch(0)["frames"])
    tokenizer.calibrate(frames)
    latents = tokenizer.encode(frames)
    for part in (latents[:, :, :1], latents[:, :, 1:]):
        assert part.mean().abs() < 0.1
        torch.testing.assert_close(part.std(dim=(0, 2, 3, 4)), torch.ones(8), atol=0.05, rtol=0)
