"""The result of an evaluation and its confidence intervals."""

from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from shortcutrl._typed import show, typed
from shortcutrl._types import Number
from shortcutrl.evaluate._spaces import as_numbers

RESAMPLES = 9_999


class Evaluation(NamedTuple):
    """What happened in each episode, in the order of their seeds: arrays of length `episodes`.

    - `success`: whether it succeeded.
    - `episode_return`: the sum of its rewards, not discounted.
    - `episode_length`: its decisions; in [`ChunkedActions`][shortcutrl.evaluate.ChunkedActions] each is several steps.
    """

    success: np.ndarray
    episode_return: np.ndarray
    episode_length: np.ndarray

    @property
    def success_rate(self) -> float:
        """The share of episodes that succeeded, in [0, 1]."""
        success = _vector("success", self.success)
        if not ((success == 0) | (success == 1)).all():
            raise ValueError(f"`success` must be 0 or 1 for each episode, got {show(self.success)}.")
        return float(success.mean())

    @typed
    def success_interval(self, confidence: Number = 0.95) -> tuple[float, float]:
        """Wilson's interval for the success rate. `confidence` is in (0, 1)."""
        confidence = _as_confidence(confidence)
        n, rate = len(self.success), self.success_rate
        z = NormalDist().inv_cdf((1 + confidence) / 2)
        centre = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z / (1 + z**2 / n) * np.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
        return (0.0 if rate == 0 else float(centre - half)), (1.0 if rate == 1 else float(centre + half))

    @typed
    def return_interval(self, confidence: Number = 0.95) -> tuple[float, float]:
        """The percentile bootstrap interval for the mean return; `confidence` is in (0, 1). NaN with one episode.

        The resamples have a fixed seed, so the same returns have the same interval.
        """
        confidence = _as_confidence(confidence)
        returns, rng = _vector("episode_return", self.episode_return), np.random.default_rng(0)
        if len(returns) == 1:
            return float("nan"), float("nan")
        means = [returns[rng.integers(0, len(returns), len(returns))].mean() for _ in range(RESAMPLES)]
        low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
        return float(low), float(high)


def _as_confidence(confidence: Number) -> float:
    if not (confidence > 0 and (1 + float(confidence)) / 2 < 1):  # in float64, too
        raise ValueError(f"`confidence` must be between 0 and 1, such as 0.95, got {show(confidence)}.")
    return float(confidence)


def _vector(name: str, values: np.ndarray) -> np.ndarray:
    array = as_numbers(values)
    if array is None or array.ndim != 1 or array.size == 0:
        raise ValueError(f"`{name}` must be an array of shape (episodes,) of numbers, got {show(values)}.")
    return array
