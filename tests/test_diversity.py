"""Distinct n-grams and repetition, counted by hand."""

from __future__ import annotations

import pytest

from stages.ops.diversity import distinct_n, ngrams, repetition


def test_runs_of_two():
    assert ngrams([1, 2, 3], 2) == [(1, 2), (2, 3)]
    assert ngrams([1], 2) == []


def test_distinct_counts_over_all_responses_together():
    # 12 23 | 12 24: three different of four.
    assert distinct_n([[1, 2, 3], [1, 2, 4]], 2) == pytest.approx(3 / 4)


def test_repetition_is_the_mean_share_inside_a_response():
    # 11 11 11: one different of three, so 2/3 are repeats; 12 23: none. Mean 1/3.
    assert repetition([[1, 1, 1, 1], [1, 2, 3]], 2) == pytest.approx(1 / 3)


def test_responses_shorter_than_n_count_nothing():
    assert distinct_n([[1]], 2) == 0.0
    assert repetition([[1]], 2) == 0.0
    assert repetition([], 2) == 0.0
