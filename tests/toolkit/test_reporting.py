"""The report: one page that stands alone, tells the story in order and never shows a rate without its trials."""

import base64
import io
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace
from markupsafe import escape
from PIL import Image

from toolkit.base.errors import UserError
from toolkit.base.typed_json import to_json
from toolkit.evaluation.rates import Rate, RolloutRates
from toolkit.evaluation.statistics import rollout_rates, success_table
from toolkit.reporting import media, plots
from toolkit.reporting.benchmark_results import (
    AblateResult,
    BenchmarkGeneratorsResult,
    BenchmarkPoliciesResult,
    CellRow,
    Corruption,
    Difference,
    Ranked,
    Row,
    ValidityCard,
)
from toolkit.reporting.generator_results import (
    EvaluateGeneratorResult,
    Media,
    StreamsTraining,
    SuccessCurve,
    SynthesizeResult,
    TokenizerTraining,
    TrainGeneratorResult,
)
from toolkit.reporting.pages import piece
from toolkit.reporting.report import write_report
from toolkit.reporting.results import (
    Collected,
    CollectResult,
    DemoResult,
    GeneratedSystem,
    GeneratedSystems,
    PolicyRate,
    PretrainResult,
    ReplayResult,
    RolloutResult,
    StageTime,
)
from toolkit.reporting.sections import rate_row
from toolkit.reporting.success import RateRow, fraction_figures, fraction_points, verdicts
from toolkit.reporting.values import duration

EVIL = "<script>alert('push & $x$')</script>"


def frames(seed: int = 0, length: int = 12, size: int = 32) -> np.ndarray:
    """A red square that wanders over grey."""
    images = np.full((length, size, size, 3), 90, np.uint8)
    for step, image in enumerate(images):
        left = (seed * 3 + step) % (size - 6)
        image[8:14, left : left + 6] = (220, 40, 30)
    return images


def decoded(path: Path | io.BytesIO) -> np.ndarray:
    """RGB as a browser shows it: BT.709, limited range (PyAV converts as BT.601, whatever the tag says)."""
    films = []
    with av.open(path if isinstance(path, io.BytesIO) else str(path)) as container:
        for frame in container.decode(video=0):
            assert (frame.colorspace, frame.color_range) == (Colorspace.ITU709, ColorRange.MPEG)
            planes = frame.reformat(format="yuv444p").to_ndarray().astype(float)
            y, u, v = (planes[0] - 16) / 219, (planes[1] - 128) / 224, (planes[2] - 128) / 224
            rgb = np.stack([y + 1.5748 * v, y - 0.1873 * u - 0.4681 * v, y + 1.8556 * u], axis=-1)
            films.append(np.clip(rgb * 255, 0, 255).round().astype(int))
    return np.stack(films)


def write_run(path: Path, command: str, result: Any, **record: Any) -> Path:
    """A run directory as a command leaves it."""
    path.mkdir(parents=True)
    content = {
        "command": command,
        "status": "finished",
        "config": {
            "seed": 0,
            "out": str(path.name),
            "optim": {"steps": 300, "learning_rate": 3e-4},
            "tasks": ["push", EVIL],
        },
        "git_sha": "0123456789ab",
        "versions": {"python": "3.12.9", "torch": "2.11.0"},
        "hardware": "2 x Some <CPU>",
        "seed": 0,
        "data": [{"path": "data/<real>", "id": "a1b2c3d4e5f60718", "episodes": 40}],
        "started": "2026-11-03T10:20:30",
        "wall_seconds": 84.5,
        "result": to_json(result),
        **record,
    }
    (path / "run.json").write_text(json.dumps(content))
    return path


def write_curves(path: Path, seed: int, tags: tuple[str, ...] = ("loss", "learning_rate")) -> None:
    from torch.utils.tensorboard import SummaryWriter

    rng = np.random.default_rng(seed)
    writer = SummaryWriter(str(path))
    for step in range(5, 301, 5):
        for tag in tags:
            writer.add_scalar(tag, np.exp(-step / 80) * (1 + 0.2 * rng.standard_normal()) + 0.05, step)
    writer.close()


