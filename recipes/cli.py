"""The `vag` command: composes the config with Hydra, opens the run directory, runs the recipe.

Exit codes: 0 done, 1 `vag inspect` found problems, 2 a mistake in the input (one line says which), 130 interrupted,
143 ended by SIGTERM, 141 nobody reads the output any more.
Heavy imports wait until a command runs: worker processes import this module again.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from recipes.terminal import end_together, guarded, nobody_reads, open_streams, quiet_libraries, say, terminable
from toolkit.base.errors import UserError, nearest
from toolkit.base.processes import processes, stand_alone

# In the order of the story.
COMMANDS = {
    "collect": "record teleoperation episodes (Meta-World stand-in) as a LeRobotDataset",
    "import": "turn HDF5 files or another LeRobotDataset into a LeRobotDataset v3",
    "export": "write a dataset as one HDF5 file in robomimic's layout",
    "inspect": "validate a dataset, with a picture of it; fix=true writes a repaired copy",
    "train-generator": "train the video tokenizer, then the dual-stream generator",
    "synthesize": "generate video, actions and states from new initial scenes",
    "evaluate-generator": "compare generated pairs with recorded episodes of the same scenes",
    "score": "note how far each synthetic episode can be trusted",
    "gate": "does a synthetic dataset pass? its trust, and policies with and without it, without a simulator",
    "replay": "execute a dataset's actions open loop and note which succeed",
    "mix": "write real and synthetic episodes as one LeRobotDataset, at a fraction, for others to train on",
    "pretrain": "train a policy on real and synthetic data",
    "finetune": "go on from a policy checkpoint on few real episodes",
    "generator-policy": "write a generator as a LeRobot policy checkpoint, which acts in closed loop",
    "evaluate": "roll a policy out on unseen scenes, with intervals",
    "push": "upload a dataset or checkpoint to the Hugging Face hub, with a card; dry_run=true writes it on disk",
    "trial": "compare policies on a robot: blinded, judged by a person, with a sequential test",
    "report": "write one self-contained HTML page about runs",
    "benchmark data": "measure how fast training data is read, side by side with LeRobotDataset",
    "benchmark lerobot": "measure training and evaluation, side by side with LeRobot's own tools",
    "benchmark engine": "measure the processes of this machine beside a Ray cluster and an earlier commit",
    "benchmark generators": "train, sample and replay several generators side by side",
    "benchmark policies": "rank policy checkpoints on the same scenes, with intervals",
    "ablate": "does synthetic data help? arms x policies x seeds, with controls and intervals",
    "demo": "the whole story at a size two CPU cores finish in minutes",
}
EXAMPLES = {
    "collect": (
        "vag collect out=outputs/real",
        "vag collect tasks=[push,drawer-open] episodes_per_task=10 out=outputs/few",
    ),
    "import": (
        "vag import robot.hdf5 task='put the cup on the plate' out=outputs/imported",
        "vag import episodes/ image_size=64 image_keys={observation.images.top:cam_high} fps=50 skip_bad=true",
    ),
    "export": (
        "vag export outputs/synthetic/dataset out=outputs/exported",
        "vag export outputs/real/dataset jpeg_quality=95",
    ),
    "inspect": (
        "vag inspect outputs/real/dataset",
        "vag inspect outputs/imported/dataset fix=true out=outputs/repaired",
    ),
    "train-generator": (
        "vag train-generator dataset=outputs/real/dataset out=outputs/generator",
        "vag train-generator dataset=clips.h5 generator=vag_published runtime.device=cuda",
    ),
    "synthesize": (
        "vag synthesize checkpoint=outputs/generator/generator out=outputs/synthetic",
        "vag synthesize checkpoint=outputs/generator/generator scenes_from=outputs/real/dataset",
    ),
    "evaluate-generator": (
        "vag evaluate-generator checkpoint=outputs/generator/generator dataset=outputs/held_out/dataset",
        "vag evaluate-generator checkpoint=outputs/generator/generator dataset=outputs/held_out/dataset given=video",
    ),
    "score": (
        "vag score dataset=outputs/synthetic/dataset checkpoint=outputs/generator/generator "
        "real=[outputs/real/dataset]",
        "vag score dataset=outputs/synthetic/dataset real=[outputs/real/dataset]",
    ),
    "gate": (
        "vag gate outputs/synthetic/dataset checkpoint=outputs/generator/generator real=[my/dataset] "
        "held_out=held_out/dataset",
        "vag gate outputs/synthetic/dataset real=[my/dataset] held_out=held_out/dataset seeds=[0,1,2,3,4]",
    ),
    "replay": (
        "vag replay dataset=outputs/synthetic/dataset",
        "vag replay dataset=outputs/real/dataset system=recorded",
    ),
    "mix": (
        "vag mix real=[my/dataset] synthetic=[outputs/synthetic/dataset] synthetic_fraction=0.5 out=outputs/mixed",
        "vag mix real=[my/dataset] synthetic=[outputs/synthetic/dataset] synthetic_fraction=0.75 repeat=true "
        "notes=[outputs/score] weight_by=score_nearest",
    ),
    "pretrain": (
        "vag pretrain synthetic=[outputs/synthetic/dataset] notes=[outputs/score] weight_by=score_nearest",
        "vag pretrain policy=diffusion real=[outputs/real/dataset] synthetic=[outputs/synthetic/dataset] "
        "synthetic_fraction=0.5",
    ),
    "finetune": (
        "vag finetune checkpoint=outputs/pretrained/pretrained_model real=[outputs/few/dataset]",
        "vag finetune checkpoint=outputs/pretrained/pretrained_model real=[outputs/real/dataset] "
        "episodes_per_task=2 refit_statistics=true",
    ),
    "generator-policy": (
        "vag generator-policy checkpoint=outputs/generator/generator out=outputs/world_action_model",
        "vag generator-policy checkpoint=outputs/generator/generator n_action_steps=16 sample=joint "
        "save_predicted_video=true",
    ),
    "evaluate": (
        "vag evaluate checkpoint=outputs/pretrained/pretrained_model",
        "vag evaluate checkpoint=outputs/pretrained/pretrained_model dataset=outputs/held_out/dataset",
    ),
    "push": (
        "vag push outputs/mixed/dataset repo_id=me/mixed license=cc-by-4.0 dry_run=true out=outputs/card",
        "vag push outputs/policy/pretrained_model repo_id=me/policy metrics=[outputs/evaluate] private=true",
    ),
    "trial": (
        "vag trial 'policies={a:outputs/a/pretrained_model,b:outputs/b/pretrained_model}' "
        "task='put the cup on the plate' robot.type=so101_follower robot.port=/dev/ttyACM0 "
        "robot.max_relative_target=10 "
        "'robot.cameras={front:{type:opencv,index_or_path:0,width:640,height:480,fps:30}}' out=outputs/trial",
        "vag trial 'policies={a:outputs/a/pretrained_model,b:outputs/b/pretrained_model}' "
        "task='put the cup on the plate' robot.type=so101_follower placements=40 limits_from=my/dataset",
    ),
    "report": ("vag report outputs/demo", "vag report outputs/real outputs/generator out=outputs/page"),
    "benchmark data": ("vag benchmark data", "vag benchmark data dataset=outputs/real/dataset repeats=15"),
    "benchmark lerobot": (
        "vag benchmark lerobot out=outputs/lerobot",
        "vag benchmark lerobot dataset=outputs/real/dataset policies=[pi05_compact] stock_steps=0",
    ),
    "benchmark engine": (
        "vag benchmark engine out=outputs/engine",
        "vag benchmark engine before=../vag-of-last-month checkpoint=outputs/generator/generator",
    ),
    "benchmark generators": (
        "vag benchmark generators out=outputs/generators",
        "vag benchmark generators suites=[dense] systems=[vag,action_only] seeds=[0] out=outputs/quick",
    ),
    "benchmark policies": (
        "vag benchmark policies checkpoints={ours:outputs/finetuned/pretrained_model}",
        "vag benchmark policies 'checkpoints={a:[outputs/a0/pretrained_model,outputs/a1/pretrained_model],"
        "b:outputs/b/pretrained_model}' suites=[unseen,position,visual,language]",
        "vag benchmark policies results=trials.csv out=outputs/board",
    ),
    "ablate": (
        "vag ablate experiment=ablate_cpu out=outputs/study",
        "vag ablate steps=2000 \"grid=['arm=real_few','arm=cotrain synthetic_fraction=0.25,0.5,0.75 seed=0,1,2']\"",
    ),
    "demo": ("vag demo out=outputs/demo", "vag demo experiment=smoke out=outputs/smoke"),
}
# The key of words that stand bare on the command line, where there is one main input.
POSITIONAL = {
    "import": "source",
    "export": "dataset",
    "inspect": "dataset",
    "train-generator": "dataset",
    "score": "dataset",
    "gate": "dataset",
    "replay": "dataset",
    "push": "source",
    "report": "runs",
}
TRAININGS = ("train-generator", "pretrain", "finetune")  # may be started in several processes
SHARDED = ("synthesize", "score")  # of several processes each makes a shard
MODULES = {"import": "import_data"}  # where the command is a keyword of Python


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the console script; returns the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    open_streams()
    try:
        with terminable(), quiet_libraries():
            code = guarded(lambda: run_command(words))
            if code:
                gc.collect()  # what the error has left is given up here, not when Python ends
    finally:
        end_together()
    nobody_reads()
    return code


def run_command(arguments: list[str]) -> int:
    """Parse, compose, run. Raises UserError for anything the user can mend."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        say(_overview())
        return 0
    command, rest = arguments[0], arguments[1:]
    if command == "benchmark":
        command, rest = " ".join(arguments[:2]), arguments[2:]
    if command not in COMMANDS:
        from recipes.ranges import shortened

        raise UserError(f"unknown command {shortened(command)!r}. {nearest(shortened(command), COMMANDS)}")
    if {"-h", "--help"} & set(rest):
        from recipes.help import help_text

        say(help_text(command, COMMANDS[command], EXAMPLES[command], POSITIONAL.get(command)))
        return 0
    if processes().size > 1 and command in SHARDED:
        rest = [*_shard_of_rank(rest), *rest]
    elif processes().size > 1 and command not in TRAININGS:
        raise UserError(
            f"{command}: runs in one process, but WORLD_SIZE={processes().size}; start it without torchrun "
            f"(what can be started in several: {', '.join((*TRAININGS, *SHARDED))})"
        )
    result = execute(command, keyed_words(command, rest))
    return 1 if command == "inspect" and result.problems else 0


