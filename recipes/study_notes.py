"""What a reader of a study needs to judge its numbers: the notes of its record."""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path

from recipes.common import scenes_text
from recipes.stages import finished_result
from recipes.study import ARMS, GENERATOR_POLICY, Cell, generator_name, generator_seed, total_steps
from recipes.study_schema import AblateConfig
from toolkit.base.record import read_record
from toolkit.envs.shifts import SUITES
from toolkit.evaluation.statistics import (
    design_power,
    two_proportion_sample_size,
)
from toolkit.evaluation.systems import FEWEST_CLUSTERS, HOW_TO_READ
from toolkit.reporting.generator_results import SynthesizeResult

FILTER_NOTE = (
    "how many of the synthetic episodes succeed when replayed, of the given share of each task with the best of a "
    "score: the least, or for score_nearest the farthest from any real episode, since that filter is there against "
    "copies. The kept ones are nested parts of one set, so overlapping intervals are no test. Where several plans were "
    "tried in the simulator, it has chosen before"
)


def power_sentence(config: AblateConfig, cells: Sequence[Cell]) -> str:
    few, many = config.gap
    needed = two_proportion_sample_size(few, many, config.power)
    tasks = min(len(config.new_tasks if SUITES[suite].new_tasks else config.tasks) for suite in config.suites)
    scenes = config.scenes_per_task * tasks  # of the suite that has the fewest
    trained: dict[Cell, set[int]] = {}  # seeds of the generators of a cell, of its policies where it has none
    for cell in cells:
        trained.setdefault(cell.group, set()).add(generator_seed(config, cell) if cell.needs_generator else cell.seed)
    seeds = min(map(len, trained.values()))  # of the arm that has the fewest
    found = design_power(few, many, scenes, seeds, config.seed_deviation)
    lacking = f". No interval of systems of that arm: it takes {FEWEST_CLUSTERS}" if seeds < FEWEST_CLUSTERS else ""
    return (
        f"to tell {few} from {many} apart with power {config.power} takes {needed} independent rollouts an arm; "
        f"{scenes} scenes x {seeds} training seeds, of generators where policies share them, have power {found:.2f} if "
        f"the rate differs by {config.seed_deviation} from seed to seed{lacking}"
    )


def describe_training(config: AblateConfig, policy: str) -> str:
    """Overrides of a policy's training; of those for the same key the last one, which counts."""
    words = [f"optim.steps={total_steps(config, policy)}", *config.train, *config.policy_train.get(policy, [])]
    return " ".join([policy, *{word.partition("=")[0]: word for word in words}.values()])


def describe_commits(root: Path, cells: Sequence[Cell]) -> str:
    """Which commit trained the policies: of each kind, and of which arms where they differ."""
    commits: dict[str, dict[str, dict[str, None]]] = {}  # policy: commit: systems
    for cell in cells:
        stages = [cell.pretraining, f"{cell.name}/finetune"] if ARMS[cell.arm].finetuned else [f"{cell.name}/train"]
        for trained in (root / stage for stage in stages):
            if (trained / "run.json").exists():
                sha = read_record(trained)["git_sha"]
                commits.setdefault(cell.policy, {}).setdefault(sha, {})[cell.system] = None
    return "; ".join(
        f"{policy} trained by commit {sha}" + (f": {', '.join(systems)}" if len(found) > 1 else "")
        for policy, found in commits.items()
        for sha, systems in found.items()
    )


def describe_draws(config: AblateConfig, root: Path, cells: Sequence[Cell]) -> str:
    """How many scenes the first plan of each generator solves and how many all of its draws; empty without draws."""
    found = []
    for data, seed in dict.fromkeys((c.generator_data, generator_seed(config, c)) for c in cells if c.needs_generator):
        for turn in range(1, config.rounds.get(data, 1) + 1):
            directory = root / f"synthetic_{generator_name(config, data, seed, turn)}"
            result = finished_result(directory, SynthesizeResult)
            if result is not None and (solved := result.solved_by_draw):
                tries = sum(result.episodes - done for done in [0, *solved[:-1]])
                which = f"generator_data={data} generator={seed}" + (
                    f" round={turn}" if config.rounds.get(data, 1) > 1 else ""
                )
                found.append(
                    f"{which}: {solved[0]} of {result.episodes} scenes by the first, {solved[-1]} by one of "
                    f"{len(solved)}, {tries:,} tries"
                )
    return "; ".join(found)