def table_of(*counts: tuple[str, int, int]) -> RolloutRates:
    return rollout_rates([(task, trial, trial < successes) for task, successes, n in counts for trial in range(n)])


def write_demo(root: Path, example: Callable[..., Any]) -> Path:
    """A finished demo with every command in it."""
    tasks = {"push": Collected(episodes=20, attempts=23), EVIL: Collected(episodes=20, attempts=31)}
    speed = {"episodes_per_minute": 151.2, "dataset": "dataset"}
    collected = CollectResult(episodes=40, attempts=54, frames=4000, tasks=tasks, **speed)
    surprise = {"surprise": {"nested": [1, 2.5, "<b>"]}}
    write_run(root / "collect", "collect", {**to_json(collected), **surprise})
    trained = replace(
        example(TrainGeneratorResult),
        tokenizer=TokenizerTraining(steps=300, training_psnr=28.31),
        generator=StreamsTraining(steps=800, loss=0.1234, parameters=3_456_789),
    )
    run = write_run(root / "train_generator", "train-generator", trained)
    media.write_image(run / "media/reconstruction.png", np.concatenate(list(frames()[:6]), axis=1))
    write_curves(run / "tokenizer/tensorboard", 0)
    streams = ("loss", "loss_video", "loss_action", "learning_rate", "held_out/loss")
    write_curves(run / "streams/tensorboard", 1, streams)
    metrics = {"action_distance": 0.4123, "psnr": 21.07, "ssim": 0.812}
    films = [Media(path="media/generated.mp4", caption="recorded (above), generated (below)")]
    made = replace(example(SynthesizeResult), episodes=120, seconds_per_episode=0.532, metrics=metrics, media=films)
    run = write_run(root / "synthesize", "synthesize", made)
    pairs = [np.concatenate([frames(i), frames(i + 1)], axis=1) for i in range(6)]
    media.write_video(run / "media/generated.mp4", media.grid(pairs, 6), 20)
    generated, recorded = table_of(("push", 9, 20), (EVIL, 5, 20)), table_of(("push", 20, 20), (EVIL, 18, 20))
    write_run(root / "replay_generated", "replay", ReplayResult(systems={"vag": generated}))
    write_run(root / "replay_recorded", "replay", ReplayResult(systems={"recorded": recorded}))
    names = ["collect", "train_generator", "synthesize", "replay_generated", "replay_recorded"]
    policies: list[Any] = []
    outcomes = {
        "pi05_compact": {"real_few": (4, 4), "pretrain_finetune": (13, 11)},
        "diffusion": {"real_few": (7, 4), "pretrain_finetune": (9, 6)},
    }
    for seed, (policy, arms) in enumerate(outcomes.items()):
        training = replace(example(PretrainResult), policy=policy, steps=300, loss=0.0712, parameters=1_234_567)
        for command, name, fraction in (
            ("pretrain", f"real_few_{policy}", 0.0),
            ("pretrain", f"pretrain_{policy}", 1.0),
            ("finetune", f"finetune_{policy}", 0.0),
        ):
            run = write_run(root / name, command, replace(training, synthetic_fraction=fraction))
            write_curves(run / "tensorboard", seed)
            names.append(name)
        for arm, (first, second) in arms.items():
            suite = table_of(("push", first, 30), (EVIL, second, 30))
            name = f"evaluate_{policy}_{arm}"
            films, suites = [Media(path="media/unseen.mp4")], {"unseen": suite}
            result = replace(example(RolloutResult), policy=policy, arm=arm, suites=suites, media=films)
            run = write_run(root / name, "evaluate", result)
            media.write_video(run / "media/unseen.mp4", media.grid([frames(i) for i in range(6)], 6), 20)
            names.append(name)
            policies.append(PolicyRate(policy=policy, arm=arm, **vars(suite.alone)))
    systems = [GeneratedSystem(system="vag", metrics=metrics, replay_success=generated.alone)]
    stages = [StageTime(name=name, seconds=12.5 + 7 * i) for i, name in enumerate(names)]
    told = DemoResult(stages=stages, generator=GeneratedSystems(systems=systems), policies=policies, runs=names)
    (root / "run.json").write_text((root / "collect/run.json").read_text())
    record = json.loads((root / "run.json").read_text())
    record |= {"command": "demo", "status": "running", "result": to_json(told), "wall_seconds": 612.0}
    (root / "run.json").write_text(json.dumps(record))
    return root


