"""From a recording of a real robot to a policy, by a generator on a pretrained video model: tiny ones of the real
classes. `fixtures/bridge_clips.hdf5` holds six clips of BridgeData V2 (CC BY 4.0, Walke et al. 2023)."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from recipes import cli
from recipes.common import weights_id
from toolkit.data.formats.lerobot_read import read_table
from vag_core.backbones.directory import base_id, locate

pytest.importorskip("diffusers")
CLIPS = Path(__file__).parent / "fixtures/bridge_clips.hdf5"
SMALL = "generator.num_frames=9 optim.steps=2 optim.batch_size=3 optim.gradient_accumulation=2"
SAMPLER = "sampler.num_inference_steps=3"


def vag(line: str) -> dict:
    """Run a command; the result of it, by its out."""
    assert cli.main(line.split()) == 0, line
    out = next(word.removeprefix("out=") for word in line.split() if word.startswith("out="))
    return json.loads((Path(out) / "run.json").read_text())["result"]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("family", "generator"), [("cosmos", "vag_cosmos"), pytest.param("wan", "vag_wan", marks=pytest.mark.long)]
)
def test_story_on_a_pretrained_video_model(
    family: str, generator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    vag(f"import source={CLIPS} out=data")
    train = (
        f"train-generator generator={generator} generator.video.path=tiny:{family} dataset=data/dataset out=gen {SMALL}"
    )
    trained = vag(train)
    assert trained["tokenizer"]["steps"] == 0
    assert len(trained["held_out"]["losses"]) == 1
    assert "image_size=[64,64] for each of 1 cameras" in capsys.readouterr().out
    config = json.loads(Path("gen/generator/config.json").read_text())
    assert config["video"]["base_id"] == base_id(locate(f"tiny:{family}"))
    entries = json.loads(Path("gen/run.json").read_text())["data"]  # so that it is not resumed on another model
    assert {"path": f"tiny:{family}", "id": config["video"]["base_id"][:16]}.items() <= entries[0].items()
    assert config["video"]["fps"] == read_info_fps()
    with safe_open("gen/generator/model.safetensors", "pt") as file:
        names = list(file.keys())
    assert any(".lora_A" in name for name in names)
    assert all(".lora_" in name for name in names if name.startswith("video.network."))
    assert not any(name.startswith("tokenizer.") for name in names)

    made = vag(f"synthesize checkpoint=gen/generator scenes_from=data/dataset allow_seen=true out=syn {SAMPLER}")
    assert made["episodes"] == 6
    assert made["generator_id"] == weights_id("gen/generator")
    table = read_table(Path("syn/dataset"))
    assert len(table.lengths) == 6
    assert not any("score_flow_loss" in row for row in table.metadata)  # five evaluations of a large model
    again = (
        f"synthesize checkpoint=gen/generator scenes_from=data/dataset allow_seen=true out=again {SAMPLER} score=true"
    )
    vag(f"{again} sampler.guidance_scale=4 sampler.negative_prompt=blurry")
    assert all(row["score_flow_loss"] > 0 for row in read_table(Path("again/dataset")).metadata)

    scored = vag("score checkpoint=gen/generator dataset=syn/dataset real=[data/dataset] out=score")
    assert scored["scores"]["score_cycle_error"]["median"] >= 0
    for given in ("video", "actions"):
        measured = vag(
            f"evaluate-generator checkpoint=gen/generator dataset=data/dataset allow_seen=true given={given} "
            f"out=by_{given} {SAMPLER}"
        )
        assert ("psnr" in measured["metrics"]) == (given == "actions")
    policy = vag("pretrain synthetic=[syn/dataset] policy=diffusion_compact optim.steps=2 out=policy")
    assert policy["checkpoint"]
    vag("report runs=[gen,syn,score,by_video,by_actions,policy] out=page")
    page = Path("page/report.html").read_text()
    assert "psnr" in page


def read_info_fps() -> float:
    return json.loads(Path("data/dataset/meta/info.json").read_text())["fps"]
