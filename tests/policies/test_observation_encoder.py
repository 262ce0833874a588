"""Pictures of any shape become tokens; weights of the backbone are read strictly."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from policies.observation_encoder import ObservationEncoder
from toolkit.base.errors import UserError


def test_observation_encoder_places_and_weights(tmp_path: Path) -> None:
    encoder = ObservationEncoder((3, 32, 48), width=16)
    assert encoder(torch.rand(2, 3, 32, 48)).shape == (2, 6, 16)
    odd = ObservationEncoder((3, 40, 24), width=16)
    assert odd(torch.rand(2, 3, 40, 24)).shape == (2, 3 * 2, 16)  # padded to 48 x 32
    with pytest.raises(UserError, match=r"expected \(3, H, W\)"):
        ObservationEncoder((1, 32, 32), width=16)
    with pytest.raises(UserError, match="resnet18"):
        ObservationEncoder((3, 32, 32), width=16, backbone="resnet81")
    save_file(encoder.backbone.state_dict(), tmp_path / "vision.safetensors")
    again = ObservationEncoder((3, 32, 32), width=16, pretrained_path=tmp_path / "vision.safetensors")
    assert all(
        torch.equal(a, b) for a, b in zip(encoder.backbone.parameters(), again.backbone.parameters(), strict=True)
    )
    with pytest.raises(UserError, match="does not hold the weights"):
        ObservationEncoder((3, 32, 32), 16, backbone="convnext_atto", pretrained_path=tmp_path / "vision.safetensors")