@dataclass
class Page:
    """What a browser would find in the page."""

    text: str
    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    words: str = ""

    def __post_init__(self) -> None:
        tags, seen = self.tags, []

        class Parser(HTMLParser):
            def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
                tags.append((tag, {k: v or "" for k, v in attrs}))

            def handle_data(self, data: str) -> None:
                seen.append(data)

        Parser().feed(self.text)
        self.words = " ".join(seen)

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(*runs: Path) -> Page:
    write_report(runs, runs[0] / "page.html")
    return Page((runs[0] / "page.html").read_text())


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, example: Callable[..., Any]) -> Path:
    return write_demo(tmp_path_factory.mktemp("runs") / "demo", example)


@pytest.fixture(scope="module")
def page(demo: Path) -> Page:
    return page_of(demo)


def test_sections_tell_the_story_in_order(page: Page) -> None:
    commands = [section["id"] for section in page.of("section")]
    story = ["collect", "train-generator", "synthesize", "replay", "pretrain", "finetune", "evaluate"]
    assert commands == ["demo", *story]
    assert [link["href"] for link in page.of("a") if link["href"].startswith("#")] == [f"#{name}" for name in commands]


def test_needs_no_network_and_runs_no_script(page: Page) -> None:
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") or name in ("srcset", "xmlns") for name in attributes)
        assert attributes.get("src", "data:").startswith("data:")
        if not attributes.get("href", "#").startswith("#"):
            assert (tag, attributes["href"]) == ("a", "https://arxiv.org/abs/2604.09330")
    assert not re.search(r"@import|url\((?!#)", page.text)
    assert set(re.findall(r"https?://[^\"<\s]+", page.text)) == {"https://arxiv.org/abs/2604.09330"}


