"""Confidence intervals of means, all at 95 %."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]
_RESAMPLES = 10_000


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Student's interval of the mean of n values, with n - 1 degrees of freedom; None if n < 2."""
    from scipy.stats import t  # half a second, which only reports need

    if len(values) < 2:
        return None
    half = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1)) / len(values) ** 0.5
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def difference_interval(first: Sequence[float], second: Sequence[float]) -> Interval | None:
    """Welch's interval of the difference of means, first minus second; None if one has fewer than two values."""
    from scipy.stats import ttest_ind

    if min(len(first), len(second)) < 2:
        return None
    if np.ptp(first) == 0 and np.ptp(second) == 0:  # no variance: Welch's degrees of freedom are not defined
        difference = float(first[0] - second[0])
        return difference, difference
    interval = ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    return float(interval.low), float(interval.high)


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


def format_interval(interval: Interval | None) -> str:
    """``[low, high]`` with one decimal; ``-`` if unknown."""
    return f"[{interval[0]:.1f}, {interval[1]:.1f}]" if interval else "-"
