"""Cells of the ablation: what an arm is, which cells a grid names, and the commands that one cell runs."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from recipes.compose import options_of
from recipes.stages import EVERY_EPISODE, Stage, in_turn, make_stage
from recipes.study_schema import AblateConfig
from recipes.worlds import world_values
from toolkit.base.errors import UserError, nearest

GENERATOR_DATA = ("same_tasks", "other_tasks")
POLICIES = ("pi05_compact", *sorted({*options_of("policy")} - {"pi05_compact"}))
GENERATOR_POLICY = "vag_policy"  # the policy of the arm `generator`, which takes no other
SCORES = ("score_cycle_error", "score_flow_loss", "score_limit_excess", "score_nearest", "replay_success")


@dataclass(frozen=True)
class Arm:
    """What a policy is trained on, in the same number of gradient steps as every other arm.

    real: `few`, `all` that the generator has seen, or none. finetuned: synthetic episodes first, the real ones after.
    generator: nothing, the generator itself acts.
    """

    real: str | None = "few"
    synthetic: bool = False
    finetuned: bool = False
    filtered: bool = False
    augmented: bool = False
    shuffled: bool = False
    generator: bool = False


ARMS = {
    "real_few": Arm(),
    "real_few_augmented": Arm(augmented=True),
    "real_all": Arm(real="all"),
    "synthetic_only": Arm(real=None, synthetic=True),
    "synthetic_only_filtered": Arm(real=None, synthetic=True, filtered=True),
    "pretrain_finetune": Arm(synthetic=True, finetuned=True),
    "pretrain_finetune_filtered": Arm(synthetic=True, finetuned=True, filtered=True),
    "cotrain": Arm(synthetic=True),
    "cotrain_filtered": Arm(synthetic=True, filtered=True),
    "cotrain_augmented": Arm(synthetic=True, augmented=True),
    "cotrain_shuffled": Arm(synthetic=True, shuffled=True),
    "cotrain_filtered_shuffled": Arm(synthetic=True, filtered=True, shuffled=True),
    "pretrain_finetune_shuffled": Arm(synthetic=True, finetuned=True, shuffled=True),
    "generator": Arm(real=None, generator=True),
}


@dataclass(frozen=True, order=True)
class Cell:
    """One training and its evaluations. Axes that do not concern the arm hold their defaults."""

    arm: str
    policy: str = "pi05_compact"
    generator_data: str = (
        "same_tasks"  # what the generator was trained on: every real demo, or the few and those of other tasks
    )
    few: int = 5  # real episodes per task that the policy gets
    synthetic_fraction: float = 0.5  # of the clips of a co-training
    synthetic_per_task: int = 200
    filter: str = "none"
    weight_by: str = "none"  # score whose best synthetic episodes are drawn most often
    finetune: str = "default"
    finetune_share: float = 0.5  # of the gradient steps
    finetune_fraction: float = 0.0  # of synthetic clips while fine-tuning
    generator_policy: str = "default"  # how the generator of the arm `generator` acts
    seed: int = 0

    @property
    def needs_generator(self) -> bool:
        return ARMS[self.arm].synthetic or ARMS[self.arm].generator

    @property
    def group(self) -> Cell:
        """What it has in common with its repetitions: itself with seed 0."""
        return replace(self, seed=0)

    @property
    def pretraining(self) -> str:
        """Directory of what the arms that fine-tune go on from: one for all ways to fine-tune."""
        default = Cell(self.arm)
        shared = {key: getattr(default, key) for key in ("few", "finetune", "finetune_fraction")}
        return f"{replace(self, **shared).name}/train"

    @property
    def system(self) -> str:
        """Its name in tables: the arm, and the axes that are not at their defaults."""
        told = [
            f"{field.name}={getattr(self, field.name)}"
            for field in fields(self)
            if field.name not in ("arm", "policy", "seed") and getattr(self, field.name) != field.default
        ]
        return " ".join([self.arm, *told])

    @property
    def name(self) -> str:
        """Its directory."""
        return "-".join([self.system.replace(" ", "-").replace("=", "_"), self.policy, str(self.seed)])


def parse_grid(config: AblateConfig) -> list[Cell]:
    """Cells of all lines of `grid`, each a product in Hydra's multirun syntax; no cell twice.

    Raises UserError for a line, axis or value that is not known, and for an empty grid.
    """
    cells: dict[Cell, None] = {}
    for line in config.grid:
        try:
            choices = []
            for override in OverridesParser.create().parse_overrides(shlex.split(line)):
                sweep = override.is_sweep_override()
                values = override.sweep_string_iterator() if sweep else [override.get_value_element_as_str()]
                choices.append([(override.key_or_group, value) for value in values])
        except (HydraException, ValueError) as error:
            raise UserError(f"ablate: grid line '{line}': expected axis=value,value ... ({error})") from error
        for combination in product(*choices):
            cells[_cell(config, dict(combination), line)] = None
    if not cells:
        raise UserError("ablate: grid=[] names no cell; give at least one line, e.g. grid=['arm=real_few,cotrain']")
    return list(cells)


def _cell(config: AblateConfig, values: dict[str, str], line: str) -> Cell:
    axes = {field.name: field for field in fields(Cell)}
    parsed: dict[str, Any] = {}
    for key, text in values.items():
        if key not in axes:
            raise UserError(f"ablate: grid line '{line}': unknown axis '{key}'. {nearest(key, axes)}")
        try:
            parsed[key] = {"int": int, "float": float, "str": str}[str(axes[key].type)](text)
        except ValueError as error:
            raise UserError(f"ablate: grid line '{line}': {key}={text} is not a number") from error
    if "arm" not in parsed:
        raise UserError(f"ablate: grid line '{line}' names no arm; expected arm=... of {', '.join(ARMS)}")
    known: dict[str, Sequence[str]] = {
        "arm": list(ARMS),
        "policy": [*POLICIES, GENERATOR_POLICY],
        "generator_data": GENERATOR_DATA,
        "filter": ["none", *config.filters],
        "weight_by": ["none", *SCORES],
        "finetune": ["default", *config.finetunes],
        "generator_policy": ["default", *config.generator_policies],
    }
    for key, options in known.items():
        if parsed.get(key, options[0]) not in options:
            raise UserError(f"ablate: {key}={parsed[key]} is unknown. {nearest(parsed[key], options)}")
    own = ARMS[parsed["arm"]].generator
    if not own and parsed.get("policy") == GENERATOR_POLICY:
        raise UserError(
            f"ablate: grid line '{line}': policy={GENERATOR_POLICY} is of arm=generator alone; leave it out"
        )
    cell = Cell(**{**parsed, **({"policy": GENERATOR_POLICY} if own else {})})
    for key in ("synthetic_fraction", "finetune_fraction"):
        if not 0 <= (fraction := getattr(cell, key)) <= 1:
            raise UserError(f"ablate: {key}={fraction}: expected a number from 0 to 1")
    steps, share = total_steps(config, cell.policy), cell.finetune_share
    if ARMS[cell.arm].finetuned and not (0 < share < 1 and 1 <= round(share * steps) < steps):
        raise UserError(f"ablate: finetune_share={share} of steps={steps}: both stages need at least one step")
    if min(cell.few, cell.synthetic_per_task) < 1:
        raise UserError(f"ablate: grid line '{line}': few and synthetic_per_task must be at least 1")
    if cell.seed < 0:
        raise UserError(f"ablate: grid line '{line}': seed={cell.seed} is negative")
    return _relevant(config, cell)


def _relevant(config: AblateConfig, cell: Cell) -> Cell:
    """Axes that do not concern the arm at their defaults, so that equal cells are equal."""
    arm, default = ARMS[cell.arm], Cell(cell.arm)
    changes: dict[str, Any] = {}
    if not arm.synthetic:
        changes |= {"synthetic_per_task": default.synthetic_per_task, "weight_by": default.weight_by}
    if not arm.generator:
        changes["generator_policy"] = default.generator_policy
    if not cell.needs_generator and arm.real != "all":
        changes["generator_data"] = default.generator_data
    if arm.real != "few":
        changes["few"] = default.few
    if not arm.synthetic or arm.finetuned or arm.real is None:
        changes["synthetic_fraction"] = default.synthetic_fraction
    if not arm.finetuned:
        changes |= {key: getattr(default, key) for key in ("finetune", "finetune_share", "finetune_fraction")}
    if not arm.filtered:
        changes["filter"] = default.filter
    elif cell.filter == "none":
        if not config.filters:
            raise UserError(f"ablate: arm={cell.arm} needs a filter; filters={{}} names none")
        changes["filter"] = next(iter(config.filters))
    return replace(cell, **changes)


def total_steps(config: AblateConfig, policy: str) -> int:
    """Gradient steps of a policy, the same in every arm."""
    return config.policy_steps.get(policy, config.steps)


def generator_seed(config: AblateConfig, cell: Cell) -> int:
    """Training seed of the generator behind a cell: the policy's seeds go round the generators."""
    return config.generator_seeds[cell.seed % len(config.generator_seeds)]


