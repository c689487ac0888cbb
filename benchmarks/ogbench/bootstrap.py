"""Statistics of several seeds on several tasks, with stratified bootstrap intervals.

Source: the recommendations of Agarwal and others (arXiv 2108.13264).
"""

from collections.abc import Callable

import numpy as np
from scipy.stats import trim_mean

Statistic = Callable[[list[np.ndarray]], np.ndarray]
"""A function of the runs of several tasks: one array for each task, whose last axis is the seeds."""


def mean(tasks: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(tasks, axis=-1).mean(axis=-1)


def iqm(tasks: list[np.ndarray]) -> np.ndarray:
    """The mean of the middle half: robust against outliers, and efficient with few runs."""
    return trim_mean(np.concatenate(tasks, axis=-1), 0.25, axis=-1)


def improvement(tasks: list[np.ndarray]) -> np.ndarray:
    """How likely a run of x succeeds more often than one of y on the same task; ties count half. Tasks of x, then y."""
    half = len(tasks) // 2
    signs = [np.sign(x[..., None] - y[..., None, :]) for x, y in zip(tasks[:half], tasks[half:], strict=True)]
    return np.mean([(1 + sign.mean(axis=(-2, -1))) / 2 for sign in signs], axis=0)


def interval(
    tasks: list[np.ndarray], statistic: Statistic, resamples: int, confidence: float = 0.95
) -> tuple[float, float]:
    """The percentile bootstrap of a statistic of all runs, which resamples the seeds within each task.

    NaN if a task has only one seed, because resampling it does not vary.
    """
    if min(map(len, tasks)) < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng(0)
    draws = [task[rng.integers(len(task), size=(resamples, len(task)))] for task in tasks]
    low, high = np.quantile(statistic(draws), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
