"""`vag push`: the folder and card that would be uploaded, and what the hub's client is asked to do."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import save_file

from recipes import cli, push
from recipes.cards import without_places
from recipes.common import weights_id
from recipes.exchange_schema import MixConfig
from recipes.policy_schema import EvaluateConfig, PretrainConfig
from recipes.schema import ScoreConfig, TrainGeneratorConfig
from toolkit.base.files import write_json
from toolkit.data.cached_files import remembered_id
from toolkit.data.episode import Episode
from toolkit.data.formats.lerobot_write import EpisodeWriter
from toolkit.data.seen_scenes import write_scenes
from toolkit.evaluation.rates import Rate, RolloutRates
from toolkit.reporting.exchange_results import MixResult
from toolkit.reporting.generator_results import (
    EvaluateGeneratorResult,
    PairScores,
    ScoreResult,
    ScoreSpread,
    Throughput,
    TrainGeneratorResult,
    Trust,
)
from toolkit.reporting.results import GateResult, OpenLoopResult, PretrainResult, ReplayResult, RolloutResult
from vag_core import Generator, GeneratorConfig

EVIL = "push | <b>it</b> [x](http://evil)"


def front_and_body(folder: Path) -> tuple[dict[str, Any], str]:
    _, front, body = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), body


@pytest.fixture
def dataset(tmp_path: Path, write_stage: Callable[..., None], example: Callable[..., Any]) -> Path:
    """Two recorded and two synthetic episodes, as of `vag mix`."""
    path = tmp_path / "mixed/dataset"
    rng = np.random.default_rng(0)
    with EpisodeWriter(path, 10, list("ab"), list("xy")) as writer:
        for k in range(4):
            source = (
                {"source": "synthetic", "generator_id": "beefbeef", "sample_seed": 5}
                if k > 1
                else {"source": "recorded"}
            )
            numbers = rng.normal(size=(2, 10, 2)).astype(np.float32)
            pictures = rng.integers(0, 255, (10, 32, 32, 3), dtype=np.uint8)
            writer.add(Episode(pictures, numbers[0], numbers[1], EVIL, {**source, "source_dataset": "some/where"}))
        write_scenes(writer.temporary / "meta", {"push": [3, 4]})
    config = MixConfig(real=[f"{tmp_path}/real/dataset"], synthetic_fraction=0.5, seed=7)
    write_stage(tmp_path / "mixed", "mix", example(MixResult), config)
    (path / "README.md").write_text("---\nlicense: mit\n---\n# An older card\n")
    (path / ".hidden").write_text("x")
    return path


@pytest.fixture
def policy(tmp_path: Path, write_stage: Callable[..., None]) -> Path:
    path = tmp_path / "policy/pretrained_model"
    path.mkdir(parents=True)
    feature = {"observation.image": {"type": "VISUAL", "shape": [3, 64, 64]}}
    write_json(path / "config.json", {"type": "act", "license": "apache-2.0", "input_features": feature})
    write_json(
        path / "train_config.json", {"dataset": {"root": f"{tmp_path}/secret/data/dataset"}, "topic": "/arm/joint"}
    )
    save_file({"w": np.zeros(3, np.float32)}, path / "model.safetensors")
    write_scenes(path, {"push": [1, 2, 3]})
    result = PretrainResult(
        policy="act",
        steps=11,
        loss=0.25,
        parameters=3,
        throughput=Throughput(),
        checkpoint="pretrained_model",
        synthetic_fraction=0.375,
        episodes=[5],
    )
    write_stage(tmp_path / "policy", "pretrain", result, PretrainConfig(real=[f"{tmp_path}/secret/dataset"], seed=42))
    record = json.loads((tmp_path / "policy/run.json").read_text())
    data = [{"path": f"{tmp_path}/secret/dataset", "id": "cafecafe", "episodes": 5}]
    write_json(tmp_path / "policy/run.json", {**record, "data": data})
    return path


class Hub:
    """In the place of HfApi: notes what it is asked for."""

    def __init__(self, fails: Exception | None = None) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.fails = fails

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def ask(*words: Any, **named: Any) -> None:
            self.asked.append((name, {**named, "words": words}))
            if name == "upload_folder" and self.fails:
                raise self.fails

        return ask


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub()
    monkeypatch.setattr(push, "HfApi", lambda: made)
    monkeypatch.setattr(push, "get_token", lambda: "hf_x")
    return made


def rates(successes: int, n: int) -> RolloutRates:
    one = Rate(successes=successes, n=n, rate=successes / n, low=0.31, high=0.83)
    outcomes = [("push", k, k < successes) for k in range(n)]
    return RolloutRates(
        successes=successes, n=n, rate=one.rate, low=0.31, high=0.83, tasks={"push": one}, outcomes=outcomes
    )


def test_a_dry_run_leaves_the_dataset_with_a_card_that_the_hub_reads(
    dataset: Path, tmp_path: Path, write_stage: Callable[..., None], hub: Hub
) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot.datasets.utils import create_lerobot_dataset_card

    write_stage(tmp_path / "replay", "replay", ReplayResult(systems={"vag": rates(6, 10)}))
    record = json.loads((tmp_path / "replay/run.json").read_text())
    data = [{"path": str(dataset), "id": remembered_id(dataset), "episodes": 4}]
    write_json(tmp_path / "replay/run.json", {**record, "data": data})
    words = ["repo_id=me/mixed", "license=cc-by-4.0", f"metrics=[{tmp_path / 'replay'}]", "dry_run=true"]
    assert cli.main(["push", str(dataset), *words, f"out={tmp_path / 'out'}"]) == 0
    assert not hub.asked
    folder = tmp_path / "out/upload"
    front, body = front_and_body(folder)
    theirs = create_lerobot_dataset_card(tags=["vag", "synthetic"], license="cc-by-4.0").data.to_dict()
    assert front == theirs
    assert "# mixed (synthetic data in it)" in body
    assert "**2 of its episodes are synthetic**" in body
    assert "50.0% of all frames" in body
    for said in (
        "beefbeef",
        "some/where",
        "push: 2 (seeds 3 to 4)",
        "| seed | 7 |",
        "beef",
        "An older card",
        "generator\\_id",
    ):
        assert said in body, said
    assert "vag mix" in body
    assert "| vag | success of replayed actions | 0.6 | 0.31 to 0.83 | 10 | 6 of 10; over episodes |" in body
    assert str(tmp_path) not in body
    assert EVIL not in body
    assert not (folder / ".hidden").exists()
    sent = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for path, content in sent.items():
        assert path == Path("README.md") or content == (dataset / path).read_bytes()
    assert len(LeRobotDataset("me/mixed", root=folder, video_backend="pyav")) == 40


def test_the_card_of_a_policy_says_what_its_record_does(
    policy: Path, tmp_path: Path, write_stage: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    result = RolloutResult(
        policy="act",
        checkpoint_id=weights_id(policy),
        arm="mine",
        seen_scenes=0,
        suites={"unseen": rates(6, 10)},
        media=[],
    )
    config = EvaluateConfig(checkpoint=str(policy), tasks=["push"])
    write_stage(tmp_path / "evaluate", "evaluate", result, config)
    words = ["repo_id=me/policy", "datasets=[me/mixed]", f"metrics=[{tmp_path / 'evaluate'}]", "dry_run=true"]
    assert cli.main(["push", str(policy), *words, f"out={tmp_path / 'out'}"]) == 0
    folder = tmp_path / "out/upload"
    front, body = front_and_body(folder)
    assert front["license"] == "apache-2.0"
    assert front["library_name"] == "lerobot"
    assert front["pipeline_tag"] == "robotics"
    assert set(front["tags"]) == {"robotics", "lerobot", "vag", "act", "synthetic"}
    assert front["datasets"] == ["me/mixed"]
    assert "# policy (trained on synthetic data)" in body
    for said in (
        "secret/dataset | cafecafe",
        "0.375",
        "| seed | 42 |",
        "push: 3 (seeds 1 to 3)",
        "| steps | 11 |",
        "vag pretrain",
    ):
        assert said in body, said
    assert "| mine, suite unseen | success of rollouts | 0.6 | 0.31 to 0.83 | 10 | 6 of 10; of this checkpoint" in body
    assert str(tmp_path) not in "".join(
        path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file()
    )
    settings = json.loads((folder / "train_config.json").read_text())
    assert settings == {"dataset": {"root": "data/dataset"}, "topic": "/arm/joint"}
    known = {"0.6", "0.31", "0.83", "0.375", "0.25"}
    told = re.sub(r"(?m)^    vag .*$", "", body)  # whose options are the record's
    assert set(re.findall(r"(?<![\w.])0\.\d+(?![\w.])", told)) <= known  # no number that no record holds


def measured_data(run: Path, directory: Path, identity: str) -> str:
    """Let a run have read a directory; the directory of the run."""
    record = json.loads((run / "run.json").read_text())
    write_json(run / "run.json", {**record, "data": [{"path": str(directory), "id": identity, "episodes": None}]})
    return str(run)


def test_a_generator_is_pushed_with_what_was_measured_of_it(
    tmp_path: Path, write_stage: Callable[..., None], example: Callable[..., Any]
) -> None:
    """The whole directory, which loads again; pairs in the simulator, scores against baselines, and the gate."""
    path = tmp_path / "trained/generator"
    torch.manual_seed(0)
    made = Generator(GeneratorConfig(image_size=[32, 32], num_frames=9))
    made.save_pretrained(path)
    write_scenes(path, {"push": [3, 4]})
    config = TrainGeneratorConfig(dataset=f"{tmp_path}/real/dataset", seed=9)
    write_stage(tmp_path / "trained", "train-generator", example(TrainGeneratorResult), config)
    one = weights_id(path)
    pairs = PairScores(task=["push"] * 3, seed=[5, 6, 7], metrics={"psnr": [20.0, 21.0, 25.0]})
    evaluated = EvaluateGeneratorResult(
        checkpoint_id=one,
        given="nothing",
        seconds_per_pair=1.0,
        function_evaluations=3,
        seen_scenes=0,
        scenes=pairs,
        metrics={"psnr": 22.0},
        still={"psnr": 17.5},
    )
    write_stage(tmp_path / "evaluated", "evaluate-generator", evaluated)
    rate = Rate(successes=6, n=8, rate=0.75, low=0.41, high=0.93)
    spread = {"psnr": ScoreSpread(least=11.0, median=12.5, most=13.0, recorded=14.5)}
    trust = Trust(episodes=rate, recorded=rate, still=rate)
    write_stage(tmp_path / "score", "score", ScoreResult(checkpoint_id=one, scores=spread, trust=trust), ScoreConfig())
    gate = example(GateResult)
    write_stage(tmp_path / "gate", "gate", gate)
    runs = [str(tmp_path / "evaluated"), str(tmp_path / "score"), measured_data(tmp_path / "gate", path, one)]
    words = ["repo_id=me/maker", "license=mit", f"metrics=[{','.join(runs)}]", "dry_run=true"]
    assert cli.main(["push", str(path), *words, f"out={tmp_path / 'out'}"]) == 0
    folder = tmp_path / "out/upload"
    front, body = front_and_body(folder)
    assert set(front["tags"]) == {"robotics", "vag", "vag_generator"}
    assert "library_name" not in front
    for said in (
        "| generated pairs | psnr | 22 | ",
        "| 3 | over scenes; given nothing; 17.5 for first pictures that stay",
        "| synthetic episodes | no score worse than those of recorded episodes | 0.75 | 0.41 to 0.93 | 8 | 6 of 8; ",
        "| episodes | psnr | 12.5 |  |  | median, from 11 to 13; 14.5 for recorded episodes |",
        f"| {gate.rows[0].metric} | ",
        "| seed | 9 |",
        "push: 2 (seeds 3 to 4)",
        "hf download me/maker --local-dir generator",
        "vag train-generator",
    ):
        assert said in body, said
    assert str(tmp_path) not in body
    again = Generator.from_pretrained(folder).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in made.state_dict().items())


def test_numbers_of_another_checkpoint_are_refused(
    policy: Path, tmp_path: Path, write_stage: Callable[..., None], example: Callable[..., Any], capsys: Any
) -> None:
    write_stage(tmp_path / "evaluate", "evaluate", example(OpenLoopResult))
    words = ["repo_id=me/policy", f"metrics=[{tmp_path / 'evaluate'}]", "dry_run=true", f"out={tmp_path / 'out'}"]
    assert cli.main(["push", str(policy), *words]) == 2
    assert "give runs that read it as it is now" in capsys.readouterr().err
    write_stage(tmp_path / "score", "score", example(ScoreResult))
    write_stage(tmp_path / "pretrain", "pretrain", example(PretrainResult))
    words[1] = f"metrics=[{tmp_path / 'pretrain'}]"
    assert cli.main(["push", str(policy), *words]) == 2
    assert "expected one of evaluate" in capsys.readouterr().err


def test_the_hub_is_asked_for_what_lerobot_would_ask(dataset: Path, tmp_path: Path, hub: Hub) -> None:
    words = ["repo_id=me/mixed", "license=mit", "private=true", "revision=try", f"out={tmp_path / 'out'}"]
    assert cli.main(["push", str(dataset), *words]) == 0
    asked = dict(hub.asked)
    assert [name for name, _ in hub.asked] == [
        "create_repo",
        "create_branch",
        "repo_info",
        "list_repo_files",
        "upload_folder",
        "delete_tag",
        "create_tag",
    ]
    where = {"repo_id": "me/mixed", "repo_type": "dataset"}
    assert asked["create_repo"] == {**where, "private": True, "exist_ok": True, "words": ()}
    assert asked["upload_folder"]["folder_path"] == tmp_path / "out/upload"
    assert (asked["upload_folder"]["revision"], asked["create_branch"]["branch"]) == ("try", "try")
    assert asked["create_tag"]["tag"] == "v3.0"


def test_what_the_hub_refuses_is_one_line_and_can_go_on(
    policy: Path, tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.fails = OSError("401 Client Error\nInvalid username or password.")
    words = ["push", str(policy), "repo_id=me/policy", f"out={tmp_path / 'out'}"]
    assert cli.main(words) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert "401 Client Error Invalid username or password." in error[-1]
    assert "Traceback" not in "".join(error)
    hub.fails = None
    assert cli.main([*words, "resume=true"]) == 0
    assert hub.asked[-1][0] == "upload_folder"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["repo_id=noowner", "dry_run=true"], "expected owner/name"),
        (["repo_id=me/x"], "no token of the Hugging Face hub"),
        (["repo_id=me/x", "dry_run=true", "license='My own'"], "is no name of the hub's"),
        (["repo_id=me/x", "dry_run=true", "metrics=[nowhere]"], "not found"),
    ],
)
def test_mistakes_are_one_line(
    policy: Path, tmp_path: Path, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(push, "get_token", lambda: None)
    assert cli.main(["push", str(policy), *words, f"out={tmp_path / 'out'}"]) == 2
    assert said in capsys.readouterr().err.strip().splitlines()[-1]
    assert cli.main(["push", str(policy.parent), "repo_id=me/x", "dry_run=true", f"out={tmp_path / 'b'}"]) == 2
    assert f"do you mean {policy}?" in capsys.readouterr().err


def test_only_places_are_shortened() -> None:
    assert without_places("/home/me/a/b") == "a/b"
    assert without_places("checkpoint=/home/me/a/b,c=/tmp/x/y/z") == "checkpoint=a/b,c=y/z"
    assert (
        without_places("rad/s and /arm/joint/1 and https://a.b/home/c")
        == "rad/s and /arm/joint/1 and https://a.b/home/c"
    )