def _shard_of_rank(words: list[str]) -> list[str]:
    """The shard that a process of torchrun makes, as a command of its own; none where the words name one."""
    rank, size = stand_alone()
    os.environ["VAG_PROGRESS_POSITION"] = os.environ.get("LOCAL_RANK", "0")
    return [] if any(word.startswith("shard=") for word in words) else [f"shard={rank + 1}/{size}"]


def _overview() -> str:
    lines = ["usage: vag <command> [key=value ...]", ""]
    lines += [f"  {name:<21} {line}" for name, line in COMMANDS.items()]
    return "\n".join([*lines, "", "vag <command> --help shows all options, with ranges, and two examples."])


def keyed_words(command: str, words: list[str]) -> list[str]:
    """The same words with the key of those that stand bare, where the command has one main input.

    A path may hold an equals sign: what stands before it is then no key, or none of the command and the path exists.
    """
    key = POSITIONAL.get(command)
    if key is None:
        return words
    from recipes.compose import listed, quoted
    from recipes.ranges import check_letters, shortened

    bare = [word for word in words if _is_bare(command, word)]
    if not bare:
        return words
    for word in bare:
        check_letters(command, repr(shortened(word)), word)
    rest = [word for word in words if word not in bare]
    if twice := [word for word in rest if word.partition("=")[0] == key]:
        raise UserError(f"{command}: got {shortened(bare[0])!r} and {shortened(twice[0])!r}; give one of them")
    if command not in ("report", "train-generator") and len(bare) > 1:
        names = " and ".join(repr(shortened(word)) for word in bare[:2])
        raise UserError(f"{command}: takes one {key}, got {names}; put quotes around a name with spaces")
    return [*rest, f"{key}={quoted(bare[0]) if len(bare) == 1 and command != 'report' else listed(bare)}"]


