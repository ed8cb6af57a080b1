"""Confidence intervals of means, all at 95 %."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

Interval = tuple[float, float]
_RESAMPLES = 10_000
_STATISTIC_RESAMPLES = 2_000  # each is kept whole, since a statistic may need all values at once


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Student's interval of the mean of n values, with n - 1 degrees of freedom; None if n < 2."""
    if len(values) < 2:
        return None
    half = float(stdtrit(len(values) - 1, 0.975) * np.std(values, ddof=1)) / len(values) ** 0.5
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def difference_interval(first: Sequence[float], second: Sequence[float]) -> Interval | None:
    """Welch's interval of the difference of means, first minus second; None if one has fewer than two values.

    Written out because ``scipy.stats.ttest_ind`` warns where all values of one side are equal, which is no fault here.
    """
    if min(len(first), len(second)) < 2:
        return None
    parts = [float(np.var(values, ddof=1)) / len(values) for values in (first, second)]
    difference, variance = float(np.mean(first) - np.mean(second)), sum(parts)
    if variance == 0:
        return difference, difference
    degrees = variance**2 / sum(part**2 / (len(v) - 1) for part, v in zip(parts, (first, second), strict=True))
    half = float(stdtrit(degrees, 0.975)) * variance**0.5
    return difference - half, difference + half


def bootstrap(samples: Sequence[NDArray[np.float64]], seed: int = 0) -> Interval | None:
    """Bootstrap interval of the mean of the samples' means; None if one has only one value.

    Args:
        samples: values of each sample, each [n]; every sample is resampled on its own.
        seed: of the resampling, so that the same values always give the same interval.
    """
    if any(len(sample) < 2 for sample in samples):
        return None
    rng = np.random.default_rng(seed)
    means = np.mean([rng.choice(sample, (_RESAMPLES, len(sample))).mean(1) for sample in samples], 0)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def interquartile_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the mean of the middle half of the values, [..., n] -> [...] (Agarwal et al. 2021, section 4.3).

    A quarter of the values, rounded down, is left out at either end: single tasks that are solved or lost move it less
    than the mean, and it needs fewer episodes than the median.
    """
    cut = values.shape[-1] // 4
    return np.sort(values, -1)[..., cut : values.shape[-1] - cut].mean(-1)


def resampled_interval(
    samples: Sequence[NDArray[np.float64]], statistic: Callable[[list[NDArray[np.float64]]], NDArray[np.float64]]
) -> Interval | None:
    """Bootstrap interval of any statistic of several samples; None if one has only one value.

    Args:
        samples: values of each sample, each [n]; every sample is resampled on its own, always by the same draws.
        statistic: from resampled samples, each [resamples, n], to [resamples].
    """
    if any(len(sample) < 2 for sample in samples):
        return None
    rng = np.random.default_rng(0)
    drawn = [sample[rng.integers(len(sample), size=(_STATISTIC_RESAMPLES, len(sample)))] for sample in samples]
    low, high = np.percentile(statistic(drawn), [2.5, 97.5])
    return float(low), float(high)


def format_interval(interval: Interval | None) -> str:
    """``[low, high]`` with one decimal; ``-`` if unknown."""
    return f"[{interval[0]:.1f}, {interval[1]:.1f}]" if interval else "-"
