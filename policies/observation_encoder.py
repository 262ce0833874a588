"""Picture -> grid of tokens, by a timm network that keeps positions.

B pictures of H x W pixels, stride S, N = (H / 2S) * (W / 2S) tokens of width D.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import GroupNormAct, create_conv2d
from timm.models.resnetv2 import PreActBasic
from torch import Tensor, nn

from toolkit.base.errors import UserError, nearest
from toolkit.data.images import inner_size

STRIDE = 8
COMPACT = "compact"
COMPACT_WIDTH = 48  # channels


class CompactBackbone(nn.Module):
    """(B, 3, H, W) -> (B, 48, H/8, W/8): a strided convolution and a residual block after a PixelUnshuffle(4).

    As small as it may be: on held-out episodes the policy was .36 off with 64 channels and .37 with 32, after some
    2,000 steps (one seed).
    """

    def __init__(self) -> None:
        super().__init__()
        norm: Any = partial(GroupNormAct, num_groups=8, act_layer=nn.SiLU)
        self.stem = nn.Conv2d(3 * 4**2, COMPACT_WIDTH, 3, stride=2, padding=1)
        self.block = PreActBasic(COMPACT_WIDTH, conv_layer=create_conv2d, norm_layer=norm)
        self.block.zero_init_last()
        self.norm = norm(COMPACT_WIDTH)

    def forward(self, image: Tensor) -> Tensor:
        return self.norm(self.block(self.stem(F.pixel_unshuffle(image, 4))))


class TimmBackbone(nn.Module):
    """Any timm network, cut where its stride is 8: (B, 3, H, W) -> (B, C, H/8, W/8). Random weights."""

    def __init__(self, name: str) -> None:
        super().__init__()
        if name not in timm.list_models():
            raise UserError(f"vision_backbone: unknown '{name}'. {nearest(name, [COMPACT, *timm.list_models()])}")
        whole: Any = timm.create_model(name, features_only=True)
        strides = whole.feature_info.reduction()
        if STRIDE not in strides:
            raise UserError(f"vision_backbone: '{name}' has no features at stride {STRIDE} (it has {strides})")
        self.network = timm.create_model(name, features_only=True, out_indices=(strides.index(STRIDE),))

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image)[0]


class ObservationEncoder(nn.Module):
    """One token for every 16 x 16 pixels, with what its four 8 x 8 cells hold side by side.

    image_shape: (3, H, W); a picture is padded with black at the right and below to multiples of 16. other_shapes: of
    cameras with pictures of other sizes, whose tokens have positions of their own. width: D. backbone: `compact` or a
    timm name with features at stride 8. pretrained_path: safetensors file with the weights of that backbone, loaded
    strictly. Raises UserError for an unknown backbone, or a file that does not match.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        width: int,
        backbone: str = COMPACT,
        pretrained_path: str | Path | None = None,
        other_shapes: Sequence[tuple[int, int, int]] = (),
    ) -> None:
        super().__init__()
        for shape in (image_shape, *other_shapes):
            if shape[0] != 3:
                raise UserError(f"image shape {shape}: expected (3, H, W)")
        self.image_shape = tuple(image_shape)
        self.backbone = CompactBackbone() if backbone == COMPACT else TimmBackbone(backbone)
        if pretrained_path is not None:
            _load_strictly(self.backbone, Path(pretrained_path))
        with torch.no_grad():
            features = self.backbone(padded(torch.zeros(1, *image_shape), 2 * STRIDE)).shape[1]
        self.num_tokens = _num_tokens(image_shape)
        self.project = nn.Linear(4 * features, width)
        self.position = nn.Parameter(0.5 * torch.randn(self.num_tokens, width))
        others = {_name(shape): shape for shape in other_shapes if tuple(shape) != self.image_shape}
        tables = {name: nn.Parameter(0.5 * torch.randn(_num_tokens(shape), width)) for name, shape in others.items()}
        self.other_positions = nn.ParameterDict(tables) if tables else None

    def position_of(self, shape: tuple[int, ...]) -> Tensor:
        """Positions (N, D) of the tokens of pictures of a shape (3, H, W). Raises ValueError for one of no camera."""
        if shape == self.image_shape:
            return self.position
        if self.other_positions is None or _name(shape) not in self.other_positions:
            raise ValueError(f"image shape {shape}: expected {self.image_shape}")
        return cast(Tensor, self.other_positions[_name(shape)])

    def forward(self, image: Tensor) -> Tensor:
        """image: (B, 3, H, W) in [0, 1]. Returns (B, N, D). Raises ValueError on a size of no camera."""
        position = self.position_of(tuple(image.shape[1:]))
        features = self.backbone(2 * padded(image, 2 * STRIDE) - 1)  # (B, C, H/8, W/8)
        # Concatenation, not averaging: a pixel is about a centimetre, and an average forgets which cell it was.
        tokens = F.pixel_unshuffle(features, 2).flatten(2).transpose(1, 2)  # (B, N, 4C)
        return self.project(tokens) + position


def _num_tokens(shape: Sequence[int]) -> int:
    return math.ceil(shape[1] / (2 * STRIDE)) * math.ceil(shape[2] / (2 * STRIDE))


def _name(shape: Sequence[int]) -> str:
    return f"{shape[1]}x{shape[2]}"


def padded(image: Tensor, multiple: int) -> Tensor:
    """(B, 3, H, W) with zeros at the right and below, so that both sides are multiples of a number."""
    height, width = image.shape[-2:]
    if not height % multiple and not width % multiple:
        return image
    return F.pad(image, (0, -width % multiple, 0, -height % multiple))


def letterboxed(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, 3, H, W) in [0, 1] to (B, 3, *size), never stretched: what it does not cover is black."""
    if tuple(image.shape[2:]) == size:
        return image
    height, width = inner_size(image.shape[2:], size)
    inner = F.interpolate(image, (height, width), mode="bilinear", antialias=True, align_corners=False)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return F.pad(inner, (left, size[1] - width - left, top, size[0] - height - top))


def _load_strictly(backbone: nn.Module, path: Path) -> None:
    if path.suffix != ".safetensors" or not path.is_file():
        raise UserError(f"{path}: expected an existing .safetensors file with the weights of the vision backbone")
    try:
        backbone.load_state_dict(load_file(path), strict=True)
    except (RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: does not hold the weights of this vision backbone ({reason})") from error