def _is_bare(command: str, word: str) -> bool:
    """True for a path: without `=`, or with one behind what is no key of the command."""
    key, sign, _ = word.partition("=")
    if not word.strip() or not key or key.startswith("~"):
        return False
    from recipes.kinds import kind_of

    if sign and kind_of(command, key.lstrip("+").replace("/", ".")) is not None:  # generator/action is a group
        return False
    with suppress(OSError, ValueError):
        if os.path.lexists(word):
            return True
    return "/" in key if sign else not word.startswith("-")


def execute(command: str, overrides: list[str]) -> Any:
    """Compose the config of a command, then `run_recipe`."""
    from omegaconf import OmegaConf

    from recipes.compose import checked_config

    return run_recipe(command, OmegaConf.to_object(checked_config(command, overrides)))


def run_recipe(command: str, config: Any, stage: bool = False) -> Any:
    """Run the recipe of a command in a run directory and return the result, of RESULTS[command].

    config: of the command's schema; recipes may change it. stage: it is part of another command, which reads its
    record, also where it failed.
    """
    from recipes.compose import file_name
    from toolkit.base.followed_run import open_run
    from toolkit.base.record import RECORD
    from toolkit.base.typed_json import from_json
    from toolkit.reporting.results import RESULTS

    module = importlib.import_module(f"recipes.{MODULES.get(command, file_name(command))}")
    if getattr(config, "shard", None) is not None:
        from recipes.sharding import run_alone

        return run_alone(command, module.prepare, config, lambda whole: run_recipe(command, whole, stage))
    extendable = getattr(module, "EXTENDABLE", False)
    again = {key: getattr(config, key) for key in ("overwrite", "resume", "strict")}
    defaults = asdict(type(config)())
    with open_run(
        command, config.out, asdict(config), extendable=extendable, stage=stage, defaults=defaults, **again
    ) as run:
        try:
            if not run.complete:
                result = module.run(config, run)
                run.note_result(result)
        except BaseException as error:
            error.add_note(f"out={run.directory} resume=true{', without overwrite=true' * config.overwrite}")
            raise
    if run.complete:
        result = from_json(RESULTS[command], run.record["result"], run.directory / RECORD)
    say(f"{command}: {module.summary(result)}  [{run.directory}]")
    return result


if __name__ == "__main__":
    sys.exit(main())
