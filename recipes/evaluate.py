"""`vag evaluate`: closed-loop rollouts of a policy on scenes it has not seen, or open-loop errors on a dataset."""

from __future__ import annotations

from functools import partial
from itertools import islice

from policies.checkpoint_config import Loading
from policies.checkpoints import checkpoint_directory
from policies.factory import PolicyObjective
from policies.stock import StockPolicy
from policies.vag_policy.objective import GeneratorObjective
from recipes.common import Pictures, check_unseen, load_clips, pick_device, weights_id
from recipes.policy_schema import EvaluateConfig
from recipes.pretrain import picture_sizes
from recipes.rollouts import RETUNE, Roller, load, roll_out_all
from recipes.sharding import gpus_of, process_count
from recipes.worlds import check_suites, tasks_in, world_of
from toolkit.base.engine import open_engine
from toolkit.base.errors import UserError
from toolkit.base.run import Run
from toolkit.data.conventions import Conventions
from toolkit.data.images import as_size
from toolkit.data.seen_scenes import merge
from toolkit.envs.base import World
from toolkit.envs.shifts import Suite
from toolkit.evaluation.open_loop import open_loop_error
from toolkit.evaluation.statistics import rollout_rates
from toolkit.reporting.generator_results import Media
from toolkit.reporting.media import grid, write_video
from toolkit.reporting.results import OpenLoop, OpenLoopResult, RolloutResult
from toolkit.training.out_of_memory import one_line_if_full, sampling_advice
from toolkit.training.runtime import seed_everything, set_threads

NUM_STEPS = 32  # of a dataset that share a prediction


def run(config: EvaluateConfig, run: Run) -> RolloutResult | OpenLoopResult:
    """Roll the policy out on every suite; success with Wilson intervals and a video grid."""
    if config.dataset is not None:
        return evaluate_open_loop(config, config.dataset, run)
    world = world_of(config)
    tasks = tasks_in("evaluate", config.tasks, world)
    check_suites("evaluate", config.suites, world, config.new_tasks)
    asked = {suite: world.suites[suite] for suite in config.suites}
    new = tasks_in("evaluate", config.new_tasks, world, "new_tasks") if any(s.new_tasks for s in asked.values()) else []
    engine = open_engine(
        config.engine, run.directory, process_count(config.workers, config.runtime), gpus_of(config.runtime)
    )
    roller = Roller(config)
    policy, identity = roller.policy, weights_id(roller.checkpoint)
    run.add_data(config.checkpoint, identity)
    if isinstance(policy, PolicyObjective):
        policy.check_instructions([world.instruction(task) for task in [*tasks, *new]])
    scenes = {name: scenes_in(config, world, suite, new if suite.new_tasks else tasks) for name, suite in asked.items()}
    named = [{world.scene_name(task): seeds for task, seeds in part.items()} for part in scenes.values()]
    seen = check_unseen("evaluate", str(roller.checkpoint), merge(*named), config.allow_seen)
    media, suites = [], {}
    for suite, rollouts in roll_out_all(roller, scenes, engine):
        suites[suite] = rollout_rates([(r.task, r.seed, bool(r.success)) for r in rollouts])
        videos = [r.frames for r in rollouts if r.frames is not None]
        if videos:
            path = f"media/{suite}.mp4"
            write_video(run.directory / path, grid(videos, columns=6), fps=20)
            below = ", below each what the generator imagined" if imagines(policy) else ""
            media.append(Media(path=path, caption=f"{suite}: the first rollouts of each task{below}"))
    return RolloutResult(
        policy=policy.policy_type,
        checkpoint_id=identity,
        arm=config.arm,
        seen_scenes=seen,
        suites=suites,
        media=media,
    )


def imagines(policy: PolicyObjective | StockPolicy) -> bool:
    """Whether a policy keeps the pictures that it predicts."""
    return isinstance(policy, GeneratorObjective) and policy.config.save_predicted_video


def scenes_in(config: EvaluateConfig, world: World, suite: Suite, tasks: list[str]) -> dict[str, list[int]]:
    """Seeds of the scenes of each task in a suite."""
    where = config.positions if suite.positions == "all" else suite.positions
    wanted = config.episodes_per_task
    return {task: list(islice(world.scene_stream(task, config.first_seed, where), wanted)) for task in tasks}


def evaluate_open_loop(config: EvaluateConfig, dataset: str, run: Run) -> OpenLoopResult:
    """Compare predicted with recorded actions: for robots that have no simulator."""
    if config.engine.kind != "local":
        raise UserError(
            f"engine.kind={config.engine.kind}: errors on dataset= are measured by this process; leave it out"
        )
    set_threads(config.runtime)
    seed_everything(config.seed)
    checkpoint = checkpoint_directory(config.checkpoint, Loading.of(config))
    device = pick_device(config.runtime)
    policy = load(config, checkpoint, device)
    at_once = 1 if isinstance(policy, StockPolicy) else config.batch_size or NUM_STEPS
    identity = weights_id(checkpoint)
    run.add_data(config.checkpoint, identity)
    trained = Conventions.of(checkpoint)
    size = picture_sizes(policy, trained)
    if config.image_size is not None:
        size = as_size(config.image_size, "image_size")
    cameras = trained.cameras_of(config.cameras)
    if trained.canvas is None and len(policy.cameras) > 1:
        cameras = config.cameras or policy.cameras
    store = load_clips(run, dataset, Pictures(size, cameras, config.rename, config.frame_storage))
    trained.check(store, remedy=RETUNE)
    if isinstance(policy, PolicyObjective):
        policy.check_instructions(store.tasks)
    with one_line_if_full(device, partial(sampling_advice, size=at_once)):
        error = open_loop_error(policy, store, policy.n_action_steps, at_once, config.seed)
    return OpenLoopResult(
        policy=policy.policy_type, checkpoint_id=identity, arm=config.arm, open_loop=OpenLoop(**error)
    )


def summary(result: RolloutResult | OpenLoopResult) -> str:
    who = f"{result.policy} {result.arm}"
    if isinstance(result, OpenLoopResult):
        error = result.open_loop
        interval = f"of this checkpoint [{error.low:.4f}, {error.high:.4f}] over {error.n} episodes"
        return (
            f"{who} open loop: action distance {error.action_distance:.4f}, "
            f"{interval if error.n > 1 else 'of one episode: no interval'}; their mean action {error.mean:.4f}"
        )
    return "; ".join(
        f"{who} {name}: {rate.successes}/{rate.n}, of this checkpoint [{rate.low:.2f}, {rate.high:.2f}]"
        for name, rate in result.suites.items()
    )
