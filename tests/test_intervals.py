"""Bootstrap intervals, worked by hand or against the exact distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stages.ops.intervals import bootstrap_mean, mean_by_prompt, outcomes


def test_equal_values_leave_no_room():
    interval = bootstrap_mean(np.full(7, 0.25))

    assert (interval.mean, interval.low, interval.high) == (0.25, 0.25, 0.25)


def test_two_values_give_the_exact_resampling_distribution():
    # Two draws from {0, 1}: means 0, 1/2, 1 with 1/4, 1/2, 1/4. The middle half is [0, 1] at its edges,
    # the middle 40 % lies inside the atom at 1/2.
    values = np.array([0.0, 1.0])

    assert bootstrap_mean(values, draws=20_000, confidence=0.95).low == 0.0
    assert bootstrap_mean(values, draws=20_000, confidence=0.95).high == 1.0
    assert bootstrap_mean(values, draws=20_000, confidence=0.4).low == 0.5
    assert bootstrap_mean(values, draws=20_000, confidence=0.4).high == 0.5


def test_the_interval_of_many_values_is_the_normal_one():
    # 200 zeros and 200 ones: standard error sqrt(1/4 / 400) = 0.025, so 1/2 +- 1.96 * 0.025 = [0.451, 0.549].
    values = np.repeat([0.0, 1.0], 200)
    interval = bootstrap_mean(values, draws=20_000)

    assert interval.mean == 0.5
    assert interval.low == pytest.approx(0.451, abs=0.003)
    assert interval.high == pytest.approx(0.549, abs=0.003)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    # 400 samples of 50 standard normal numbers, 90 % intervals: 360 are to cover 0, standard deviation 6.
    generator = np.random.default_rng(1)
    covered = sum(
        not bootstrap_mean(generator.normal(size=50), draws=500, confidence=0.9, seed=i).excludes(0.0)
        for i in range(400)
    )

    assert 335 <= covered <= 385


def test_the_same_seed_gives_the_same_interval_whatever_the_blocks(monkeypatch):
    values = np.random.default_rng(0).normal(size=20)
    whole = bootstrap_mean(values, draws=300, seed=5)
    monkeypatch.setattr("stages.ops.intervals.BLOCK", 45)

    assert bootstrap_mean(values, draws=300, seed=5) == whole
    assert bootstrap_mean(values, draws=300, seed=6) != whole


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([], id="none"),
        pytest.param([0.0, math.nan], id="nan"),
        pytest.param([[1.0, 2.0]], id="two axes"),
    ],
)
def test_values_without_a_mean_are_refused(values):
    with pytest.raises(ValueError, match="finite numbers"):
        bootstrap_mean(np.array(values))


def test_wins_count_one_ties_half_losses_nothing():
    wins = outcomes(np.array([0.3, 0.5, 0.9]), np.array([0.5, 0.5, 0.5]))

    assert wins.tolist() == [0.0, 0.5, 1.0]
    assert bootstrap_mean(wins).mean == 0.5


def test_a_model_against_itself_wins_half():
    scores = np.random.default_rng(0).random((9, 2))

    assert bootstrap_mean(mean_by_prompt(outcomes(scores, scores))).mean == 0.5


def test_samples_of_a_prompt_are_averaged_before_anything_is_drawn():
    assert mean_by_prompt(np.array([[0.0, 1.0], [1.0, 1.0]])).tolist() == [0.5, 1.0]