def generator_name(config: AblateConfig, data: str, seed: int, turn: int | None = None) -> str:
    """What the directories of a generator and its episodes end in, of one of its rounds or the last."""
    turn = turn or config.rounds.get(data, 1)
    return f"{data}_{seed}" + (f"_round_{turn}" if turn > 1 else "")


def generator_stages(config: AblateConfig, root: Path, data: str, seed: int, episodes: int) -> list[Stage]:
    """Train a generator on its data, let it generate, and score what it made.

    In further rounds another one is trained on that and on what was selected of the episodes so far (expert iteration,
    arXiv 1705.08439), and generates from scenes that are new to it.
    """
    single = {"seed": seed, "runtime.threads": config.threads}
    make = [*config.synthesize, *config.synthesize_by_generator_data.get(data, [])]
    stages: list[Stage] = []
    earlier: list[str] = []
    replays: list[str] = []
    for turn in range(1, config.rounds.get(data, 1) + 1):
        name = generator_name(config, data, seed, turn)
        generator, synthetic = str(root / f"generator_{name}/generator"), str(root / f"synthetic_{name}/dataset")
        further: dict[str, Any] = {}
        if earlier:
            first = root / f"generator_{generator_name(config, data, seed, 1)}/generator"
            further = {"synthetic": list(earlier), "notes": list(replays), "select": config.round_select}
            further["tokenizer_from"] = str(first)
        learn = {"dataset": generator_datasets(root, config, data), **EVERY_EPISODE}
        scenes = {
            "checkpoint": generator,
            **world_values(config),
            "tasks": [*config.tasks, *config.new_tasks],
            "episodes_per_task": episodes,
            "first_seed": config.synthetic_seed + (turn - 1) * episodes,
        }
        workers = {"workers": config.workers}
        replay = {**world_values(config), "dataset": synthetic, "workers": config.workers, "seed": seed}
        stages += [
            make_stage(f"generator_{name}", "train-generator", learn, config.train_generator, {**single, **further}),
            make_stage(f"synthetic_{name}", "synthesize", scenes, make, {**single, **workers}),
            make_stage(f"replay_{name}", "replay", replay),
        ]
        earlier.append(synthetic)
        replays.append(str(root / f"replay_{name}"))
    score = {"dataset": synthetic, "checkpoint": generator, "real": generator_datasets(root, config, data), **single}
    return in_turn([*stages, make_stage(f"score_{name}", "score", score)])


