"""The command line: every mistake is one line with exit code 2, and every shipped config composes."""

import json
import pickle
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from policies.factory import PolicyObjective, build_policy
from recipes import cli, terminal
from recipes.common import check_unseen
from recipes.compose import compose_config
from recipes.study_schema import SCHEMAS
from recipes.video_model import is_pretrained
from toolkit.base.errors import UserError
from toolkit.data.episode import IMAGE
from toolkit.data.seen_scenes import merge, scenes_behind, scenes_of, write_scenes
from vag_core import Generator
from vag_core.backbones.planned import ModelSizes, planned_model
from vag_core.checkpoint import unfilled

CONFIGS = Path(cli.__file__).parent / "configs"


def complaint(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that a failing command prints; asserts exit code 2."""
    assert cli.main(list(words)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    complaints = [line for line in lines if "/s]" not in line]  # progress bars may stand above
    assert len(complaints) == 1
    assert complaints[0].startswith("vag: error: ")
    return complaints[0]


def test_bare_command_lists_the_story_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    out = capsys.readouterr().out
    places = [out.index(f"  {name} ") for name in SCHEMAS]
    assert places == sorted(places)
    assert list(cli.COMMANDS) == list(SCHEMAS) == list(cli.EXAMPLES)


@pytest.mark.parametrize("command", list(SCHEMAS))
def test_help_shows_config_and_examples_that_compose(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert "overwrite=false" in out
    for example in cli.EXAMPLES[command]:
        assert example in out
        bare = re.sub(r"'[^']*'|\"[^\"]*\"", "", example)
        assert not re.search(r"\{[^}]*,", bare), "a shell would make several words of it"
        words = shlex.split(example)
        assert words[: 1 + len(command.split())] == ["vag", *command.split()]
        compose_config(command, [word for word in words[2:] if "=" in word])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["colect"], "unknown command 'colect'. Did you mean 'collect'?"),
        (["collect", "episodes_per_tsk=3"], "unknown key 'episodes_per_tsk'. Did you mean 'episodes_per_task'?"),
        (["train-generator", "optim.stepz=3"], "Did you mean 'optim.steps'?"),
        (["train-generator", "generator.video.widht=3"], "Did you mean 'generator.video.width'?"),
        (["train-generator", "optim.steps=many"], "'many'"),
        (["train-generator", "generator=vagg"], "generator=vagg does not exist. Did you mean 'vag'?"),
        (["pretrain", "policy=difusion"], "Did you mean 'diffusion'?"),
        (["train-generator"], "dataset=... is required"),
        (["collect", "tasks"], "expected key=value"),
        (["report"], "runs=... is required"),
        (["collect", "image_keys={a:b}"], "unknown key 'image_keys'"),
        (["collect", "+colour=red"], "keys are neither added nor deleted"),
        (["collect", "~tasks"], "keys are neither added nor deleted"),
        (["collect", "episodes_per_task=0"], "episodes_per_task=0: expected at least 1"),
        (["train-generator", "dataset=x", "optim.log_every=0"], "optim.log_every=0: expected at least 1"),
        (["collect", "seed=-1"], "seed=-1: expected at least 0"),
        (["pretrain", "real=[x]", "synthetic_fraction=1.5"], "synthetic_fraction=1.5: expected a number from 0 to 1"),
        (["evaluate", "checkpoint=nowhere", "suites=[seen]"], "suites=[seen]: expected one of unseen, position"),
        (["collect", "overwrite=true", "resume=true"], "give one of them"),
    ],
)
def test_mistakes_on_the_command_line(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert expected in complaint(capsys, *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["collect", "tasks=[]"], "tasks=[] is empty"),
        (["collect", "tasks=[pushh]"], "unknown Meta-World task 'pushh'. Did you mean 'push'?"),
        (["train-generator", "dataset=nowhere"], "nowhere: not found"),
        (["synthesize", "checkpoint=nowhere"], "config.json: not found"),
        (["replay", "dataset=nowhere"], "not a LeRobotDataset"),
        (["pretrain"], "no data"),
        (["pretrain", "real=[x]", "synthetic_fraction=0.5"], "needs synthetic="),
        (["finetune", "checkpoint=nowhere", "real=[nowhere]"], "nowhere: not a directory; expected a policy"),
        (["evaluate", "checkpoint=nowhere"], "nowhere"),
        (["evaluate", "checkpoint=nowhere", "suites=[]"], "suites=[] is empty"),
        (["report", "nowhere"], "run.json: not found"),
    ],
)
def test_mistakes_in_the_input(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert expected in complaint(capsys, *words, "out=run")
    assert list(tmp_path.iterdir()) == []  # nothing was made, so nothing is left


def test_data_that_does_not_fit_is_named(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = f"out={tmp_path / 'run'}"
    line = complaint(capsys, "train-generator", f"dataset={dataset}", "generator.num_frames=18", out)
    assert "num_frames = 18: expected 1 + a multiple of" in line
    line = complaint(
        capsys, "train-generator", f"dataset={dataset}", "cameras=[observation.wrist]", out, "overwrite=true"
    )
    assert "no camera 'observation.wrist'" in line
    line = complaint(capsys, "replay", f"dataset={dataset}", out, "overwrite=true")
    assert f"{dataset}: " in line
    assert "an action is 4 finite numbers" in line


def test_generator_and_policy_checkpoints_are_not_mixed_up(
    tmp_path: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compose = compose_config("train-generator", ["dataset=x"])
    config: Any = OmegaConf.to_object(compose)
    Generator(config.generator).save_pretrained(tmp_path / "generator")
    words = (f"checkpoint={tmp_path / 'generator'}", f"real=[{dataset}]", f"out={tmp_path / 'a'}")
    assert "vag_generator" in complaint(capsys, "finetune", *words)
    # Action and state widths of this generator are those of Meta-World, not of the data.
    words = (f"checkpoint={tmp_path / 'generator'}", f"scenes_from={dataset}", f"out={tmp_path / 'b'}")
    assert "state width 2; the generator has 4" in complaint(capsys, "synthesize", *words)


def small_policy() -> PolicyObjective:
    """A new policy for four-dimensional states and actions."""
    stats = {
        key: {name: np.array([value] * 4, dtype=np.float32) for name, value in (("q01", -1), ("q99", 1))}
        for key in ("observation.state", "action")
    }
    return build_policy(
        "pi05_compact", cameras={IMAGE: (3, 64, 64)}, state_dim=4, action_dim=4, stats=stats, options={"width": 32}
    )


class Bomb:
    """A pickle that leaves a mark when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize(
    ("name", "dump"), [("model.safetensors", "pickle"), ("pytorch_model.bin", "torch"), ("config.json", "torch")]
)
@pytest.mark.parametrize("command", ["synthesize", "evaluate", "finetune"])
def test_pickles_offered_as_checkpoints_are_refused(
    command: str, name: str, dump: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mark, checkpoint = tmp_path / "mark", tmp_path / "checkpoint"
    config: Any = OmegaConf.to_object(compose_config("train-generator", ["dataset=x"]))
    (Generator(config.generator) if command == "synthesize" else small_policy()).save_pretrained(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    payload = pickle.dumps(Bomb(mark))
    if dump == "torch":
        torch.save(Bomb(mark), checkpoint / name)
    else:
        (checkpoint / name).write_bytes(payload)
    words = (f"checkpoint={checkpoint}", f"out={tmp_path / 'run'}")
    assert str(checkpoint) in complaint(capsys, command, *words)
    assert not mark.exists()
    pickle.loads(payload)
    assert mark.exists()  # it would have gone off


def test_finetuning_names_the_dataset_that_does_not_fit(
    tmp_path: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_policy().save_pretrained(tmp_path / "policy")
    words = ("finetune", f"checkpoint={tmp_path / 'policy'}", f"real=[{dataset}]", f"out={tmp_path / 'run'}")
    assert f"{dataset}: states are 2 wide; expected 4, as {tmp_path / 'policy'}" in complaint(capsys, *words)


@pytest.mark.slow
def test_finetuning_refuses_data_whose_numbers_mean_something_else(
    tmp_path: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = [f"real=[{dataset}]", "image_size=32", "optim.steps=1", "optim.batch_size=2"]
    assert cli.main(["pretrain", "policy=pi05_compact", *short, f"out={tmp_path / 'policy'}"]) == 0
    checkpoint = tmp_path / "policy/pretrained_model"
    words = ["finetune", f"checkpoint={checkpoint}", *short]
    assert cli.main([*words, f"out={tmp_path / 'same'}"]) == 0
    conventions = checkpoint / "conventions.json"
    told = json.loads(conventions.read_text())
    names = {"state_names": ["y", "x"], "action_names": ["dy", "dx"]}
    canvas = {"cameras": {"observation.image": [32, 32]}, "cell": [32, 32]}
    assert told == {"fps": 20, **names, "canvas": canvas, "robot_type": "sawyer", "codec": "h264"}
    out = f"out={tmp_path / 'other'}"
    capsys.readouterr()
    for changes, expected in (
        ({"fps": 5}, f"{dataset}: 20 steps a second; {checkpoint} was trained on 5: .* refit_statistics=true goes on"),
        ({"action_names": ["x", "y"]}, f"{dataset}: its action_names are dy, dx; {checkpoint} was trained on x, y"),
    ):
        conventions.write_text(json.dumps(told | changes))
        assert re.search(expected, complaint(capsys, *words, out, "overwrite=true"))
    assert cli.main([*words, out, "overwrite=true", "refit_statistics=true"]) == 0
    assert json.loads((tmp_path / "other/pretrained_model/conventions.json").read_text()) == told
    for damaged in ({}, told | {"fps": float("nan")}, told | {"state_names": "yx"}, told | {"action_names": [1, 2]}):
        conventions.write_text(json.dumps(damaged))
        capsys.readouterr()
        assert f"{conventions}: damaged (" in complaint(capsys, *words, out, "overwrite=true")
    conventions.unlink()  # of an older version, or of lerobot-train
    assert cli.main([*words, out, "overwrite=true"]) == 0


def test_interrupt_and_full_disk_have_their_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> int:
        error = KeyboardInterrupt()
        error.add_note("out=here resume=true")
        raise error

    def full() -> int:
        raise OSError(28, "No space left on device", "model.safetensors")

    assert terminal.guarded(interrupted) == 130
    assert capsys.readouterr().err == "vag: error: interrupted; to go on: the same command with out=here resume=true\n"
    assert terminal.guarded(full) == 2
    assert "disk full while writing model.safetensors" in capsys.readouterr().err


def test_instructions_need_no_quotes_and_mappings_no_plus() -> None:
    for text in ("wave, then stop", "it's (almost) [done]", "plain"):
        assert compose_config("import", ["source=x", f"task={text}"]).task == text
    assert compose_config("import", ["source=x", "task='quoted, by hand'"]).task == "quoted, by hand"
    assert compose_config("import", ["source=x", "task=null"]).task is None
    config = compose_config("pretrain", ["policy.options.width=32"])
    assert config.policy.options == {"width": 32}
    assert compose_config("import", ["source=x", "image_keys={observation.image:top}"]).image_keys == {
        "observation.image": "top"
    }


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("generator/*.yaml")), ids=lambda path: path.stem)
def test_every_generator_config_builds(path: Path) -> None:
    """On a video model at its published size, for shapes alone."""
    config: Any = OmegaConf.to_object(compose_config("train-generator", ["dataset=x", f"generator={path.stem}"]))
    shape = config.generator
    if not is_pretrained(shape):
        Generator(shape)
        return
    sizes, shape.image_size = ModelSizes.of(shape.video), [448, 768]
    assert sizes.is_published
    sizes.fit(shape)
    with unfilled():
        generator = Generator(shape, attach=False)
        generator.attach(planned_model(sizes, torch.bfloat16))
    assert sum(weight.numel() for weight in generator.parameters() if not weight.requires_grad) > 1e9


def test_scenes_that_were_trained_on_are_refused_by_name(tmp_path: Path) -> None:
    write_scenes(tmp_path, {"push": list(range(9)), "sweep": [4]})
    with pytest.raises(UserError, match=r"trained on 9 of these scenes \(seeds: push 0 1 2 3 ... 7, sweep 4\)"):
        check_unseen("evaluate", str(tmp_path), {"push": list(range(8)), "sweep": [3, 4], "reach": [0]}, False)
    assert check_unseen("evaluate", str(tmp_path), {"push": [8, 9]}, allow_seen=True) == 1
    assert check_unseen("evaluate", str(tmp_path), {"push": [9]}, False) == 0


def test_scenes_that_nobody_noted_may_have_been_trained_on(tmp_path: Path) -> None:
    noted, not_noted = {"task_name": "push", "seed": 3}, {"task_name": "push", "seed": None}
    write_scenes(tmp_path, merge(scenes_of([noted, not_noted])))
    assert check_unseen("evaluate", str(tmp_path), {"push": [4]}, False) is None
    with pytest.raises(UserError, match="push 3"):
        check_unseen("evaluate", str(tmp_path), {"push": [3, 4]}, False)
    write_scenes(tmp_path, merge(scenes_of([noted]), scenes_behind(tmp_path / "nowhere")))
    assert check_unseen("evaluate", str(tmp_path), {"push": [4]}, False) is None
    write_scenes(tmp_path, scenes_of([noted]))
    assert check_unseen("evaluate", str(tmp_path), {"push": [4]}, False) == 0
    assert check_unseen("evaluate", str(tmp_path), scenes_of([not_noted]), False) is None


def test_a_result_that_vag_did_not_write_is_refused_in_one_line(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["inspect", str(dataset), f"out={tmp_path / 'run'}"]
    assert cli.main(words) == 0
    path = tmp_path / "run/run.json"
    record = json.loads(path.read_text())
    for result, said in (
        ({}, "'result.problems' is missing"),
        ({**record["result"], "problems": 5}, "'result.problems' is 5, expected a list"),
        ({**record["result"], "frames": "many"}, "'result.frames' is 'many', expected a whole number"),
    ):
        path.write_text(json.dumps({**record, "status": "finishing", "result": result}))
        capsys.readouterr()
        assert cli.main([*words, "resume=true"]) == 2
        line = f"vag: error: {path}: {said}; delete {path.parent} to have it made again\n"
        assert capsys.readouterr().err == line
    result = {**record["result"], "frames": float("nan")}
    path.write_text(json.dumps({**record, "status": "finishing", "result": result}))
    assert cli.main([*words, "resume=true"]) == 2
    assert capsys.readouterr().err.startswith(f"vag: error: {path}: would hold a number that is not finite")


def test_warnings_of_libraries_do_not_stand_beside_our_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    def overflow(words: list[str]) -> int:
        _ = np.float32(1e38) * np.float32(10)
        raise UserError("the data are too large")

    monkeypatch.setattr(cli, "run_command", overflow)
    assert complaint(capsys, "inspect") == "vag: error: the data are too large"
    assert not recwarn.list
    _ = np.float32(1e38) * np.float32(10)
    assert recwarn.list  # elsewhere they stay as they were
