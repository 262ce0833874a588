"""Trainings in two processes: what one of twice the batch learns, one writer, one line for an error, exact resume."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from recipes import cli
from toolkit.data.clips import write_clips
from toolkit.data.episode import Episode

SMALL = (
    "image_size=32 generator.num_frames=17 generator.video.width=32 generator.video.depth=1 "
    "generator.action.width=32 generator.action.depth=1 runtime.device=cpu runtime.threads=1 "
    "tokenizer_optim.log_every=1 optim.log_every=1 optim.checkpoint_every=3"
)
POLICY = (
    "image_size=32 policy.options.width=32 policy.options.depth=1 optim.steps=3 optim.log_every=1 optim.warmup_steps=1 "
    "runtime.device=cpu runtime.threads=1"
)


def curves(out: Path, *stages: str) -> dict[str, list[float]]:
    """Every logged number of a run but its speed, by stage and name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for stage in stages:
        assert len(list((out / stage / "tensorboard").iterdir())) == 1  # one process writes
        events = EventAccumulator(str(out / stage / "tensorboard"))
        events.Reload()
        for name in events.Tags()["scalars"]:
            if "second" not in name and "flop" not in name:
                found[f"{stage} {name}"] = [event.value for event in events.Scalars(name)]
    return found


def same_curves(one: Path, two: Path, *stages: str) -> None:
    expected, found = curves(one, *stages), curves(two, *stages)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        # A logarithm of the mean is not the mean of logarithms.
        tolerance = 0.05 if "psnr" in name else 1e-4
        assert found[name] == pytest.approx(values, rel=tolerance, abs=tolerance), name


@pytest.mark.slow
def test_two_processes_learn_what_one_does_of_twice_the_batch(
    dataset: Path, torchrun: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    words = (
        f"train-generator dataset={dataset} {SMALL} tokenizer_optim.steps=3 optim.steps=4 generator.action.dropout=0 "
        "labelled_fraction=0.4"
    )
    sizes = "optim.batch_size={0} tokenizer_optim.batch_size={0} out={1}"
    started = torchrun(f"{words} {sizes.format(5, tmp_path / 'two')}")
    assert cli.main(f"{words} {sizes.format(10, tmp_path / 'one')}".split()) == 0
    out, complaints = started.communicate(timeout=250)
    assert started.returncode == 0, complaints[-3000:]
    assert out.count("train-generator: tokenizer") == 1
    same_curves(tmp_path / "one", tmp_path / "two", "tokenizer", "streams")
    results = [json.loads((tmp_path / name / "run.json").read_text())["result"]["generator"] for name in ("one", "two")]
    assert results[1]["loss"] == pytest.approx(results[0]["loss"], abs=2e-4)
    accumulated = "optim.gradient_accumulation=2 tokenizer_optim.gradient_accumulation=2"
    assert cli.main(f"{words} {sizes.format(5, tmp_path / 'parts')} {accumulated}".split()) == 0
    same_curves(tmp_path / "one", tmp_path / "parts", "tokenizer", "streams")


@pytest.mark.long
@pytest.mark.slow
def test_policies_learn_the_same_in_two_processes(
    dataset: Path, together: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Pretraining on sources that two processes share, then fine-tuning: the masks of both count as a whole."""
    words = f"pretrain real=[{dataset},{dataset}] real_shares=[3,1] {POLICY}"
    assert cli.main([*words.split(), "optim.batch_size=10", f"out={tmp_path / 'one'}"]) == 0
    together(f"{words} optim.batch_size=5 out={tmp_path / 'two'}", tmp_path)
    same_curves(tmp_path / "one", tmp_path / "two", "")
    kept = " ".join(word for word in POLICY.split() if not word.startswith("policy"))
    words = (
        f"finetune checkpoint={tmp_path / 'two/pretrained_model'} real=[{dataset}] freeze_vision_encoder=true {kept}"
    )
    together(f"{words} optim.batch_size=2 out={tmp_path / 'tuned'}", tmp_path)
    assert json.loads((tmp_path / "tuned/run.json").read_text())["status"] == "finished"
    said = together(f"{words} optim.batch_size=2 out={tmp_path / 'tuned'}", tmp_path)
    assert ["holds a finished run" in text for text in said].count(True) == 1
    assert sum(text.count("vag: error") for text in said) == 1


@pytest.mark.slow
def test_a_killed_training_of_two_goes_on_bit_for_bit(
    moving_square: Callable[..., Episode],
    together: Callable[..., list[str]],
    torchrun: Callable[..., subprocess.Popen[str]],
    killed: Callable[..., str],
    tmp_path: Path,
) -> None:
    """At the shipped dropout: noise, times and dropout after the resume are those of the undisturbed run.

    So are the held-out loss, which the main process measures, and the generator that was best by it.
    """
    clips = tmp_path / "clips.h5"
    write_clips(clips, [moving_square(seed) for seed in range(6)], 6 * 17, 20, "six")
    words = (
        f"train-generator dataset={clips} {SMALL} tokenizer_optim.steps=2 optim.steps=9 optim.batch_size=2 "
        "tokenizer_optim.batch_size=2"
    )
    cut = tmp_path / "cut"
    started = torchrun(f"{words} out={cut}")
    killed(started, cut / "streams/checkpoints")
    assert json.loads((cut / "run.json").read_text())["status"] == "running"
    assert cli.main(f"{words} out={cut} resume=true".split()) == 2  # one process alone would learn from other batches
    together(f"{words} out={cut} resume=true", tmp_path)
    together(f"{words} out={tmp_path / 'whole'}", tmp_path)
    for made in ("generator", "best"):
        weights, expected = (load_file(path / made / "model.safetensors") for path in (cut, tmp_path / "whole"))
        assert weights.keys() == expected.keys()
        assert all(weights[name].equal(expected[name]) for name in expected)
    records = [json.loads((path / "run.json").read_text()) for path in (cut, tmp_path / "whole")]
    assert records[0]["status"] == "finished"
    assert records[0]["result"]["generator"] == records[1]["result"]["generator"]
    assert records[0]["result"]["held_out"] == records[1]["result"]["held_out"]
    assert records[0]["result"]["held_out"]["steps"] == [3, 6, 9]
    assert not list(cut.rglob("*.vag-*"))[1:]  # the manifest


def test_an_error_of_the_user_is_one_line_of_one_process(
    torchrun: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    started = torchrun(f"train-generator dataset={tmp_path / 'nothing'} out={tmp_path / 'out'}")
    _, complaints = started.communicate(timeout=200)
    assert complaints.count("vag: error:") == 1, complaints[-3000:]
    assert "nothing: not found" in complaints
    assert complaints.count("exitcode  : 2 ") == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", ["inspect {}", "pretrain real=[{}] optim.steps=x"])
def test_both_processes_refuse_in_one_line(
    words: str, dataset: Path, together: Callable[..., list[str]], tmp_path: Path
) -> None:
    """What runs in one process is not run twice; what is wrong before a run begins is said once."""
    out = tmp_path / "out"
    said = together(f"{words.format(dataset)} out={out}", tmp_path)
    assert sum(text.count("vag: error") for text in said) == 1
    assert "WORLD_SIZE=2" in "".join(said) or "optim.steps" in "".join(said)
    assert not out.exists()