def training_alone(stages: Sequence[Stage]) -> list[Stage]:
    """Of the stages of a generator those up to its last training: what it takes for itself to act."""
    last = max(k for k, stage in enumerate(stages) if stage.command == "train-generator")
    return list(stages[: last + 1])


def scored(config: AblateConfig, cell: Cell) -> tuple[str, ...]:
    """The stage after which the episodes of a cell's generator are complete; none where it has none."""
    name = generator_name(config, cell.generator_data, generator_seed(config, cell))
    return (f"score_{name}",) if ARMS[cell.arm].synthetic else ()


def generator_datasets(root: Path, config: AblateConfig, data: str) -> list[str]:
    """Datasets that a generator of this generator_data is trained on."""
    names = ["real_all"] if data == "same_tasks" else [few_dataset(config, config.generator_few), "real_others"]
    return [str(root / name / "dataset") for name in names]


def few_dataset(config: AblateConfig, few: int) -> str:
    """Directory of so many real episodes a task. Larger numbers have one of their own, so that a grid can grow."""
    return "real_few" if few <= config.generator_few else f"real_few_{few}"


def collect_stages(config: AblateConfig, root: Path, cells: Sequence[Cell]) -> list[Stage]:
    """Record what the policies and generators learn from; the few are among all."""
    needed = {cell.generator_data for cell in cells if cell.needs_generator or ARMS[cell.arm].real == "all"}
    counts = {max(cell.few, config.generator_few) for cell in cells if ARMS[cell.arm].real == "few"}
    wanted: list[tuple[str, dict[str, Any]]] = []
    for few in sorted(counts | ({config.generator_few} if "other_tasks" in needed else set())):
        inner = {"tasks": config.tasks, "episodes_per_task": few, "positions": "inner"}
        wanted.append((few_dataset(config, few), inner))
    for data, name, tasks in (
        ("same_tasks", "real_all", [*config.tasks, *config.new_tasks]),
        ("other_tasks", "real_others", [*config.new_tasks, *config.other_tasks]),
    ):
        if data in needed:
            wanted.append((name, {"tasks": tasks, "episodes_per_task": config.real_per_task}))
    seeds = {"first_seed": config.first_seed, "seed": config.seed, **world_values(config)}
    return [make_stage(name, "collect", {**what, **seeds}, config.collect) for name, what in wanted]


def training(config: AblateConfig, cell: Cell, steps: int) -> tuple[list[str], dict[str, Any]]:
    """How the policy of a cell is trained from scratch, whatever on: words, and values that they may not change."""
    words = [f"policy={cell.policy}", *config.train, *config.policy_train.get(cell.policy, [])]
    augment = {"augment": True} if ARMS[cell.arm].augmented else {}
    return words, {"seed": cell.seed, "runtime.threads": config.threads, "optim.steps": steps, **augment}


