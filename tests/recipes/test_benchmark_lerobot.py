"""`vag benchmark lerobot` at a tiny size: both sides are timed in turn, and the record says on what."""

import json
from pathlib import Path

import numpy as np
import pytest

from recipes import benchmark_lerobot, cli
from toolkit.base.errors import UserError
from toolkit.data.episode import Episode
from toolkit.data.formats.lerobot_write import EpisodeWriter

SMALL = ["batch_size=2", "steps=2", "log_every=1", "workers=[0]", "repeats=1", "scenes=2", "max_steps=3", "threads=1"]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recorded") / "dataset"
    rng = np.random.default_rng(0)
    with EpisodeWriter(path, 80, list("xyzg"), list("abcd")) as writer:
        numbers = rng.normal(size=(2, 20, 4)).astype(np.float32)
        pictures = rng.integers(0, 255, (20, 64, 64, 3), dtype=np.uint8)
        writer.add(Episode(pictures, *numbers, "push the puck", {"source": "real"}))
    return path


@pytest.mark.slow
def test_record_is_printed_and_written(recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    words = [f"dataset={recorded}", "policies=[pi05_compact]", *SMALL, "stock_steps=0", f"out={out}"]
    assert cli.main(["benchmark", "lerobot", *words]) == 0
    line, summary = capsys.readouterr().out.strip().splitlines()[-2:]
    record = json.loads(line)
    assert record == json.loads((out / "record.json").read_text())
    speeds = {(row["suite"], row["system"]): row["value"] for row in record["rows"] if row["suite"] != "search"}
    training = {"vag_pretrain", "lerobot_train_video", "lerobot_train_images", "lerobot_update_alone"}
    evaluation = {"vag_evaluate", "lerobot_eval_vag_metaworld"}
    assert set(speeds) == {*(("training", name) for name in training), *(("evaluation", name) for name in evaluation)}
    assert min(speeds.values()) > 0
    for ratio in record["comparisons"]:
        expected = speeds[ratio["suite"], ratio["a"]] / speeds[ratio["suite"], ratio["b"]]
        assert ratio["value"] == pytest.approx(expected, rel=0.01)
    assert len(record["comparisons"]) == 4
    assert "pi05_compact training" in summary
    assert "lerobot_train_images" in record["notes"]
    assert not (out / "scratch").exists()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["policies=[]"], "policies=[] is empty; name at least one"),
        (["workers=[]"], "workers=[] is empty; name at least one"),
        (["steps=5", "log_every=3"], "steps=5: expected at least 2 * log_every=6"),
    ],
)
def test_wrong_options_are_one_line_at_once(
    words: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["benchmark", "lerobot", *words, f"out={tmp_path / 'run'}"]) == 2
    assert complaint in capsys.readouterr().err


def test_a_tool_that_fails_is_one_line_that_says_why() -> None:
    with pytest.raises(UserError, match="^lerobot-train failed: .+") as error:
        benchmark_lerobot.run_lerobot("lerobot-train", ["--no_such_option=1"])
    assert "\n" not in str(error.value)
