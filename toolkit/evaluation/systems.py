"""What is known of systems beyond the checkpoints at hand: training runs, and generators behind them, are clusters.

Outcomes are (runs, scenes): a run is one training, and all runs meet the same scenes. Two kinds of interval come of
them, both 95 %:

- of systems: what another training (with another generator, where there is one) would give on other scenes. Runs that
  share a generator are one cluster. It takes FEWEST_CLUSTERS of them; with fewer there is none, and a note says why.
- of these checkpoints: over scenes alone. It knows nothing of another training.

For means and differences the interval of systems is a t interval over clusters, joined with one over scenes: half of
its width is sqrt(t_K^2 V_K + t_S^2 V_S), with V_K the variance of the mean between clusters (of a difference the sum of
both sides', its degrees of freedom by Welch 1947; by pairs where both sides come of the same clusters) and V_S that
between scenes. Quantiles are joined, not variances under one quantile (Satterthwaite), which covers .91 for 3
generators behind 4 runs. For quantities that are no means it is a percentile bootstrap over whole clusters and scenes,
from BOOTSTRAP_CLUSTERS on: with 3 clusters it covers .87.

Coverage, measured with training seeds and generators that differ by .10 each, 30 to 300 scenes, 3,000 studies: rates
.947 to .988 for 3 to 12 clusters, differences .946 to .988, the bootstrap of a ratio of differences .945 for 12. With 2
generators behind 3 runs a bootstrap over runs and scenes covers .79 of rates and .87 of differences, and a t interval
over the two is 1.4 wide.
`tests/toolkit/test_systems.py` asks for .93 or more of each kind.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from scipy import stats

from toolkit.evaluation.statistics import wilson_interval

FEWEST_CLUSTERS = 3
BOOTSTRAP_CLUSTERS = 12
HOW_TO_READ = (
    "95 %. low and high are of systems: what another training, with another generator where there is one, would give "
    "on other scenes; a t interval over generators, or training seeds where there is none, and over scenes. They are "
    f"null where fewer than {FEWEST_CLUSTERS} were trained, {BOOTSTRAP_CLUSTERS} for what is no mean (then a "
    "bootstrap): the note of a row says so. low_these_checkpoints and high_these_checkpoints are over scenes alone and "
    "know nothing of another training: Wilson's interval of a rate by the design effect of shared scenes, a t interval "
    "of other means and of differences, a bootstrap of the rest. p_these_checkpoints is of a permutation over scenes: "
    "no test of systems, and not corrected for the number of comparisons"
)
NO_BOUNDS = (None, None)
Bounds = tuple[float, float] | tuple[None, None]


@dataclass(frozen=True, eq=False)
class Trained:
    """A system as it was measured: outcomes (runs, scenes), of success 0 or 1.

    clusters: of each run what it shares with others, such as the generator behind it. Runs with the same label are one
    cluster; two systems with the same labels are paired. None: every run was trained apart.
    Raises ValueError unless outcomes are a matrix with a label for each run.
    """

    outcomes: np.ndarray
    clusters: Sequence[Hashable] | None = None

    def __post_init__(self) -> None:
        if self.outcomes.ndim != 2 or 0 in self.outcomes.shape:
            raise ValueError(f"expected outcomes (runs, scenes), got {self.outcomes.shape}")
        if self.clusters is not None and len(self.clusters) != len(self.outcomes):
            raise ValueError(f"{len(self.clusters)} clusters of {len(self.outcomes)} runs")

    @property
    def mean(self) -> float:
        return float(self.outcomes.mean())

    @property
    def runs_by_cluster(self) -> dict[Hashable, list[int]]:
        found: dict[Hashable, list[int]] = {}
        for run in range(len(self.outcomes)):
            found.setdefault(run if self.clusters is None else self.clusters[run], []).append(run)
        return found


def measured_success(system: Trained) -> dict[str, Any]:
    """Success as a row of a record has it: value, both intervals, n, the number of seeds; a note if one is lacking."""
    rate, scenes = system.mean, scene_rate_interval(system.outcomes)
    bounds = _interval(rate, [system], system.outcomes.mean(0), (0, 1))
    if bounds[0] is not None:  # where all runs are alike they alone would leave no doubt
        bounds = (min(bounds[0], scenes[0]), max(bounds[1], scenes[1]))
    return {
        "value": rate,
        **_told(bounds, scenes, [system]),
        "n": system.outcomes.size,
        "seeds": len(system.outcomes),
    }


def measured_mean(system: Trained) -> dict[str, Any]:
    """The same of outcomes of any scale."""
    by_scene = system.outcomes.mean(0)
    told = _told(_interval(system.mean, [system], by_scene), scene_mean_interval(by_scene), [system])
    return {"value": system.mean, **told, "n": system.outcomes.size, "seeds": len(system.outcomes)}


def compare_success(first: Trained, second: Trained, *, permutations: int = 1999) -> dict[str, Any]:
    """First minus second on the same scenes: difference, both intervals, and p of these checkpoints.

    p_these_checkpoints is that of a permutation over scenes, within each of which the two are exchanged: a test of
    these checkpoints, not of systems, for one run each that of McNemar (1947). Raises ValueError for other scenes.
    """
    by_scene = _by_scene(first, second)
    difference = first.mean - second.mean
    softened = np.append(by_scene, [1, -1])  # one more scene for either (Bonett and Price 2012): no certainty of a few
    low, high = scene_mean_interval(softened)
    scenes = (_within(low, (-1, 1)), _within(high, (-1, 1)))
    bounds = _interval(difference, [first, second], softened, (-1, 1))
    p = {"p_these_checkpoints": permutation_p(by_scene, permutations)}
    return {"difference": difference, **_told(bounds, scenes, [first, second]), **p}


def compare_means(first: Trained, second: Trained) -> dict[str, Any]:
    """The same of outcomes of any scale, without a test."""
    by_scene = _by_scene(first, second)
    difference = first.mean - second.mean
    bounds = _interval(difference, [first, second], by_scene)
    return {"difference": difference, **_told(bounds, scene_mean_interval(by_scene), [first, second])}


def measured_quantity(
    systems: Sequence[Trained], quantity: Callable[[np.ndarray], np.ndarray], *, resamples: int = 10_000, seed: int = 0
) -> dict[str, Any]:
    """What follows from the means of several systems on the same scenes: value, and both intervals by bootstrap.

    quantity: means (N, systems) -> (N,); resamples in which it is NaN are left out.
    """
    value = float(quantity(np.array([[system.mean for system in systems]]))[0])
    kinds = [False] + [True] * (_fewest_clusters(systems) >= BOOTSTRAP_CLUSTERS)
    scenes, *bounds = (
        percentile_bounds(quantity(bootstrap_means(systems, trained_anew=kind, resamples=resamples, seed=seed)))
        for kind in kinds
    )
    return {"value": value, **_told(bounds[0] if bounds else NO_BOUNDS, scenes, systems, BOOTSTRAP_CLUSTERS)}


def bootstrap_means(
    systems: Sequence[Trained], *, trained_anew: bool, resamples: int = 10_000, seed: int = 0
) -> np.ndarray:
    """Mean outcome of each system in many resamples (Efron 1979) of the scenes that all share: (resamples, systems).

    trained_anew: clusters are drawn too, with all their runs (Davison and Hinkley 1997, section 3.8), for systems with
    the same clusters together, for others apart. Raises ValueError unless all have equally many scenes.
    """
    counts = {system.outcomes.shape[1] for system in systems}
    if len(counts) != 1:
        raise ValueError(f"expected outcomes (runs, scenes) of the same scenes, got {sorted(counts)} of them")
    rng, scenes = np.random.default_rng(seed), counts.pop()
    means = np.empty((resamples, len(systems)))
    for block in np.array_split(means, -(-resamples // 500)):
        drawn = rng.integers(scenes, size=(len(block), scenes))
        clusters: dict[Hashable, np.ndarray] = {}  # labels of a system: how often each is drawn, (block, labels)
        for i, system in enumerate(systems):
            runs = list(system.runs_by_cluster.values())
            labels = i if system.clusters is None else frozenset(system.runs_by_cluster)
            weights = np.ones((len(block), len(runs)))
            if trained_anew:
                if labels not in clusters:
                    clusters[labels] = rng.multinomial(len(runs), weights[0] / len(runs), size=len(block)).astype(float)
                weights = clusters[labels]
            sums = weights @ np.stack([system.outcomes[some].sum(0) for some in runs])  # (block, scenes)
            size = weights @ np.array([len(some) for some in runs])
            block[:, i] = np.take_along_axis(sums, drawn, axis=1).mean(1) / size
    return means


def percentile_bounds(values: np.ndarray) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantile of what is not NaN (Efron 1979)."""
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)


