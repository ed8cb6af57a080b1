"""Scores, intervals and comparisons."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdmpc2.play.evaluation import Evaluation, compare
from tdmpc2.support.intervals import bootstrap, interquartile_mean, resampled_interval
from tests.helpers.playing import MIXED, fake
from tests.helpers.reference import shared_file

episode_scores = st.lists(st.floats(0, 1000), min_size=2, max_size=12)


# Scores


def test_score_of_tasks_follows_their_scale() -> None:
    walker, reach = MIXED.tasks
    np.testing.assert_array_equal(walker.scores, [50, 70])  # return / 10
    np.testing.assert_array_equal(reach.scores, [100, 0])  # 100 x success; the return does not count
    assert MIXED.normalized_score == pytest.approx((60 + 50) / 2)


def test_score_weighs_tasks_equally() -> None:
    result = fake(("walker-walk", [1000.0] * 9, [0.0] * 9), ("cup-spin", [0.0], [0.0]))
    assert result.normalized_score == pytest.approx(50)


def test_score_of_published_returns_is_the_published_one() -> None:
    with shared_file("golden/published_fp16_returns.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 30
    returns = {row.pop("task"): [float(value) for value in row.values()] for row in rows}
    result = fake(*((task, values, [0.0] * len(values)) for task, values in returns.items()))
    assert result.normalized_score == pytest.approx(30.7, abs=0.05)
    low, high = result.interval or (0, 0)
    assert (low, high) == (pytest.approx(26.9, abs=1), pytest.approx(34.2, abs=1))


# The bootstrap


@given(samples=st.lists(episode_scores, min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_bootstrap_interval_is_ordered_and_holds_the_mean(samples: list[list[float]]) -> None:
    arrays = [np.array(sample) for sample in samples]
    low, high = bootstrap(arrays) or (np.inf, -np.inf)
    mean, slack = np.mean([sample.mean() for sample in arrays]), 1e-9 * (1 + max(map(np.max, arrays)))
    assert low <= high
    assert np.mean([sample.min() for sample in arrays]) - slack <= low
    assert high <= np.mean([sample.max() for sample in arrays]) + slack
    spread = max(np.ptp(sample) for sample in arrays)
    assert low - 0.1 * spread - slack <= mean <= high + 0.1 * spread + slack


@given(sample=episode_scores, shift=st.floats(-100, 100), factor=st.floats(0.1, 10))
@settings(max_examples=15, deadline=None)
def test_bootstrap_interval_moves_with_scores(sample: list[float], shift: float, factor: float) -> None:
    before = np.array(bootstrap([np.array(sample)]))
    after = np.array(bootstrap([factor * np.array(sample) + shift]))
    np.testing.assert_allclose(after, factor * before + shift, rtol=1e-9, atol=1e-6)


def test_bootstrap_interval_of_known_data_is_right() -> None:
    """The interval of a mean of n normal values is close to 1.96 standard errors on either side."""
    sample = np.random.default_rng(0).normal(50, 10, 400)
    low, high = bootstrap([sample]) or (0, 0)
    error = 1.96 * sample.std() / 20
    assert low == pytest.approx(sample.mean() - error, abs=0.05)
    assert high == pytest.approx(sample.mean() + error, abs=0.05)
    low, high = bootstrap([sample, sample]) or (0, 0)
    assert high - low == pytest.approx(2 * error / np.sqrt(2), abs=0.05)  # tasks are resampled on their own


def test_bootstrap_interval_covers_truth_as_often_as_stated() -> None:
    rng = np.random.default_rng(1)
    intervals = [bootstrap([rng.normal(0, 1, 30)], seed=i) or (0, 0) for i in range(200)]
    covered = np.mean([low <= 0 <= high for low, high in intervals])
    assert 0.88 <= covered <= 0.98


def test_bootstrap_interval_of_one_episode_is_unknown() -> None:
    samples = [np.random.default_rng(0).normal(size=10), np.array([0.0, 3.0])]
    assert bootstrap(samples) == bootstrap(samples)
    assert bootstrap(samples) != bootstrap(samples, seed=1)
    assert bootstrap([*samples, np.array([3.0])]) is None
    assert fake(("cup-spin", [3.0], [0.0])).interval is None
    assert bootstrap([np.full(5, 7.0)]) == (7, 7)


# Comparison


def test_compare_pairs_episodes() -> None:
    """Episodes of equal seeds are paired, so a constant difference is certain however much the episodes vary."""
    first = fake(("walker-walk", [900.0, 100.0, 500.0], [0.0] * 3))
    second = fake(("walker-walk", [850.0, 50.0, 450.0], [0.0] * 3))
    difference, interval = compare(first, second)
    assert difference == pytest.approx(5)
    assert interval == (pytest.approx(5), pytest.approx(5))
    assert compare(second, first)[0] == pytest.approx(-5)


def test_compare_of_success_tasks_uses_successes() -> None:
    first = fake(("mw-reach", [0.0, 0.0], [1.0, 1.0]))
    second = fake(("mw-reach", [9.0, 9.0], [1.0, 0.0]))
    assert compare(first, second) == (50, (0, 100))


@pytest.mark.parametrize(
    "other",
    [
        fake(("walker-run", [1.0, 2.0], [0.0, 0.0])),
        fake(("walker-walk", [1.0, 2.0], [0.0, 0.0]), seed=7),
        fake(("walker-walk", [1.0], [0.0])),
        MIXED,
    ],
)
def test_compare_of_other_episodes_is_refused(other: Evaluation) -> None:
    with pytest.raises(ValueError, match="same tasks and seeds"):
        compare(fake(("walker-walk", [1.0, 2.0], [0.0, 0.0])), other)


def test_compare_without_interval_gives_difference() -> None:
    assert compare(fake(("cup-spin", [30.0], [0.0])), fake(("cup-spin", [10.0], [0.0]))) == (2, None)


# Summaries over many tasks

# 12 tasks, 6 episodes each; rliable 1.2.0 gives 49.58333 and, from 20,000 resamples, [40.14, 59.08]
MANY = list((np.arange(72) * 37 % 101).reshape(6, 12).astype(float).T)


def test_interquartile_mean_equals_that_of_rliable() -> None:
    assert interquartile_mean(np.concatenate(MANY)) == pytest.approx(49.58333, abs=1e-5)


def test_interquartile_mean_interval_is_that_of_rliable() -> None:
    interval = resampled_interval(MANY, lambda drawn: interquartile_mean(np.concatenate(drawn, -1)))
    assert interval == pytest.approx((40.14, 59.08), abs=0.6)  # two standard errors of 2,000 resamples


def test_interquartile_mean_of_few_values_is_their_mean() -> None:
    assert interquartile_mean(np.array([1.0, 2.0, 6.0])) == 3


def test_resampled_interval_of_single_values_is_none() -> None:
    assert resampled_interval([np.array([1.0])], lambda drawn: drawn[0].mean(-1)) is None


def test_aggregates_of_six_tasks_leave_out_the_best_of_the_worst() -> None:
    names = ("walker-walk", "walker-run", "walker-stand", "cup-spin", "cup-catch", "pendulum-spin")
    result = fake(*((name, [100.0 * i, 100.0 * i], [0.0, 0.0]) for i, name in enumerate(names)))
    middle, worst = result.aggregates
    assert worst.name == "mean of the five worst tasks"
    assert worst.value == pytest.approx(20)  # 0, 10, 20, 30, 40; not 50
    assert worst.interval == pytest.approx((20, 20))
    assert middle.value == pytest.approx(25)  # 12 values: three left out at either end


def test_aggregates_of_few_tasks_are_none() -> None:
    assert MIXED.aggregates == ()
