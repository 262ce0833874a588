"""The `vag` command: composes the config with Hydra, opens the run directory, runs the recipe.

Exit codes: 0 done, 1 `vag inspect` found problems, 2 a mistake in the input (one line says which), 130 interrupted.
Heavy imports wait until a command runs: worker processes import this module again.
"""

from __future__ import annotations

import errno
import importlib
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from toolkit.errors import UserError, nearest

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
    "replay": "execute a dataset's actions open loop and note which succeed",
    "pretrain": "train a policy on real and synthetic data",
    "finetune": "go on from a policy checkpoint on few real episodes",
    "evaluate": "roll a policy out on unseen scenes, with intervals",
    "report": "write one self-contained HTML page about runs",
    "benchmark data": "measure how fast training data is read, side by side with LeRobotDataset",
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
        "vag import episodes/ layout=aloha image_size=64 image_keys={observation.image:cam_high} fps=50",
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
    "replay": (
        "vag replay dataset=outputs/synthetic/dataset",
        "vag replay dataset=outputs/real/dataset system=recorded",
    ),
    "pretrain": (
        "vag pretrain synthetic=[outputs/synthetic/dataset] out=outputs/pretrained",
        "vag pretrain policy=diffusion real=[outputs/real/dataset] synthetic=[outputs/synthetic/dataset] "
        "synthetic_fraction=0.5",
    ),
    "finetune": (
        "vag finetune checkpoint=outputs/pretrained/pretrained_model real=[outputs/few/dataset]",
        "vag finetune checkpoint=outputs/pretrained/pretrained_model real=[outputs/real/dataset] "
        "episodes_per_task=2 refit_statistics=true",
    ),
    "evaluate": (
        "vag evaluate checkpoint=outputs/pretrained/pretrained_model",
        "vag evaluate checkpoint=outputs/pretrained/pretrained_model dataset=outputs/held_out/dataset",
    ),
    "report": ("vag report outputs/demo", "vag report outputs/real outputs/generator out=outputs/page"),
    "benchmark data": ("vag benchmark data", "vag benchmark data dataset=outputs/real/dataset repeats=15"),
    "benchmark generators": (
        "vag benchmark generators out=outputs/generators",
        "vag benchmark generators suites=[dense] systems=[vag,action_only] seeds=[0] out=outputs/quick",
    ),
    "benchmark policies": (
        "vag benchmark policies checkpoints={ours:outputs/finetuned/pretrained_model}",
        "vag benchmark policies 'checkpoints={a:[outputs/a0/pretrained_model,outputs/a1/pretrained_model],"
        "b:outputs/b/pretrained_model}' suites=[unseen,position,visual,language]",
    ),
    "ablate": (
        "vag ablate experiment=ablate_cpu out=outputs/study",
        "vag ablate steps=2000 \"grid=['arm=real_few','arm=cotrain synthetic_fraction=0.25,0.5,0.75 seed=0,1,2']\"",
    ),
    "demo": ("vag demo out=outputs/demo", "vag demo experiment=smoke out=outputs/smoke"),
}
# The key of words that stand bare on the command line.
POSITIONAL = {"import": "source", "export": "dataset", "inspect": "dataset", "report": "runs"}
MODULES = {"import": "import_data"}  # where the command is a keyword of Python


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the console script; returns the exit code."""
    logging.getLogger("lerobot").setLevel(logging.ERROR)  # it warns at length where torchcodec finds no FFmpeg
    words = sys.argv[1:] if arguments is None else arguments
    return guarded(lambda: run_command(words))


def guarded(function: Callable[[], int]) -> int:
    """Call `function`; an error that the user can mend becomes one line and an exit code."""
    try:
        return function()
    except UserError as error:
        return _complain(str(error), 2)
    except KeyboardInterrupt as error:
        return _complain(f"interrupted{_how_to_go_on(error)}", 130)
    except Exception as error:
        name = getattr(error, "filename", None)
        if _is_disk_full(error):
            return _complain(f"disk full while writing {name or 'the output'}; free space{_how_to_go_on(error)}", 2)
        if isinstance(error, ModuleNotFoundError):
            return _complain(f"no module '{error.name}': pip install 'lerobot_policy_vag[robot]'", 2)
        if isinstance(error, OSError) and name:
            return _complain(f"{name}: {error.strerror}", 2)
        raise


def _how_to_go_on(error: BaseException) -> str:
    notes = getattr(error, "__notes__", [])
    return f"; to go on: the same command with {notes[-1]}" if notes else ""


def _is_disk_full(error: BaseException | None) -> bool:
    """True if the error, or one that led to it, is a full disk; libraries wrap the system's error in their own."""
    seen, full = 0, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    while error is not None and seen < 20:
        if getattr(error, "errno", None) in full or any(os.strerror(code) in str(error) for code in full):
            return True
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False


def run_command(arguments: list[str]) -> int:
    """Parse, compose, run. Raises UserError for anything the user can mend."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print("usage: vag <command> [key=value ...]\n")
        for name, line in COMMANDS.items():
            print(f"  {name:<21} {line}")
        print("\nvag <command> --help shows the config and two examples.")
        return 0
    command, rest = arguments[0], arguments[1:]
    if command == "benchmark":
        command, rest = " ".join(arguments[:2]), arguments[2:]
    if command not in COMMANDS:
        raise UserError(f"unknown command '{command}'. {nearest(command, COMMANDS)}")
    if {"-h", "--help"} & set(rest):
        print(_help(command))
        return 0
    bare = [word for word in rest if "=" not in word]
    if bare and command in POSITIONAL:
        quoted = ",".join("'" + word.replace("'", "\\'") + "'" for word in bare)
        rest = [word for word in rest if "=" in word]
        rest.append(f"{POSITIONAL[command]}={f'[{quoted}]' if command == 'report' else quoted}")
    result = execute(command, rest)
    return 1 if command == "inspect" and result["problems"] else 0


def execute(command: str, overrides: list[str]) -> dict[str, Any]:
    """Compose the config of a command, run its recipe in a run directory and return the result."""
    from omegaconf import OmegaConf

    from recipes.compose import check_ranges, compose_config, file_name
    from toolkit.reporting.run_record import Run

    config = compose_config(command, overrides)
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise UserError(f"{command}: {missing[0]}=... is required; see vag {command} --help")
    typed: Any = OmegaConf.to_object(config)
    plain: Any = OmegaConf.to_container(config, resolve=True)
    module = importlib.import_module(f"recipes.{MODULES.get(command, file_name(command))}")
    check_ranges(plain)
    extendable = getattr(module, "EXTENDABLE", False)
    again = {"overwrite": config.overwrite, "resume": config.resume, "extendable": extendable}
    with Run(command, config.out, plain, **again) as run:
        try:
            module.run(typed, run)
        except BaseException as error:
            error.add_note(f"out={run.directory} resume=true{', without overwrite=true' * config.overwrite}")
            raise
    print(f"{command}: {module.summary(run.result)}  [{run.directory}]", flush=True)
    return run.result


def _help(command: str) -> str:
    from omegaconf import OmegaConf

    from recipes.compose import compose_config

    config = compose_config(command, [])
    lines = [f"vag {command}: {COMMANDS[command]}", "", OmegaConf.to_yaml(config), "Examples:"]
    return "\n".join([*lines, *(f"  {example}" for example in EXAMPLES[command])])


def _complain(message: str, code: int) -> int:
    from toolkit.training.logging import close_progress

    close_progress()
    print(f"vag: error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
