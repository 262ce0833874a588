"""`python -m recipes.hardware` writes the table of docs/hardware.md: dry runs of the published sizes.

A row is of one pass with one clip of video, and the four plans beside it that the config asks for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from recipes.compose import checked_config
from recipes.dry_run import dry_run
from toolkit.base.files import write_text
from toolkit.reporting.generator_results import DryRun

PAGE = Path(__file__).parent.parent / "docs" / "hardware.md"
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


def cases() -> Iterator[tuple[str, tuple[int, int, int], str]]:
    """Generator, (pictures, height, width) and what is trained, of each line."""
    for generator in MODELS:
        for frames, height, width in SIZES:
            tall = TALLER.get(height, height) if generator == "vag_wan" else height
            yield from ((generator, (frames, tall, width), train) for train in TRAINED)


def found(generator: str, size: tuple[int, int, int], train: str) -> DryRun:
    """The dry run of one line."""
    frames, height, width = size
    words = [f"generator={generator}", f"generator.num_frames={frames}", f"image_size=[{height},{width}]"]
    words += [f"generator.video.train={train}", "dry_run=true", "optim.gradient_accumulation=1"]
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


def gb(number: float) -> str:
    return f"{number / 1e9:.1f}"


def main() -> None:
    lines = [HEAD, "|" + " --- |" * HEAD.count(" |"), *(line(*case) for case in cases())]
    table = "\n".join(lines) + "\n"
    write_text(PAGE, MARKED.sub(lambda match: match[1] + table + match[2], PAGE.read_text()))


if __name__ == "__main__":
    main()
