"""`python -m recipes.hardware` writes tables of docs/hardware.md and docs/scale.md: dry runs of the published sizes.

A row of the first is of one pass with one clip of video, and the four plans beside it that the config asks for; one of
the second of episodes that are one clip each.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from recipes.compose import checked_config
from recipes.dry_run import dry_run
from toolkit.base.files import write_text
from toolkit.reporting.generator_results import DryRun

DOCS = Path(__file__).parent.parent / "docs"
PAGE, SCALE_PAGE = DOCS / "hardware.md", DOCS / "scale.md"
MARKED = re.compile(r"(<!-- dry runs -->\n).*?(<!-- end -->)", re.DOTALL)
MODELS = {
    "vag_cosmos": "Cosmos-Predict2-2B",
    "vag_cosmos25": "Cosmos-Predict2.5-2B",
    "vag_wan": "Wan2.2-TI2V-5B",
}
SIZES = ((49, 256, 256), (49, 432, 768), (93, 432, 768))
TALLER = {432: 448}  # Wan2.2 takes multiples of 32
TRAINED = {"frozen": "frozen", "lora": "LoRA, rank 32", "full": "all of it"}
CARDS = (24, 48, 80)  # GB
GROUPS = 8
HEAD = (
    "| model | pictures | trained | memory, GB | + a clip, GB | clips on 24 GB | 48 GB | 80 GB | TFLOP a clip | "
    "s on H100 | sharded on 8, GB each |"
)
SAMPLERS = ((10, False), (35, True))  # steps, guided: what is shipped, and what the models were published with
SCALE_CARDS = ("l40s", "a100", "h100")
# Bytes of a picture in the video of a dataset: the largest of samples of Bridge V2, DROID (3 cameras) and Unitree G1,
# written by `vag import` at this height (the others 27,384 and 26,968; 124,390 and 86,600).
PICTURE_BYTES = {256: 53_955, 432: 125_245, 448: 125_245}
SCALE_HEAD = (
    "| model | pictures | GB of 1,000 | TB of 100,000 | L40S, 10 steps | A100 | H100 | L40S, 35 guided | A100 | H100 | "
    "H100 days of 100,000 |"
)


def cases() -> Iterator[tuple[str, tuple[int, int, int], str]]:
    """Generator, (pictures, height, width) and what is trained, of each line."""
    for generator in MODELS:
        for frames, height, width in SIZES:
            tall = TALLER.get(height, height) if generator == "vag_wan" else height
            yield from ((generator, (frames, tall, width), train) for train in TRAINED)


def found(generator: str, size: tuple[int, int, int], train: str, gpu: str = "h100") -> DryRun:
    """The dry run of one line."""
    frames, height, width = size
    words = [f"generator={generator}", f"generator.num_frames={frames}", f"image_size=[{height},{width}]"]
    words += [f"generator.video.train={train}", "dry_run=true", f"gpu={gpu}"]
    words += ["optim.gradient_accumulation=1"]
    config: Any = OmegaConf.to_object(checked_config("train-generator", words))
    result = dry_run(config).dry_run
    assert result is not None
    return result


def line(generator: str, size: tuple[int, int, int], train: str) -> str:
    """One line of the table."""
    run, (frames, height, width) = found(generator, size, train), size
    clips = [
        max(0, int(run.joint_clips + (card * 1e9 - run.total_bytes) // run.bytes_per_joint_clip)) for card in CARDS
    ]
    cells = [MODELS[generator], f"{frames} x {height} x {width}", TRAINED[train], gb(run.total_bytes)]
    cells += [gb(run.bytes_per_joint_clip), *map(str, clips), f"{run.flop_per_step / 1e12:,.0f}"]
    cells += [f"{run.seconds_per_step:.2g}", gb(run.sharded_bytes) if train == "full" else ""]
    return f"| {' | '.join(cells)} |"


def scale_line(generator: str, size: tuple[int, int, int]) -> str:
    """One line of the table of many episodes: storage, then GPU hours of 1,000 by sampler and card."""
    frames, height, width = size
    stored = 1000 * frames * PICTURE_BYTES[height]
    hours = dict[tuple[int, bool, str], float]()
    for card in SCALE_CARDS:
        for cost in found(generator, size, "lora", card).sampling:
            hours[cost.steps, cost.guided, card] = 1000 * cost.seconds / 3600
    cells = [MODELS[generator], f"{frames} x {height} x {width}", f"{stored / 1e9:.1f}", f"{stored / 1e10:.2f}"]
    cells += [f"{hours[steps, guided, card]:.2g}" for steps, guided in SAMPLERS for card in SCALE_CARDS]
    return f"| {' | '.join([*cells, f'{100 * hours[35, True, "h100"] / 24:.2g}'])} |"


def gb(number: float) -> str:
    return f"{number / 1e9:.1f}"


def write_table(page: Path, head: str, lines: Iterable[str]) -> None:
    """Between the marks of a page."""
    table = "\n".join([head, "|" + " --- |" * (head.count("|") - 1), *lines]) + "\n"
    write_text(page, MARKED.sub(lambda match: match[1] + table + match[2], page.read_text()))


def main() -> None:
    write_table(PAGE, HEAD, [line(*case) for case in cases()])
    write_table(SCALE_PAGE, SCALE_HEAD, [scale_line(*case[:2]) for case in cases() if case[2] == "lora"])


if __name__ == "__main__":
    main()
