"""Statistics over runs: interquartile means, bootstrap intervals, probability of improvement.

Source of all three: Agarwal et al. 2021, arXiv 2108.13264.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def interquartile_mean(scores: np.ndarray) -> float:
    """Mean of the middle half of all scores `(runs, tasks)`. Source: Agarwal et al. 2021, arXiv 2108.13264."""
    ordered = np.sort(scores, axis=None)
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def stratified_bootstrap(
    scores: np.ndarray,
    statistic: Callable[[np.ndarray], float],
    confidence: float = 0.95,
    seed: int = 0,
    samples: int = 2000,
) -> tuple[float, float]:
    """Interval (low, high) of a statistic, from runs drawn anew within each task (percentile bootstrap).

    Source: Agarwal et al. 2021, arXiv 2108.13264.

    Args:
        scores: `(runs, tasks)`; a run is what would be repeated, here a pretraining seed.
        statistic: Of scores `(runs, tasks)`, for example `interquartile_mean`.
        confidence: Share of the drawn statistics between low and high.
        seed: Of the draws.
        samples: How often the runs are drawn.
    """
    generator = np.random.default_rng(seed)
    drawn = [
        statistic(np.take_along_axis(scores, generator.integers(len(scores), size=scores.shape), axis=0))
        for _ in range(samples)
    ]
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def probability_of_improvement(x: np.ndarray, y: np.ndarray) -> float:
    """Probability that a run of x scores above a run of y on a task drawn at random, a tie counting half.

    Source: Agarwal et al. 2021, arXiv 2108.13264.

    Args:
        x: `(runs, tasks)`.
        y: `(runs, tasks)`, the same tasks, any number of runs.
    """
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(f"both need scores (runs, tasks) of the same tasks, got shapes {x.shape} and {y.shape}")
    return float((1 + np.sign(x[:, None] - y[None])).mean() / 2)


def wilson_interval(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share, 95 % by default (Wilson 1927); (NaN, NaN) of no trials."""
    if trials == 0:
        return float("nan"), float("nan")
    share, spread = successes / trials, z * z / trials
    middle = share + spread / 2
    width = z * np.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    return float((middle - width) / (1 + spread)), float((middle + width) / (1 + spread))