def notes(
    config: AblateConfig, cells: Sequence[Cell], failed: Sequence[str], metrics: Container[str]
) -> dict[str, str]:
    """What a reader needs to judge the numbers, of the `metrics` that the rows have."""
    generators = dict.fromkeys(cell.generator_data for cell in cells if cell.needs_generator)
    measured = [cell for cell in cells if cell.name not in failed]
    trained = [cell.policy for cell in cells if cell.policy != GENERATOR_POLICY]
    default, used = Cell("cotrain"), sorted({cell.filter for cell in cells} - {"none"})
    found = {
        "arms": f"where their names say nothing else, with few={default.few} real episodes a task, "
        f"synthetic_per_task={default.synthetic_per_task} synthetic ones, synthetic_fraction="
        f"{default.synthetic_fraction} of the clips while both take part",
        "scenes": scenes_text(config.suites, config.scenes_per_task, config.tasks, config.new_tasks)
        + f"; all from seed {config.held_out_seed} on, the same for all cells, with the same noise for those of one "
        "training seed. Objects stand where those of the few real episodes may, in `position` where they may not",
        "intervals": HOW_TO_READ,
        "training": f"{config.real_per_task} real episodes a task are all. The same in every arm: "
        + "; ".join(describe_training(config, p) for p in dict.fromkeys(trained)),
        "power": power_sentence(config, cells),
    }
    if any(ARMS[cell.arm].real == "few" for cell in cells):
        found["real episodes"] = "the few are the same for all seeds: what other ones would give, no interval knows"
    if generators:
        seeds = {cell.seed for cell in cells if cell.needs_generator}
        count = len({generator_seed(config, cell) for cell in cells if cell.needs_generator})
        found["generators"] = f"{count} behind {len(seeds)} training seeds of the policies" + (
            ": too few for an interval of systems of what they taught" if count < FEWEST_CLUSTERS else ""
        )
    if "gap_closed" in metrics:
        found["gap_closed"] = (
            "(system - real_few) / (real_all - real_few), told where that gap is surely above 0 for these checkpoints"
        )
    if "real_per_synthetic" in metrics:
        found["exchange"] = exchange_note(config, measured)
    if config.new_tasks:
        found["new tasks"] = (
            f"of {', '.join(config.new_tasks)} the policies get no real episode, but in real_all, which holds all "
            "that the generator has seen; synthetic ones as of the others"
        )
    if any(ARMS[cell.arm].finetuned for cell in cells):
        found["fine-tuning"] = " ".join(config.finetune)
    if used:
        found["filters"] = "; ".join(f"{name}: {' and '.join(config.filters[name])}" for name in used)
    if acting := {cell.generator_policy for cell in cells if ARMS[cell.arm].generator}:
        ways = {"default": [], **config.generator_policies}
        found["generators as policies"] = (
            "in arm=generator nothing is trained but the generator, which acts itself; "
            + ("; ".join(f"{name}: {' '.join(ways[name]) or 'whole plans or samples'}" for name in sorted(acting)))
        )
    if config.evaluate:
        found["rollouts"] = " ".join(config.evaluate)
    found |= {f"generator trained on {data}": generator_note(config, data) for data in generators}
    if failed:
        found["failed"] = ", ".join(failed)
    return found


def exchange_note(config: AblateConfig, measured: Sequence[Cell]) -> str:
    """How to read `real_per_synthetic` and `net_real_episodes`."""
    curve = {cell.few for cell in measured if cell.arm == "real_few"}
    curve |= {
        config.real_per_task for cell in measured if (cell.arm, cell.generator_data) == ("real_all", "same_tasks")
    }
    return (
        "a synthetic episode is worth real_per_synthetic real ones if what its generator saw is free; it is also "
        "the break-even cost: a synthetic one, generated and chosen, pays off if it costs less than so many real "
        "ones; no upper bound is known where at_end_of_curve. All that were generated are counted, those that a "
        "filter drops too. net_real_episodes: what all synthetic ones of a task are worth, less what the generator "
        f"has seen of it beyond the policy's own. Read off a curve through {' and '.join(map(str, sorted(curve)))} "
        "real episodes a task, straight in the logarithm of their number, which no interval covers; where these "
        "are all, their objects stand anywhere. It ends there, so with generator_data=same_tasks no more than "
        f"{max(curve) - config.real_per_task} net_real_episodes can be found"
    )


def generator_note(config: AblateConfig, data: str) -> str:
    """What a generator of this generator_data has seen, and how it generates."""
    everything, others = [*config.tasks, *config.new_tasks], [*config.new_tasks, *config.other_tasks]
    episodes = {"same_tasks": f"{config.real_per_task} real episodes of each of {', '.join(everything)}"}
    episodes["other_tasks"] = f"{config.generator_few} real episodes of each of {', '.join(config.tasks)}"
    if others:
        episodes["other_tasks"] += f", {config.real_per_task} of each of {', '.join(others)}"
    seen = f"has seen {episodes[data]}"
    if (rounds := config.rounds.get(data, 1)) > 1:
        chosen = f" with {' and '.join(config.round_select)}" if config.round_select else ""
        seen += (
            f"; after round 1 also its earlier episodes{chosen}, in {rounds} rounds. Each round generates from new "
            "scenes; policies get episodes of the last"
        )
    if make := [*config.synthesize, *config.synthesize_by_generator_data.get(data, [])]:
        seen += f". Generates with {' '.join(make)}"
    return seen
