"""`vag benchmark lerobot` at a tiny size: both sides are timed in turn, and the record says on what."""

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from recipes import benchmark_lerobot, cli
from recipes.benchmark_lerobot import IMAGES, VIDEO, Turns
from recipes.study_schema import BenchmarkLerobotConfig
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


@pytest.mark.long
def test_record_is_printed_and_written(recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    words = [f"dataset={recorded}", "policies=[pi05_compact]", *SMALL, "stock_steps=1", f"out={out}"]
    assert cli.main(["benchmark", "lerobot", *words]) == 0
    line, summary = capsys.readouterr().out.strip().splitlines()[-2:]
    record = json.loads(line)
    assert record == json.loads((out / "record.json").read_text())
    speeds = {(row["suite"], row["system"]): row["value"] for row in record["rows"] if row["suite"] != "search"}
    training = {"vag_pretrain", "lerobot_train_video", "lerobot_train_images", "lerobot_update_alone"}
    evaluation = {"vag_evaluate", "lerobot_eval_vag_metaworld", "lerobot_eval_metaworld"}
    assert set(speeds) == {*(("training", name) for name in training), *(("evaluation", name) for name in evaluation)}
    assert min(speeds.values()) > 0
    for ratio in record["comparisons"]:
        expected = speeds[ratio["suite"], ratio["a"]] / speeds[ratio["suite"], ratio["b"]]
        assert ratio["value"] == pytest.approx(expected, rel=0.01)
    assert len(record["comparisons"]) == 5
    assert "pi05_compact training" in summary
    assert "lerobot_train_images" in record["notes"]
    assert not (out / "scratch").exists()


def test_turns_alternate_and_are_counted_at_the_shipped_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What each turn measures is put in; the best number of workers, the rows and the ratios follow."""
    config = BenchmarkLerobotConfig()
    turns: list[str] = []

    class Noted(Turns):
        def _datasets(self) -> dict[str, Path]:
            return {VIDEO: Path("video"), IMAGES: Path("images")}

        def _turn(self, name: str) -> None:
            turns.append(name)
            self.bar.update()

        def _pretrain(self, policy: str, dataset: Path, steps: int) -> tuple[float, Path]:
            self._turn(f"{policy} {steps}")
            return 100.0, tmp_path

        def _lerobot_train(self, first: Path, dataset: Path, workers: int, steps: int) -> tuple[float, float]:
            self._turn(f"{dataset} {workers} {steps}")
            return {0: 10.0, 1: 40.0, 2: 20.0}[workers], {0: 80.0, 1: 60.0, 2: 50.0}[workers]

        def _vag_evaluate(self, checkpoint: Path) -> tuple[float, int, int]:
            self._turn("evaluate")
            return 2.0, 400, 3

        def _lerobot_eval(self, checkpoint: Path) -> tuple[float, int, int]:
            self._turn("fast")
            return 4.0, 400, 2

        def _lerobot_eval_stock(self, checkpoint: Path) -> float:
            self._turn("stock")
            return 4.0

    monkeypatch.setattr(benchmark_lerobot, "one_process", lambda *_: nullcontext())
    made = Noted(config, tmp_path)
    rows, ratios = made.all()
    assert made.bar.n == made.bar.total - 1 == len(turns)  # `_datasets` is the turn of collect
    search = ["video 0 20", "video 1 20", "video 2 20", "images 0 20", "images 1 20", "images 2 20"]
    for policy, kinds in (("pi05_compact", ["evaluate", "fast", "stock"]), ("diffusion", ["evaluate", "fast"])):
        train = [f"{policy} 30", "video 1 30", "images 1 30", "images 0 30"]
        expected = [f"{policy} 11", *search, *train * 3, *kinds * 3]
        mine, turns = turns[: len(expected)], turns[len(expected) :]
        assert mine == expected
    values = {(row.policy, row.suite, row.system): row for row in rows if row.suite != "search"}
    assert values["pi05_compact", "training", "lerobot_update_alone"].value == 80
    assert values["pi05_compact", "training", "lerobot_train_video"].more == {"workers": 1}
    assert values["diffusion", "evaluation", "vag_evaluate"].more == {"successes": 9, "episodes": 12}
    assert values["pi05_compact", "evaluation", "lerobot_eval_metaworld"].more == {}
    assert ("diffusion", "evaluation", "lerobot_eval_metaworld") not in values
    found = {(ratio.policy, ratio.b): ratio.value for ratio in ratios}
    assert found["diffusion", "lerobot_train_video"] == 2.5
    assert found["pi05_compact", "lerobot_eval_metaworld"] == 50


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