def scene_rate_interval(outcomes: np.ndarray) -> tuple[float, float]:
    """Of these checkpoints: Wilson's interval for as many trials as runs on shared scenes are worth.

    (runs, scenes), scenes being what was drawn: n is divided by the design effect, from 1 where outcomes of a scene
    have nothing in common to the number of runs where they are alike (Franco et al. 2019). One run: Wilson's own.
    """
    rate, runs = float(outcomes.mean()), len(outcomes)
    effect = float(runs)
    if 0 < rate < 1:
        effect = float(np.clip(runs * outcomes.mean(0).var() / (rate * (1 - rate)), 1, runs))
    n = outcomes.size / effect
    return wilson_interval(rate * n, n)


def scene_mean_interval(by_scene: np.ndarray) -> Bounds:
    """Of these checkpoints: a t interval (Student 1908) over values of scenes; none for a single scene."""
    if len(by_scene) < 2:
        return NO_BOUNDS
    half = _t(len(by_scene) - 1) * by_scene.std(ddof=1) / np.sqrt(len(by_scene))
    return float(by_scene.mean() - half), float(by_scene.mean() + half)


def permutation_p(by_scene: np.ndarray, permutations: int = 1999) -> float:
    """Two-sided p that the differences (scenes,) of exchangeable sides are so far from 0: signs are drawn anew."""
    if not by_scene.any():
        return 1.0
    found = stats.permutation_test(
        (by_scene,), np.mean, vectorized=True, permutation_type="samples", n_resamples=permutations, random_state=0
    )
    return float(found.pvalue)


