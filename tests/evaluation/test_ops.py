"""Numbers behind the evaluation: intervals that cover, length control, best of n, classification."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

from stages.ops.best_of_n import best_of_n, kl_of_best_of_n, powers_up_to
from stages.ops.classification import classify
from stages.ops.intervals import bootstrap_mean, outcomes
from stages.ops.length_control import RIDGE, length_controlled_win_rate


def simulated_wins(generator, *, rate, ties, prompts):
    """Scores of a model and its reference such that it wins `rate` of the prompts, ties counting half."""
    drawn = generator.random(prompts)
    won, tied = drawn < rate - ties / 2, (drawn >= rate - ties / 2) & (drawn < rate + ties / 2)
    return outcomes(np.where(won, 2.0, np.where(tied, 1.0, 0.0)), np.ones(prompts))


@pytest.mark.parametrize(("rate", "ties"), [(0.5, 0.2), (0.62, 0.1), (0.75, 0.0)])
def test_the_95_percent_interval_of_a_win_rate_covers_the_truth(rate, ties):
    generator = np.random.default_rng(20260101)
    covered = []
    for run in range(600):
        wins = simulated_wins(generator, rate=rate, ties=ties, prompts=200)
        interval = bootstrap_mean(wins, draws=600, seed=run)
        covered.append(not interval.excludes(rate))

    assert 0.93 <= np.mean(covered) <= 0.97
    # The 200 runs alone, too.
    assert 0.93 <= np.mean(covered[:200]) <= 0.97


def test_an_interval_that_is_too_narrow_would_be_noticed():
    generator = np.random.default_rng(20260101)
    covered = [
        not bootstrap_mean(
            simulated_wins(generator, rate=0.62, ties=0.1, prompts=200), draws=600, confidence=0.85, seed=run
        ).excludes(0.62)
        for run in range(200)
    ]

    assert np.mean(covered) < 0.93


def test_length_control_is_the_ridge_logistic_regression_of_scikit_learn():
    generator = np.random.default_rng(3)
    lengths = generator.normal(5, 30, 250)
    wins = (generator.random(250) < 1 / (1 + np.exp(-0.3 - 0.8 * np.tanh(lengths / 30)))).astype(float)
    features = np.stack([np.ones(250), np.tanh(lengths / lengths.std())], axis=1)
    oracle = LogisticRegression(C=1 / RIDGE, fit_intercept=False, tol=1e-10, max_iter=1000).fit(
        features, wins
    )

    found = length_controlled_win_rate(wins, lengths, draws=100)

    assert found.mean == pytest.approx(1 / (1 + np.exp(-oracle.coef_[0, 0])), abs=1e-6)
    assert found.low < found.mean < found.high


def test_a_model_that_wins_by_length_alone_gets_a_half():
    generator = np.random.default_rng(5)
    # The longer answer wins with chance sigmoid(2 tanh(d / sd)); the model writes 30 tokens more on average.
    lengths = generator.normal(30, 30, 4000)
    spread = lengths.std()
    wins = (generator.random(4000) < 1 / (1 + np.exp(-2 * np.tanh(lengths / spread)))).astype(float)

    found = length_controlled_win_rate(wins, lengths, draws=100)

    assert wins.mean() > 0.7
    assert found.mean == pytest.approx(0.5, abs=0.04)


def test_equal_lengths_leave_the_win_rate_as_it_is():
    # theta solves 200 (0.7 - sigmoid(theta)) = RIDGE theta: 0.7 but for the small penalty.
    wins = np.array([1.0] * 140 + [0.0] * 60)

    found = length_controlled_win_rate(wins, np.zeros(200), draws=100)

    assert found.mean == pytest.approx(0.7, abs=1e-3)


def test_winning_everywhere_stays_a_number():
    found = length_controlled_win_rate(np.ones(20), np.arange(20.0), draws=100)

    assert 0.9 < found.low <= found.mean <= found.high < 1


def test_ties_count_half_in_length_control():
    found = length_controlled_win_rate(np.full(50, 0.5), np.linspace(-9, 9, 50), draws=100)

    assert found.mean == pytest.approx(0.5, abs=1e-9)


def test_the_length_controlled_interval_covers_the_truth():
    covered = []
    generator = np.random.default_rng(11)
    truth = 1 / (1 + np.exp(-0.4))
    for run in range(200):
        lengths = generator.normal(10, 20, 200)
        chance = 1 / (1 + np.exp(-0.4 - 1.2 * np.tanh(lengths / lengths.std())))
        wins = (generator.random(200) < chance).astype(float)
        covered.append(not length_controlled_win_rate(wins, lengths, draws=200, seed=run).excludes(truth))

    assert 0.92 <= np.mean(covered) <= 0.98


@given(
    judged=st.lists(st.integers(0, 4), min_size=5, max_size=5),
    worth=st.lists(st.integers(-5, 5), min_size=5, max_size=5),
    n=st.integers(1, 5),
)
@settings(max_examples=60, deadline=None)
def test_best_of_n_is_the_mean_over_every_choice_of_n_samples(judged, worth, n):
    def chosen(subset):
        best = max(judged[at] for at in subset)
        return np.mean([worth[at] for at in subset if judged[at] == best])

    expected = np.mean([chosen(subset) for subset in combinations(range(5), n)])

    found = best_of_n(np.array([judged], dtype=float), np.array([worth], dtype=float), n)

    assert found[0] == pytest.approx(expected, abs=1e-9)


def test_best_of_n_by_hand():
    judged, worth = np.array([[0.1, 0.9, 0.5]]), np.array([[3.0, 1.0, 2.0]])

    # n = 1: the mean. n = 2: pairs choose 1, 2, 1. n = 3: the judge's favourite, worth 1.
    assert [best_of_n(judged, worth, n)[0] for n in (1, 2, 3)] == pytest.approx([2.0, 4 / 3, 1.0])
    assert powers_up_to(6) == [1, 2, 4, 6]
    assert powers_up_to(8) == [1, 2, 4, 8]
    assert kl_of_best_of_n(1) == 0
    assert kl_of_best_of_n(2) == pytest.approx(np.log(2) - 0.5)


def test_classification_equals_scikit_learn():
    generator = np.random.default_rng(1)
    labels = ["neutral", "negative", "positive", "never said"]
    truth = generator.choice(labels[:3], 200, p=[0.5, 0.3, 0.2]).tolist()
    said = [label if generator.random() < 0.6 else generator.choice(labels[:2]) for label in truth]

    found = classify(truth, said, labels)

    assert (found.confusion == confusion_matrix(truth, said, labels=labels)).all()
    assert found.accuracy == pytest.approx(accuracy_score(truth, said), abs=1e-12)
    columns = precision_recall_fscore_support(truth, said, labels=labels, zero_division=0)
    for name, column in zip(("precision", "recall", "f1", "support"), columns, strict=True):
        assert [getattr(row, name) for row in found.classes] == pytest.approx(list(column), abs=1e-12)
    macro = precision_recall_fscore_support(truth, said, labels=labels, zero_division=0, average="macro")
    assert [found.macro(name) for name in ("precision", "recall", "f1")] == pytest.approx(list(macro[:3]))


def test_a_label_that_is_not_listed_is_refused():
    with pytest.raises(ValueError, match="maybe"):
        classify(["yes"], ["maybe"], ["yes", "no"])