def generated_data(config: AblateConfig, root: Path, cell: Cell) -> dict[str, Any]:
    """The synthetic episodes of a cell."""
    name = generator_name(config, cell.generator_data, generator_seed(config, cell))
    synthetic = root / f"synthetic_{name}/dataset"
    found: dict[str, Any] = {"synthetic": [str(synthetic)], "synthetic_per_task": cell.synthetic_per_task}
    if ARMS[cell.arm].filtered or cell.weight_by != "none":
        found["notes"] = [str(path) for path in outcome_runs(root, name)]
    if ARMS[cell.arm].filtered:
        found["select"] = config.filters[cell.filter]
    if cell.weight_by != "none":
        found["weight_by"] = cell.weight_by
    if ARMS[cell.arm].shuffled:
        found["shuffle_actions"] = True
    return found


def outcome_runs(root: Path, name: str) -> list[Path]:
    """Directories of what is noted of a generator's episodes."""
    return [root / f"replay_{name}", root / f"score_{name}"]


def tuning_steps(config: AblateConfig, cell: Cell) -> int:
    """Gradient steps of fine-tuning, of all that a policy takes."""
    return round(cell.finetune_share * total_steps(config, cell.policy))


def pretraining_stage(config: AblateConfig, root: Path, cell: Cell) -> Stage:
    """Train on synthetic episodes alone, for every way to fine-tune that a grid names."""
    words, values = training(config, cell, total_steps(config, cell.policy) - tuning_steps(config, cell))
    values |= {**generated_data(config, root, cell), "synthetic_fraction": 1}
    return make_stage(cell.pretraining, "pretrain", {}, words, values, scored(config, cell))


def cell_stages(config: AblateConfig, root: Path, cell: Cell) -> list[Stage]:
    """Train the policy of a cell, from scratch or from its pretraining, and evaluate it; a generator is trained."""
    single, stages, words = {"seed": cell.seed, "runtime.threads": config.threads}, list[Stage](), config.evaluate
    if ARMS[cell.arm].generator:
        needed = f"generator_{generator_name(config, cell.generator_data, generator_seed(config, cell))}"
        checkpoint, words = f"{needed}/generator", [*words, *config.generator_policies.get(cell.generator_policy, [])]
    else:
        stages = [(finetuning_stage if ARMS[cell.arm].finetuned else training_stage)(config, root, cell)]
        needed, checkpoint = stages[0].name, f"{stages[0].name}/pretrained_model"
    where = {
        "checkpoint": str(root / checkpoint),
        **world_values(config),
        "tasks": config.tasks,
        "new_tasks": config.new_tasks,
        "suites": config.suites,
        "episodes_per_task": config.scenes_per_task,
        "positions": "inner",
        "first_seed": config.held_out_seed,
        "arm": cell.arm,
    }
    return [*stages, make_stage(f"{cell.name}/evaluate", "evaluate", where, words, single, [needed])]


def few_data(config: AblateConfig, root: Path, cell: Cell) -> dict[str, Any]:
    """The few real episodes of a cell."""
    return {"real": [str(root / few_dataset(config, cell.few) / "dataset")], "episodes_per_task": cell.few}


def finetuning_stage(config: AblateConfig, root: Path, cell: Cell) -> Stage:
    """Go on from the pretraining of a cell."""
    defaults = {"checkpoint": str(root / cell.pretraining / "pretrained_model"), **few_data(config, root, cell)}
    words = [*config.finetune, *config.policy_finetune.get(cell.policy, []), *config.finetunes.get(cell.finetune, [])]
    values: dict[str, Any] = {"optim.steps": tuning_steps(config, cell), "seed": cell.seed}
    values["runtime.threads"] = config.threads
    if cell.finetune_fraction:
        values |= {**generated_data(config, root, cell), "synthetic_fraction": cell.finetune_fraction}
    return make_stage(f"{cell.name}/finetune", "finetune", defaults, words, values, [cell.pretraining])


def training_stage(config: AblateConfig, root: Path, cell: Cell) -> Stage:
    """Train the policy of a cell from scratch."""
    arm = ARMS[cell.arm]
    words, values = training(config, cell, total_steps(config, cell.policy))
    if arm.real == "few":
        values |= few_data(config, root, cell)
    if arm.real == "all":
        values["real"] = generator_datasets(root, config, cell.generator_data)
        if cell.generator_data == "other_tasks":  # the few get the share that they get beside synthetic episodes
            values["real_shares"] = [1 - cell.synthetic_fraction, cell.synthetic_fraction]
    if arm.synthetic:
        values |= generated_data(config, root, cell)
        values["synthetic_fraction"] = cell.synthetic_fraction if arm.real else 1
    return make_stage(f"{cell.name}/train", "pretrain", {}, words, values, scored(config, cell))
