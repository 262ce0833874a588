"""`vag evaluate`: closed-loop rollouts of a policy on scenes it has not seen, or open-loop errors on a dataset."""

from __future__ import annotations

from functools import partial
from itertools import islice

from policies.checkpoint_config import Loading
from policies.checkpoints import checkpoint_directory
from policies.factory import PolicyObjective
from policies.stock import StockPolicy, load_policy
from recipes.common import Pictures, check_simulated, check_unseen, distinct_tasks, load_clips, pick_device, weights_id
from recipes.policy_schema import EvaluateConfig
from recipes.pretrain import picture_sizes
from toolkit.base.errors import UserError, nearest
from toolkit.base.run import Run
from toolkit.data.conventions import Conventions
from toolkit.data.images import as_size
from toolkit.data.seen_scenes import merge
from toolkit.envs.metaworld import instructions, scene_stream
from toolkit.envs.shifts import SUITES
from toolkit.evaluation.open_loop import open_loop_error
from toolkit.evaluation.rollout import rollout
from toolkit.evaluation.statistics import rollout_rates
from toolkit.reporting.generator_results import Media
from toolkit.reporting.media import grid, write_video
from toolkit.reporting.results import OpenLoop, OpenLoopResult, RolloutResult
from toolkit.training.out_of_memory import one_line_if_full, sampling_advice
from toolkit.training.runtime import seed_everything, set_threads

NUM_SCENES, NUM_STEPS = 20, 32  # that share a prediction, of rollouts and of a dataset
RETUNE = "fine-tune the policy on such data"


def run(config: EvaluateConfig, run: Run) -> RolloutResult | OpenLoopResult:
    """Roll the policy out on every suite; success with Wilson intervals and a video grid."""
    if config.dataset is not None:
        return evaluate_open_loop(config, config.dataset, run)
    tasks = distinct_tasks("evaluate", config.tasks)
    if not config.suites:
        raise UserError(f"evaluate: suites=[] is empty; choose from {', '.join(SUITES)}")
    for suite in config.suites:
        if suite not in SUITES:
            raise UserError(f"evaluate: unknown suite '{suite}'. {nearest(suite, SUITES)}")
        if SUITES[suite].new_tasks and not config.new_tasks:
            raise UserError(
                f"evaluate: suite '{suite}' rolls out on tasks without real episodes; name them: new_tasks=[...]"
            )
    set_threads(config.runtime)
    seed_everything(config.seed)
    loading = Loading.of(config)
    checkpoint = checkpoint_directory(config.checkpoint, loading)
    device = pick_device(config.runtime)
    policy = load_policy(checkpoint, device, loading)
    at_once = 1 if isinstance(policy, StockPolicy) else config.batch_size or NUM_SCENES
    identity = weights_id(checkpoint)
    run.add_data(config.checkpoint, identity)
    check_simulated(checkpoint, remedy=RETUNE)
    if isinstance(policy, PolicyObjective):
        policy.check_instructions([instructions()[task] for task in tasks if task in instructions()])
    own = {suite: SUITES[suite].positions for suite in config.suites}
    positions = {suite: config.positions if where == "all" else where for suite, where in own.items()}
    scenes = {
        suite: {
            task: list(islice(scene_stream(task, config.first_seed, positions[suite]), config.episodes_per_task))
            for task in (distinct_tasks("evaluate", config.new_tasks) if SUITES[suite].new_tasks else tasks)
        }
        for suite in config.suites
    }
    seen = check_unseen("evaluate", str(checkpoint), merge(*scenes.values()), config.allow_seen)
    media, suites = [], {}
    for suite in config.suites:
        with one_line_if_full(device, partial(sampling_advice, size=at_once)):
            rollouts = rollout(
                policy,
                scenes[suite],
                max_steps=config.max_steps,
                image_size=as_size(config.image_size or list(policy.picture_size), "image_size"),
                suite=SUITES[suite],
                record_first=3,
                num_envs=at_once,
                seed=config.seed,
            )
        suites[suite] = rollout_rates([(r.task, r.seed, bool(r.success)) for r in rollouts])
        videos = [r.frames for r in rollouts if r.frames is not None]
        if videos:
            path = f"media/{suite}.mp4"
            write_video(run.directory / path, grid(videos, columns=6), fps=20)
            media.append(Media(path=path, caption=f"{suite}: the first rollouts of each task"))
    return RolloutResult(
        policy=policy.policy_type,
        checkpoint_id=identity,
        arm=config.arm,
        seen_scenes=seen,
        suites=suites,
        media=media,
    )


def evaluate_open_loop(config: EvaluateConfig, dataset: str, run: Run) -> OpenLoopResult:
    """Compare predicted with recorded actions: for robots that have no simulator."""
    set_threads(config.runtime)
    seed_everything(config.seed)
    loading = Loading.of(config)
    checkpoint = checkpoint_directory(config.checkpoint, loading)
    device = pick_device(config.runtime)
    policy = load_policy(checkpoint, device, loading)
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
        return (
            f"{who} open loop: action distance {error.action_distance:.4f}, of this checkpoint "
            f"[{error.low:.4f}, {error.high:.4f}] over {error.n} episodes; their mean action {error.mean:.4f}"
        )
    return "; ".join(
        f"{who} {name}: {rate.successes}/{rate.n}, of this checkpoint [{rate.low:.2f}, {rate.high:.2f}]"
        for name, rate in result.suites.items()
    )
