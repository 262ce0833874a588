"""What is damaged, and which commands then read it."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from sources import PRETRAIN, SMALL_POLICY

TRAIN = "image_size=32 optim.steps=1 optim.batch_size=1"
SAMPLE = "sampler.num_inference_steps=1"
OPEN_LOOP = "evaluate checkpoint={given} dataset={sources}/dataset image_size=32"
ROLLOUT = "evaluate checkpoint={given} tasks=[plate-slide] episodes_per_task=1 max_steps=1 image_size=32"
FINETUNE = f"finetune checkpoint={{given}} real=[{{sources}}/dataset] {TRAIN}"
PRETRAIN_ON = f"pretrain real=[{{given}}] {TRAIN} {SMALL_POLICY}"
EVALUATE_GENERATOR = f"evaluate-generator checkpoint={{given}} dataset={{sources}}/dataset replay=false {SAMPLE}"
SYNTHESIZE = f"synthesize checkpoint={{given}} scenes_from={{sources}}/dataset workers=1 {SAMPLE}"
RESUME = f"{PRETRAIN} resume=true out={{given}}"
OVERWRITE = f"{PRETRAIN} overwrite=true out={{given}}"
REPORT = "report runs=[{given}]"
REPORT_ALL = "report runs=[{given}/inspected,{given}/pretrained,{given}/evaluated,{given}/sampled]"
DATASET = (
    "inspect dataset={given} fix=true",
    "export dataset={given}",
    "import source={given}",
    PRETRAIN_ON,
    f"synthesize checkpoint={{sources}}/generator scenes_from={{given}} workers=1 {SAMPLE}",
    f"evaluate-generator checkpoint={{sources}}/generator dataset={{given}} replay=false {SAMPLE}",
    "evaluate checkpoint={sources}/pi05_compact dataset={given} image_size=32",
)
NOTES = (
    "replay dataset={given} max_steps=1 workers=1",
    "score dataset={given} real=[{sources}/dataset] checkpoint={sources}/generator image_size=32",
)
SELECT = (
    f"pretrain synthetic=[{{sources}}/dataset] notes=[{{given}}] weight_by=score_nearest {TRAIN} {SMALL_POLICY}",
    "replay dataset={sources}/dataset notes=[{given}] max_steps=1 workers=1",
)
CLIPS = (
    "evaluate checkpoint={sources}/pi05_compact dataset={given} image_size=32",
    f"evaluate-generator checkpoint={{sources}}/generator dataset={{given}} replay=false {SAMPLE}",
    PRETRAIN_ON,
)
IMPORT = ("import source={given} task=move",)


@dataclass(frozen=True)
class Target:
    """A file or folder below that of the sources, and what is done with a damaged copy.

    commands: one is drawn; {given} is the copy, {sources} the folder of good ones. One that names no `out` gets a new
    one. files: patterns of those that are damaged.
    """

    source: str
    commands: tuple[str, ...]
    files: tuple[str, ...] = ("*",)

    def choose_from(self, folder: Path, files: list[Path]) -> list[Path]:
        """The files of a copy that may be damaged."""
        names = {path: str(path.relative_to(folder)) if folder.is_dir() else path.name for path in files}
        return [path for path in files if any(fnmatch(names[path], pattern) for pattern in self.files)]


POLICY = ("*.json", "*processor*.safetensors")  # all but the weights
RUN = ("run.json", ".vag-*", "checkpoints/*")
TARGETS = (
    Target("pi05_compact", (OPEN_LOOP, FINETUNE)),
    Target("dataset", DATASET, ("meta/*",)),
    Target("pi05_compact", (OPEN_LOOP, FINETUNE), POLICY),
    Target("begun/interrupted", (RESUME, RESUME, OVERWRITE), RUN),
    Target("generator", (EVALUATE_GENERATOR, SYNTHESIZE)),
    Target("diffusion_compact", (OPEN_LOOP, FINETUNE), POLICY),
    Target("robomimic.hdf5", IMPORT),
    Target("dataset", DATASET, ("data/*", "videos/*")),
    Target("generator", (EVALUATE_GENERATOR, SYNTHESIZE), ("*.json",)),
    Target("finished", (REPORT_ALL,), ("*/run.json",)),
    Target("dataset", NOTES, ("meta/*", "data/*")),
    Target("finished/scored", SELECT, ("vag_episodes.parquet",)),
    Target("act", (ROLLOUT,), POLICY),
    Target("libero.hdf5", IMPORT),
    Target("clips.h5", CLIPS),
    Target("begun/replacing", (RESUME, OVERWRITE), RUN),
    Target("dataset", DATASET[2:]),
    Target("bridge.hdf5", IMPORT),
    Target("finished/exported", ("export dataset={sources}/dataset overwrite=true out={given}", REPORT)),
    Target("pi05_compact", (ROLLOUT,), POLICY),
    Target("aloha.hdf5", IMPORT),
    Target("finished/pretrained", (OVERWRITE, OVERWRITE, REPORT), ("run.json", ".vag-*", "pretrained_model/*.json")),
)