def _interval(
    value: float, systems: Sequence[Trained], by_scene: np.ndarray, limits: tuple[float, float] = (-np.inf, np.inf)
) -> Bounds:
    """The t interval of systems around a value, of one or of the difference of two; none with too few clusters."""
    scenes = len(by_scene)
    if _fewest_clusters(systems) < FEWEST_CLUSTERS or scenes < 2:
        return NO_BOUNDS
    deviations, factors = [_deviations(system) for system in systems], list(map(_unbiased, systems))
    if (
        len(systems) == 2
        and all(s.clusters is not None for s in systems)
        and deviations[0].keys() == deviations[1].keys()
    ):
        first, second = deviations
        deviations, factors = [{label: first[label] - second[label] for label in first}], [max(factors)]
    parts = [
        (factor * sum(v**2 for v in found.values()), len(found) - 1)
        for factor, found in zip(factors, deviations, strict=True)
    ]
    between = sum(variance for variance, _ in parts)
    freedom = between**2 / sum(variance**2 / df for variance, df in parts) if between > 0 else parts[0][1]
    half = np.sqrt(_t(round(freedom, 2)) ** 2 * between + _t(scenes - 1) ** 2 * by_scene.var(ddof=1) / scenes)
    return _within(value - half, limits), _within(value + half, limits)


def _deviations(system: Trained) -> dict[Hashable, float]:
    """By cluster how far it pulls the mean: its share of the runs times its mean's distance from that of all."""
    means = system.outcomes.mean(1)
    return {
        label: float(len(runs) / len(means) * (means[runs].mean() - means.mean()))
        for label, runs in system.runs_by_cluster.items()
    }


def _unbiased(system: Trained) -> float:
    """What the sum of the squared `_deviations` is multiplied by to be the variance of the mean between clusters.

    K / (K - 1) of K clusters with as many runs each. More where one has most of the runs: it pulls the mean, from
    which it then hardly differs.
    """
    shares = np.array([len(runs) for runs in system.runs_by_cluster.values()]) / len(system.outcomes)
    squares = (shares**2).sum()
    return float(squares / (squares - 2 * (shares**3).sum() + squares**2))


def _fewest_clusters(systems: Sequence[Trained]) -> int:
    return min(len(system.runs_by_cluster) for system in systems)


def _told(bounds: Bounds, scenes: Bounds, systems: Sequence[Trained], needed: int = FEWEST_CLUSTERS) -> dict[str, Any]:
    """Both intervals under the names of a record, and where that of systems is lacking, why."""
    told: dict[str, Any] = dict(
        zip(("low", "high", "low_these_checkpoints", "high_these_checkpoints"), (*bounds, *scenes), strict=True)
    )
    if bounds[0] is None:
        fewest = min(systems, key=lambda system: len(system.runs_by_cluster))
        clusters, runs = len(fewest.runs_by_cluster), len(fewest.outcomes)
        what = (
            f"{clusters} generator{'s' * (clusters > 1)} behind {runs} training runs"
            if clusters < runs
            else (f"{runs} training run{'s' * (runs > 1)}")
        )
        told["note"] = f"no interval of systems: {what}, it takes {needed}"
        if clusters >= needed:
            told["note"] = "no interval of systems: a single scene"
    return told


def _by_scene(first: Trained, second: Trained) -> np.ndarray:
    """First minus second, the mean over runs: (scenes,)."""
    if first.outcomes.shape[1] != second.outcomes.shape[1]:
        shapes = (first.outcomes.shape, second.outcomes.shape)
        raise ValueError(f"expected outcomes (runs, scenes) of the same scenes, got {shapes[0]} and {shapes[1]}")
    by_scene: np.ndarray = first.outcomes.mean(0) - second.outcomes.mean(0)
    return by_scene


def _within(value: float | None, limits: tuple[float, float]) -> float:
    assert value is not None
    return float(np.clip(value, *limits))


@cache
def _t(freedom: float) -> float:
    """Half of the width of a 95 % interval in standard errors (Student 1908)."""
    return float(stats.t.isf(0.025, freedom))
