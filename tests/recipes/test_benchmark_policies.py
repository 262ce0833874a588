"""Ranks are shared by what the data cannot tell apart, and intervals know that checkpoints differ."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recipes import cli
from recipes.benchmark_policies import (
    all_scenes_known,
    board_text,
    compare_all,
    labels_of,
    leaderboard,
    learned_from,
    summary,
)
from toolkit.data.episode import Episode
from toolkit.data.formats.lerobot_write import EpisodeWriter
from toolkit.evaluation.statistics import wilson_interval
from toolkit.evaluation.systems import Trained
from toolkit.reporting.results import BenchmarkPoliciesResult, PretrainResult, RolloutResult


def outcomes(*rates: float) -> Trained:
    """(checkpoints, scenes); the same scenes are easy for all."""
    difficulty = np.random.default_rng(0).permutation(np.linspace(0, 1, 200, endpoint=False))
    return Trained(np.stack([difficulty < rate for rate in rates]).astype(float))


def test_rank_is_shared_by_what_is_not_distinguishable() -> None:
    tables = {
        "weak": outcomes(0.2, 0.25, 0.3),
        "best": outcomes(0.8, 0.85, 0.9),
        "close": outcomes(0.7, 0.85, 0.95),
    }
    board = {row.system: row for row in leaderboard(tables, compare_all(tables))}
    assert {name: row.rank for name, row in board.items()} == {"best": 1, "close": 1, "weak": 3}
    assert board["close"].not_distinguishable_from == "best"
    assert board["weak"].not_distinguishable_from is None


def test_what_is_told_from_the_best_alone_is_said_to_be_like_the_second() -> None:
    tables = {
        "best": outcomes(0.90, 0.91, 0.92),
        "second": outcomes(0.75, 0.83, 0.91),
        "third": outcomes(0.70, 0.72, 0.74),
    }
    board = {row.system: row for row in leaderboard(tables, compare_all(tables))}
    assert {name: row.rank for name, row in board.items()} == {"best": 1, "second": 1, "third": 2}
    assert board["third"].not_distinguishable_from == "second"


def test_ranks_fall_from_best_to_worst() -> None:
    tables = {"best": outcomes(0.9, 0.9, 0.9), "even": outcomes(0.7, 0.7, 0.7), "uneven": outcomes(0.5, 0.7, 0.85)}
    assert [(row.system, row.rank) for row in leaderboard(tables, compare_all(tables))] == [
        ("best", 1),
        ("even", 2),
        ("uneven", 2),
    ]


def test_checkpoints_are_ranked_as_themselves_where_too_few_were_trained() -> None:
    tables = {"best": outcomes(0.9), "close": outcomes(0.885), "weak": outcomes(0.8)}
    board = leaderboard(tables, compare_all(tables))
    assert [(row.system, row.rank, row.low) for row in board] == [
        ("best", 1, None),
        ("close", 1, None),
        ("weak", 3, None),
    ]
    assert board[0].low_these_checkpoints < 0.9 < board[0].high_these_checkpoints
    text = board_text("trials of tuesday", board)
    assert "0.90  of these checkpoints [" in text
    assert text.startswith("\ntrials of tuesday\nrank  system ")


def test_the_summary_names_all_that_share_the_first_rank(example: Callable[..., Any]) -> None:
    """Else the best of several that the data cannot tell apart would read as a winner."""
    tables = {"best": outcomes(0.9), "close": outcomes(0.885), "weak": outcomes(0.8)}
    result = replace(
        example(BenchmarkPoliciesResult), leaderboards={"trials": leaderboard(tables, compare_all(tables))}
    )
    assert summary(result) == "trials: best 0.90, close 0.89"


def test_what_a_policy_learned_from_is_read_from_its_run_and_those_that_it_goes_on_from(
    tmp_path: Path, example: Callable[..., Any], write_stage: Callable[..., None]
) -> None:
    def write(name: str, command: str, config: dict[str, Any], data: dict[str, str]) -> str:
        write_stage(tmp_path / name, command, example(PretrainResult))
        record = json.loads((tmp_path / name / "run.json").read_text())
        record["data"] = [{"path": path, "id": identity, "episodes": 3} for path, identity in data.items()]
        (tmp_path / name / "run.json").write_text(json.dumps({**record, "config": config}))
        return str(tmp_path / name / "pretrained_model")

    both = {"made": "id of made", "real": "id of real"}
    first = write("first", "pretrain", {"synthetic": ["made"], "real": ["real"]}, both)
    tuned = write("tuned", "finetune", {"checkpoint": first, "real": ["real"]}, both)
    real = write("real", "pretrain", {"synthetic": [], "real": ["real"]}, both)
    found = [learned_from(path) for path in (first, tuned, real, "hub/name")]
    assert found == [{"id of made"}, {"id of made"}, frozenset(), None]
    labels = labels_of([first, tuned, real, "hub/name"], found)
    assert labels[0] == labels[1]
    assert labels[2:] == [real, "hub/name"]
    shared = Trained(outcomes(0.5, 0.6, 0.7, 0.8).outcomes, labels)
    assert len(shared.runs_by_cluster) == 3


def test_datasets_of_one_generator_are_one_cluster(
    moving_square: Callable[..., Episode], tmp_path: Path, example: Callable[..., Any], write_stage: Callable[..., None]
) -> None:
    """Else three synthetic datasets of one generator would look like three generators."""
    found = []
    for name, generator in (("first", "g1"), ("second", "g1"), ("third", "g2"), ("merged", "g1")):
        made = {"source": "synthetic", "generator_id": generator}
        with EpisodeWriter(tmp_path / name, 20, ["y", "x"], ["dy", "dx"]) as writer:
            for seed in range(2):
                episode = moving_square(seed, length=5)
                recorded = name == "merged" and seed == 0
                metadata = {"source": "recorded"} if recorded else made
                writer.add(replace(episode, metadata={**episode.metadata, **metadata}))
        write_stage(tmp_path / f"policy_{name}", "pretrain", example(PretrainResult))
        path = tmp_path / f"policy_{name}/run.json"
        record = json.loads(path.read_text())
        data = [{"path": str(tmp_path / name), "id": f"id of {name}", "episodes": 2}]
        config = {"real" if name == "merged" else "synthetic": [str(tmp_path / name)]}
        path.write_text(json.dumps({**record, "data": data, "config": config}))
        found.append(learned_from(str(path.parent / "pretrained_model")))
    assert found == [{"g1"}, {"g1"}, {"g2"}, {"g1"}]


def test_the_leaderboard_says_what_the_differences_say_whichever_way_they_were_taken() -> None:
    tables = {"low": outcomes(0.4, 0.5), "high": outcomes(0.5, 0.6)}
    for low, tied in ((-0.2, None), (-0.001, None), (0.0, "high")):
        board = leaderboard(tables, {("low", "high"): {"difference": -0.1, "low": -0.25, "high": low}})
        assert (board[1].system, board[1].not_distinguishable_from) == ("low", tied)


def test_checkpoints_that_do_not_say_what_they_have_seen_are_named(
    tmp_path: Path, example: Callable[..., Any], write_stage: Callable[..., None]
) -> None:
    for name, seen in (("ours_0", 0), ("ours_1", 0), ("hub_0", 0), ("hub_1", None)):
        write_stage(tmp_path / name, "evaluate", replace(example(RolloutResult), seen_scenes=seen))
    assert all_scenes_known(tmp_path, "ours", 2)
    assert not all_scenes_known(tmp_path, "hub", 2)


def test_intervals_are_wider_than_those_of_as_many_rollouts_of_one_checkpoint() -> None:
    (row,) = leaderboard({"uneven": outcomes(0.2, 0.5, 0.8)}, {})
    low, high = wilson_interval(row.successes, row.n)
    assert (row.successes, row.n, row.seeds) == (300, 600, 3)
    assert row.low < low - 0.1
    assert row.high > high + 0.1


def test_outcomes_judged_elsewhere_make_the_same_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng, lines = np.random.default_rng(0), ["policy,scene,success,run,operator"]
    for policy, rate in (("ours", 0.8), ("other", 0.3)):
        lines += [f"{policy},{k},{int(rng.random() < rate)},{run},me" for run in range(3) for k in range(30)]
    table = tmp_path / "trials.csv"
    table.write_text("\n".join(lines))
    out = tmp_path / "board"
    assert cli.main(["benchmark", "policies", f"results={table}", f"out={out}"]) == 0
    record = json.loads((out / "record.json").read_text())
    rows = {row["system"]: row for row in record["rows"]}
    assert (rows["ours"]["n"], rows["ours"]["seeds"], rows["ours"]["suite"]) == (90, 3, "trials")
    assert rows["ours"]["low"] < rows["ours"]["low_these_checkpoints"] < rows["ours"]["value"]
    (difference,) = record["comparisons"]
    assert difference["low"] > 0
    assert difference["p_these_checkpoints"] < 0.01
    assert [row["system"] for row in record["leaderboards"]["trials"]] == ["ours", "other"]
    assert record["notes"]["columns not read"] == "operator"
    assert "results=" in record["command"]
    assert cli.main(["report", str(out), f"out={tmp_path / 'page'}"]) == 0


def test_results_and_checkpoints_are_not_both_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["results=a.csv", "checkpoints={a:b}", f"out={tmp_path / 'o'}"]
    assert cli.main(["benchmark", "policies", *words]) == 2
    assert "give one of them" in capsys.readouterr().err
