"""Whether a synthetic dataset passes, without a simulator: no number stands without its baselines."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recipes import cli
from recipes.gate import verdict
from toolkit.data.clips import ClipStore, write_clips
from toolkit.data.episode import Episode
from toolkit.data.episode_notes import FILE
from toolkit.data.formats.lerobot_write import EpisodeWriter
from toolkit.evaluation.open_loop import nearest_recorded_error
from toolkit.reporting.benchmark_results import Difference
from toolkit.reporting.report import write_report

Change = Callable[[Episode], Episode]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, moving_square: Callable[..., Episode]) -> Callable[..., Path]:
    """Twenty episodes from a seed on, perhaps changed."""

    def write(name: str, first: int, change: Change = lambda episode: episode) -> Path:
        path = tmp_path_factory.mktemp("gate") / name
        with EpisodeWriter(path, 20, ["y", "x"], ["dy", "dx"]) as writer:
            for seed in range(first, first + 20):
                writer.add(change(moving_square(seed, size=32)))
        return path

    return write


def run(*words: str) -> None:
    assert cli.main(list(words)) == 0


def result(out: Path) -> dict:
    return json.loads((out / "run.json").read_text())["result"]


def test_what_is_like_recordings_is_trusted_and_what_is_not_is_not(
    written: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real, held_out = written("real", 0), written("held_out", 100)
    wild = written("wild", 200, lambda e: replace(e, states=3 * e.states))
    trust = {}
    for name, dataset in (("good", written("good", 300)), ("wild", wild)):
        out = tmp_path / name
        run("score", str(dataset), f"real=[{real}]", f"held_out=[{held_out}]", "image_size=32", f"out={out}")
        trust[name] = result(out)["trust"]
        told = pd.read_parquet(out / FILE)
        assert told["trusted"].sum() == trust[name]["episodes"]["successes"]
        scores = result(out)["scores"]
        assert all(beside in scores["score_nearest"] for beside in ("recorded", "still", "other"))
    assert trust["good"]["episodes"]["rate"] >= 0.7
    assert trust["good"]["recorded"]["rate"] >= 0.9
    assert trust["wild"]["episodes"]["rate"] == 0
    said = capsys.readouterr()
    assert "with the actions of other episodes as many are trusted" in said.err  # nobody looked at the videos
    run("score", str(wild), f"real=[{real}]", "image_size=32", f"out={tmp_path / 'seen'}")
    assert "recorded episodes are those of real=, which the generator has seen" in capsys.readouterr().out


def test_a_set_passes_by_policies_with_and_without_it(written: Callable[..., Path], tmp_path: Path) -> None:
    real, held_out, synthetic = written("real", 0), written("held_out", 100), written("synthetic", 300)
    words = [f"real=[{real}]", f"held_out={held_out}", "score=[image_size=32]", "lanes=0"]
    words += ["pretrain=[image_size=32,optim.steps=2,optim.batch_size=2]", f"out={tmp_path / 'gate'}"]
    run("gate", str(synthetic), *words)
    told = result(tmp_path / "gate")
    assert [(row["arm"], row["n"], row["seeds"]) for row in told["rows"]] == [
        (arm, 60, 3) for arm in ("real", "mixed", "shuffled")
    ]
    assert all(row["low"] <= row["value"] <= row["high"] for row in told["rows"])
    assert [(one["a"], one["b"]) for one in told["comparisons"]] == [("mixed", "real"), ("mixed", "shuffled")]
    assert told["mean_action"] > 0 < told["nearest_recorded"]
    assert told["trust"]["episodes"]["n"] == 20
    write_report([tmp_path / "gate"], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "nearest recorded" in page
    assert told["verdict"] in page
    assert set(told["runs"]) == {path.parent.name for path in (tmp_path / "gate").glob("*/run.json")}


@pytest.mark.parametrize(
    ("real", "shuffled", "said"),
    [
        ((-3, -1), (-3, -1), "helps"),
        ((-3, -1), (-3, 1), "helps, but so may the control"),
        ((-3, 1), (-3, -1), "no difference can be told"),
        ((1, 3), (-3, -1), "harms"),
        ((None, None), (-3, -1), "nothing can be told"),
    ],
)
def test_a_verdict_needs_an_interval_that_excludes_nothing_and_the_control(
    real: tuple[float | None, float | None], shuffled: tuple[float, float], said: str
) -> None:
    told = (
        Difference(a="a", b="b", suite="s", metric="m", paired=True, difference=0, low=low, high=high)
        for low, high in (real, shuffled)
    )
    assert verdict(*told).startswith(said)


def test_nearest_recorded_actions_are_a_baseline(tmp_path: Path) -> None:
    """A recording of itself has no error; one whose states lie elsewhere has that of the nearest state."""
    rows = np.arange(10.0)[:, None]
    images = np.zeros((10, 8, 8, 3), np.uint8)
    stores = []
    for name, shift in (("a", 0.0), ("b", 0.2)):
        episode = Episode(images, rows + shift, rows + 5 * shift, "push")
        write_clips(tmp_path / name, [episode], 10, 10, name)
        stores.append(ClipStore.open(tmp_path / name))
    assert nearest_recorded_error(stores[:1], stores[0], 3) == 0
    assert nearest_recorded_error(stores[:1], stores[1], 3) == pytest.approx(1)