def test_ids_are_unique_and_references_lead_somewhere(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([\w-]+)', page.text)) <= set(ids)


def test_every_rate_comes_with_its_trials_and_interval(demo: Path, page: Page) -> None:
    percent = lambda value: f"{100 * value:.1f}".removesuffix(".0")  # noqa: E731
    checked = 0
    for path in demo.glob("*/run.json"):
        result = json.loads(path.read_text())["result"]
        for total in [*result.get("systems", {}).values(), *result.get("suites", {}).values()]:
            for row in [total, *total["tasks"].values()]:
                cells = [f"{row['successes']}/{row['n']}", f"{percent(row['rate'])} %"]
                cells.append(f"[{percent(row['low'])}, {percent(row['high'])}]")
                assert "".join(f'<td class="number">{cell}</td>' for cell in cells) in page.text
                checked += 1
    assert checked == 18
    for number in ("40", "54", "4,000", "151.2", "28.31", "0.1234", "3,456,789", "0.532", "0.0712"):
        assert f"<b>{number}</b>" in page.text
    for policy in ("pi05_compact", "diffusion"):
        assert policy in page.words


def test_says_which_intervals_overlap(page: Page) -> None:
    assert "95 % Wilson score intervals" in page.words
    plain = re.sub("<.*?>", "", page.text)
    assert "pi05_compact: pretrain_finetune [28.6, 52.6] is above real_few [6.9, 24.2]" in plain
    assert "diffusion: real_few [10.6, 29.9] and pretrain_finetune [15.8, 37.2] are not told apart: their" in plain


def test_rows_of_the_same_scenes_are_compared_by_scene() -> None:
    """30 of 60 and 20 of 60, intervals overlapping: every scene that the first solves the second solves too."""

    def row(arm: str, successes: int, first_seed: int = 0) -> RateRow:
        return RateRow({"arm": arm}, rollout_rates([("push", first_seed + i, i < successes) for i in range(60)]))

    def words(*rows: RateRow) -> str:
        return piece("comparisons", verdicts=verdicts(rows)).striptags()

    assert "b [37.7, 62.3] is above a [22.7, 45.9]: 16.7 [" in words(row("a", 20), row("b", 30))
    assert "not told apart: 1.7 [" in words(row("a", 20), row("b", 21))
    alone = RateRow({"arm": "b"}, table_of(("push", 30, 60)).alone)
    for other in (row("b", 30, first_seed=9), alone):
        assert "their intervals overlap" in words(row("a", 20), other)


def test_text_of_records_is_escaped(page: Page) -> None:
    assert "<script" not in page.text
    assert escape(EVIL) in page.text
    assert "2 x Some <CPU>" in page.words
    assert "surprise.nested" in page.words  # an unknown key is shown, not dropped


def test_holds_its_videos_pictures_and_curves(page: Page) -> None:
    videos = page.of("video")
    assert len(videos) == 5
    assert all({"autoplay", "loop", "muted", "playsinline", "controls"} <= set(video) for video in videos)
    file = io.BytesIO(base64.b64decode(videos[0]["src"].removeprefix("data:video/mp4;base64,")))
    assert decoded(file).shape == (12, 4 * 64, 4 * (6 * 33 - 1), 3)
    (picture,) = page.of("img")
    Image.open(io.BytesIO(base64.b64decode(picture["src"].removeprefix("data:image/png;base64,")))).verify()
    assert (picture["width"], picture["height"]) == ("192", "32")
    labels = [svg["aria-label"] for svg in page.of("svg")]
    assert {"Policies on unseen scenes", "Time per stage", "Replay success"} <= set(labels)
    assert {"tokenizer loss", "streams loss", "streams loss video", "diffusion loss"} <= set(labels)
    assert not any("held" in label for label in labels)  # beside the loss of training, in one figure
    assert "train_generator, held out" in page.text


def test_bad_run_directories_are_named_and_leave_no_page(tmp_path: Path, example: Callable[..., Any]) -> None:
    good = write_run(tmp_path / "good", "collect", {})
    damaged = write_run(tmp_path / "damaged", "collect", {})
    (damaged / "run.json").write_text('{"command": "coll')
    demo = write_run(tmp_path / "demo", "demo", replace(example(DemoResult), runs=["gone"]))
    for runs, name in (
        ([good, tmp_path / "none"], "none/run.json"),
        ([damaged], "damaged/run.json"),
        ([demo], "gone/run.json"),
    ):
        with pytest.raises(UserError, match=name):
            write_report(runs, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_odd_records_still_give_a_page(tmp_path: Path, example: Callable[..., Any]) -> None:
    (tmp_path / "secret.png").write_bytes(b"")
    listed = [Media(path=path) for path in ("../secret.png", "media/none.mp4", "media/bad.png")]
    odd = {"systems": {"one": {**to_json(example(RolloutRates)), "rate": "?"}}}
    runs = [
        write_run(tmp_path / "a/x", "synthesize", replace(example(SynthesizeResult), media=listed), data=None),
        write_run(tmp_path / "b/x", "polish <b>", {"policies": 3, "systems": {"s": None}, "list": [{"k": "<i>"}]}),
        write_run(tmp_path / "e", "replay", odd, config=[1], wall_seconds=None, versions="?"),
        write_run(tmp_path / "f", "demo", {"policies": [7], "stages": [None], "generator": []}),
        write_run(tmp_path / "g", "collect", {}, status="failed", error="disk <full>"),
    ]
    (tmp_path / "f/run.json").write_text(json.dumps({"command": "demo", "status": "running", "result": None}))
    (tmp_path / "a/x/media").mkdir()
    (tmp_path / "a/x/media/bad.png").write_bytes(b"not a picture")
    (tmp_path / "a/x/tensorboard").mkdir()
    (tmp_path / "a/x/tensorboard/events.out.tfevents.0").write_bytes(b"not events")
    page = page_of(*runs, runs[0])
    assert next(section["id"] for section in page.of("section")) == "demo"
    assert page.words.count("is not a video or picture in this run") == 2
    assert "left out of its record: 'config' is [1], expected a mapping" in page.words
    assert "'result.systems.one.rate' is '?', expected a finite number" in page.words
    for words in ("is damaged", "a/x", "b/x", "disk <full>", "failed"):
        assert words in page.words
    assert page.words.count("left out of its record") == 3  # one that has failed says so anyway
    assert not page.of("i")


def row(system: str, suite: str, metric: str, value: float, **more: Any) -> Row:
    return Row(**{"system": system, "suite": suite, "metric": metric, "value": value, "n": 150, **more})


def test_generators_side_by_side(tmp_path: Path, example: Callable[..., Any]) -> None:
    bounds = {"low": 0.7, "high": 0.83}
    rows = [row("vag", s, "replay_success", v, **bounds) for s, v in (("dense", 0.78), ("coarse", 0.76))]
    rows += [row("two_stage_temporal", "dense", "replay_success", 0.62, low=0.54, high=0.69)]
    rows += [row("vag", "dense", "frechet_clip_distance", 3.217, low=3, high=4)]
    corruption = Corruption(corruption="freeze", unit="frames", strengths=[1, 4], distances=[2, 3], monotone=True)
    pair: Any = {"a": "vag", "b": "two_stage_temporal", "suite": "dense", "metric": "replay_success", "paired": True}
    result = BenchmarkGeneratorsResult(
        rows=rows,
        comparisons=[Difference(**pair, difference=0.1601, low=0.1, high=0.2, p=0.0123)],
        validity_cards={"dense": ValidityCard(encoder_id="x", n=3, floor=1.0, rows=[corruption])},
    )
    scored = replace(
        example(EvaluateGeneratorResult),
        replay=success_table(["push"] * 4 + ["sweep-into"] * 4, [True] * 3 + [False] + [True] + [False] * 3),
        metrics={"psnr": 21.43},
        success_curve=SuccessCurve(thresholds=[0.1, 0.2], success=[0.0, 1.0]),
    )
    page = page_of(
        write_run(tmp_path / "bench", "benchmark generators", result),
        write_run(tmp_path / "scores", "evaluate-generator", scored),
    )
    assert [section["id"] for section in page.of("section")] == ["evaluate-generator", "benchmark-generators"]
    for words in ("78 %  ·  117/150  ·  [70, 83]", "3.217", "0.1601", "freeze, 1–4 frames", "4/8", "21.43"):
        assert words in page.words, words
    assert "Pairs within an action distance" in page.words
    assert {link["href"] for link in page.of("a")} >= {"#benchmark-generators", "#evaluate-generator"}


def test_a_study_shows_arms_fractions_and_failed_cells(tmp_path: Path, example: Callable[..., Any]) -> None:
    axes = {"policy": "diffusion", "generator_data": "same_tasks", "few": 5}
    rate = {**axes, "n": 80, "low": 0.39, "high": 0.61}
    rows = [
        row(arm, "unseen", "success", value, **rate, arm=arm, synthetic_fraction=fraction, synthetic_per_task=count)
        for arm, fraction, value, count in (
            ("real_few", 0.5, 0.2, 200),
            ("cotrain", 0.25, 0.5, 200),
            ("cotrain", 0.25, 0.4, 800),
            ("synthetic_only", 0.5, 0.3, 200),
            ("real_all", 0.5, 0.8, 200),
        )
    ]
    pair: Any = {"a": "cotrain", "b": "real_few", "suite": "unseen", "metric": "success", "paired": True}
    failed = {"axes": {**axes, "arm": "cotrain"}, "status": "failed", "error": "train: disk <full>"}
    result = AblateResult(
        cells=[replace(example(CellRow), **failed)],
        rows=[*rows, replace(rows[0], metric="gap_closed", value=0.71)],
        comparisons=[Difference(**pair, difference=0.3012, low=0.1, high=0.5, p=0.001)],
        failed=["cotrain-diffusion-2"],
        notes={"generator trained on same_tasks": "has seen <50>"},
    )
    lines = fraction_points(rows)
    points = {name: [(fraction, rate.rate) for fraction, rate in line.points] for name, line in lines.items()}
    assert {line.all_real for line in lines.values()} == {0.8}
    assert points["diffusion, synthetic per task 200"] == [(0, 0.2), (0.25, 0.5), (1, 0.3)]
    assert points["diffusion, synthetic per task 800"] == [(0, 0.2), (0.25, 0.4)]
    file = plots.figure_file(fraction_figures([*rows, *(replace(row, suite="position") for row in rows)]))
    assert [part.tag.rpartition("}")[2] for part in ElementTree.fromstring(file)] == ["rect", "svg", "svg"]
    assert "var(" not in file
    page = page_of(write_run(tmp_path / "study", "ablate", result))
    shown = ("50 %  ·  40/80  ·  [39, 61]", "0.3012", "disk <full>", "synthetic fraction", "Does synthetic data")
    for words in (*shown, "has seen <50>", "64/80", "0.71 [0.39, 0.61]", "gap closed"):
        assert words in page.words, words


def test_intervals_say_if_they_are_of_systems_of_their_checkpoints_or_too_narrow(tmp_path: Path) -> None:
    scenes = {"low_these_checkpoints": 0.41, "high_these_checkpoints": 0.59}
    early = row("early", "visual", "success", 0.5, low=0.33, high=0.66, seeds=3, policy="act")
    rows = [
        row("several", "unseen", "success", 0.5, low=0.27, high=0.73, seeds=3, policy="act", **scenes),
        row("lone", "unseen", "success", 0.5, low=None, high=None, seeds=1, policy="act", note="why", **scenes),
    ]
    assert [rates.rate.low for rates in map(rate_row, [*rows, early]) if rates.rate] == [0.41, 0.41, 0.33]
    assert [rate_row(one).of_systems for one in [*rows, early]] == ["[27, 73]", "", "[33, 66] (too narrow)"]
    pair: Any = {"a": "several", "b": "lone", "suite": "unseen", "metric": "success", "paired": True}
    difference = Difference(**pair, difference=0.0, low=None, high=None, **scenes, p_these_checkpoints=0.4321)
    page = page_of(
        write_run(tmp_path / "x", "ablate", AblateResult(rows=[*rows, early], comparisons=[difference], notes={}))
    )
    for words in (
        "Intervals: 95 % of these checkpoints.",
        "Intervals: 95 %, too narrow.",
        "95 %, of these checkpoints",
        "95 %, of systems",
        "[27, 73]",
        "p these checkpoints",
        "0.4321",
    ):
        assert words in page.words, words


def test_a_leaderboard_is_shown_with_the_differences_behind_its_ranks(tmp_path: Path) -> None:
    rate: Any = {"n": 80, "seeds": 2, "low": 0.39, "high": 0.61}
    first = Ranked(rank=1, system="mine", successes=40, rate=0.5, not_distinguishable_from=None, **rate)
    second = replace(first, system="<yours>", successes=38, rate=0.475, not_distinguishable_from="mine")
    pair: Any = {"a": "mine", "b": "<yours>", "metric": "success", "paired": True, "low": 0, "high": 1}
    compared = [Difference(**pair, suite=suite, difference=0.0253) for suite in ("unseen", "visual")]
    result = BenchmarkPoliciesResult(rows=[], comparisons=compared, leaderboards={"unseen": [first, second]}, notes={})
    page = page_of(write_run(tmp_path / "board", "benchmark policies", result))
    for words in (
        "Policies side by side",
        "50 %  ·  40/80  ·  [39, 61]",
        "<yours>",
        "not distinguishable from",
        "0.0253",
    ):
        assert words in page.words, words


def test_damaged_and_cut_event_files_give_what_they_hold(tmp_path: Path) -> None:
    write_curves(tmp_path / "whole", 0)
    (file,) = (tmp_path / "whole").iterdir()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / file.name).write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    whole, cut = plots.read_scalars(tmp_path / "whole"), plots.read_scalars(tmp_path / "cut")
    assert list(whole) == ["learning_rate", "loss"]
    steps, values = whole["loss"]
    assert list(steps) == list(range(5, 301, 5))
    assert np.allclose(values[: len(cut["loss"][1])], cut["loss"][1])
    assert 10 < len(cut["loss"][0]) < 60
    (tmp_path / "none").mkdir()
    assert plots.read_scalars(tmp_path / "none") == {}


def test_figures_keep_any_name_as_text() -> None:
    names = ["$\\frac{", "<b>&", "任务", "x" * 200]
    rate = Rate(successes=1, n=3, rate=1 / 3, low=0.06, high=0.79)
    rows = [plots.Bar(name, rate, "g") for name in names]
    figures = [
        plots.success_bars(rows, "<title>"),
        plots.duration_bars([(name, 61.0) for name in names]),
        plots.curves({name: ([1, 2, 3], [100.0, float("nan"), 0.1]) for name in names}, "$"),
        plots.curves({}, "empty"),
        plots.duration_bars([]),
    ]
    for figure in figures:
        assert figure.startswith("<svg viewBox")
        assert "http" not in figure
    for figure in figures[:3]:
        words = Page(figure).words
        assert "var(--" in figure
        assert all(name in words for name in names[:3])
    assert duration(61) == "61 s"
    assert duration(3725) == "1 h 02 min"


def test_validity_figure_draws_every_corruption_from_the_floor() -> None:
    first = Corruption(corruption="<b>&", unit="px", strengths=[0.5, 2], distances=[3.0, 9.0], monotone=True)
    rows = [first, replace(first, corruption="blur", distances=[3.0, 2.0], monotone=False)]
    card = ValidityCard(encoder_id="x", n=4, floor=1.5, rows=rows)
    figure = plots.validity_lines(card, "<title>")
    words = Page(figure).words
    assert "<b>&, 0.5–2 px" in words
    assert "blur, 0.5–2 px, not monotone" in words
    assert "stroke-dasharray" in figure
    assert "mathdefault" not in figure + plots.curves({"loss": ([1, 2], [0.01, 10])}, "logarithmic")
    assert "http" not in figure
    for odd in (replace(card, floor=-0.1), replace(card, rows=[])):  # unbiased: may be negative
        assert plots.validity_lines(odd).startswith("<svg viewBox")


def test_running_mean_keeps_a_line_and_both_ends() -> None:
    line = np.arange(100.0)
    assert np.allclose(plots.running_mean(list(line), 0.1), line)
    assert np.isfinite(plots.running_mean([1.0, float("nan"), 3.0] * 20, 0.1)).all()


@pytest.mark.parametrize(("size", "expected"), [((32, 32), (640, 640)), ((33, 65), (330, 650)), ((641, 7), (642, 8))])
def test_videos_decode_sharp_and_whole(tmp_path: Path, size: tuple[int, int], expected: tuple[int, int]) -> None:
    images = np.full((5, *size, 3), (200, 60, 30), np.uint8)
    images[:, : size[0] // 2] = (20, 90, 180)
    media.write_video(tmp_path / "a.mp4", images, 12.5)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 12.5
        assert stream.duration
        assert stream.time_base
        assert float(stream.duration * stream.time_base) == 0.4
    film = decoded(tmp_path / "a.mp4")
    assert film.shape == (5, *expected, 3)
    for row, colour in ((0.25, (20, 90, 180)), (0.75, (200, 60, 30))):
        assert np.abs(film[-1, int(row * expected[0]), expected[1] // 2] - np.array(colour, int)).max() <= 3


def test_grids() -> None:
    long, short = frames(0, 6), frames(1, 3)
    tiled = media.grid([long, short, long], columns=2)
    assert tiled.shape == (6, 65, 65, 3)
    assert np.array_equal(tiled[5, :32, 33:], short[-1])
    assert np.array_equal(tiled[4, 33:, :32], long[4])
    assert np.unique(tiled[:, 33:, 33:]).size == 1
    assert media.grid([long], columns=6, gap=0).shape == long.shape
    for wrong in (lambda: media.grid([], 2), lambda: media.grid([long, frames(size=16)], 2)):
        with pytest.raises(ValueError, match="one picture size"):
            wrong()
    with pytest.raises(ValueError, match="uint8"):
        media.grid([long.astype(float)], 2)


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupt)
    for write in (
        lambda: write_report([demo / "collect"], tmp_path / "page.html"),
        lambda: media.write_video(tmp_path / "a.mp4", frames(), 20),
        lambda: media.write_image(tmp_path / "a.png", frames()[0]),
    ):
        with pytest.raises(KeyboardInterrupt):
            write()
    assert not list(tmp_path.iterdir())


def test_a_killed_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    target.write_text("old")
    code = (
        "import os, signal, sys\n"
        "from toolkit.base.files import atomic_file\n"
        "with atomic_file(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(target)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert target.read_text() == "old"
