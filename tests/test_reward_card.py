"""The report card against scikit-learn, and what it calls out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, brier_score_loss, precision_recall_fscore_support, roc_auc_score
from sklearn.metrics import log_loss as sklearn_log_loss

from pipeline.errors import ModelError
from reward.card import ScoredPair, headline, human_ceiling, length_wins, report_card
from reward.card_table import card_table
from reward.metrics import (
    brier,
    calibration_bins,
    coverage_curve,
    expected_calibration_error,
    fitted_temperature,
    log_loss,
    pair_wins,
    precision_recall_f1,
    roc_auc,
    sigmoid,
    wilson_interval,
)
from reward.spread import spread_report

GAPS = np.random.default_rng(0).normal(0.4, 1.3, 301)
SCORES = np.round(np.random.default_rng(1).normal(0, 1, (200, 2)) + np.array([0.5, 0]), 1)


def scored(gap, **changes):
    return ScoredPair(
        **{"chosen_score": gap, "rejected_score": 0.0, "chosen_length": 10, "rejected_length": 10} | changes
    )


def test_accuracy_brier_and_log_loss_equal_scikit_learn():
    labels, probabilities = np.ones(len(GAPS)), sigmoid(GAPS)
    # both directions of each pair, so that both classes occur
    both, both_p = np.r_[labels, 1 - labels], np.r_[probabilities, 1 - probabilities]

    assert pair_wins(GAPS) / len(GAPS) == pytest.approx(accuracy_score(both, both_p > 0.5), abs=1e-9)
    assert brier(GAPS, labels) == pytest.approx(brier_score_loss(both, both_p), abs=1e-9)
    assert log_loss(GAPS, labels) == pytest.approx(sklearn_log_loss(both, both_p), abs=1e-9)


def test_auc_with_equal_scores_equals_scikit_learn():
    chosen, rejected = SCORES[:, 0], SCORES[:, 1]
    labels = np.r_[np.ones(200), np.zeros(200)]

    assert roc_auc(chosen, rejected) == pytest.approx(
        roc_auc_score(labels, np.r_[chosen, rejected]), abs=1e-9
    )
    assert math.isnan(roc_auc(chosen, np.array([])))


def test_precision_recall_and_f1_equal_scikit_learn():
    labels, predicted = SCORES[:, 0] > 0, SCORES[:, 1] > 0.3
    expected = precision_recall_fscore_support(labels, predicted, average="binary")[:3]

    assert precision_recall_f1(labels, predicted) == pytest.approx(expected, abs=1e-9)
    assert precision_recall_f1(np.array([False]), np.array([False])) == (0.0, 0.0, 0.0)


def test_calibration_error_over_equal_mass_equals_scikit_learns_curve():
    gaps = GAPS[:300]  # 15 bins of 20
    confidence, right = sigmoid(np.abs(gaps)), gaps > 0
    accuracy, mean_confidence = calibration_curve(right, confidence, n_bins=15, strategy="quantile")

    assert expected_calibration_error(gaps) == pytest.approx(
        np.abs(accuracy - mean_confidence).mean(), abs=1e-9
    )
    assert [b["accuracy"] for b in calibration_bins(gaps)] == pytest.approx(list(accuracy), abs=1e-9)


def test_wilson_equals_scipy():
    for wins, total in ((0, 5), (37, 60), (60, 60), (1, 1)):
        interval = binomtest(wins, total).proportion_ci(method="wilson")
        assert wilson_interval(wins, total) == pytest.approx((interval.low, interval.high), abs=1e-9)
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_the_temperature_minimises_the_log_loss():
    shares = np.clip(sigmoid(GAPS / 3) + 0.05, 0, 1)
    best = minimize_scalar(
        lambda t: log_loss(GAPS / t, shares), bounds=(0.1, 30), method="bounded", options={"xatol": 1e-10}
    )

    assert fitted_temperature(GAPS, shares) == pytest.approx(best.x, rel=1e-5)


def test_no_temperature_mends_gaps_that_are_all_wrong_or_all_right():
    assert fitted_temperature(np.array([-1.0, -2.0]), np.ones(2)) == math.inf
    assert fitted_temperature(np.array([1.0, 2.0]), np.ones(2)) == 0.0


def test_the_coverage_curve_by_hand():
    gaps = np.array([3.0, -2.0, 1.0, -0.5])
    # surest half: 3 right, -2 wrong
    curve = coverage_curve(gaps, shares=(1.0, 0.5, 0.25))

    assert [point["accuracy"] for point in curve] == [0.5, 0.5, 1.0]


def test_soft_labels_by_hand():
    # gap 0 gives p = 0.5: Brier against 0.75 is 1/16, log-loss is ln 2
    gaps, shares = np.zeros(3), np.full(3, 0.75)

    assert brier(gaps, shares) == 1 / 16
    assert log_loss(gaps, shares) == pytest.approx(math.log(2), abs=1e-12)


def test_the_card_of_four_pairs_by_hand():
    pairs = [
        scored(2.0, chosen_length=20, share=1.0, majority=1.0),
        scored(-1.0, chosen_length=5, share=0.7, majority=0.0),
        scored(0.0, share=0.6),
        scored(5.0, share=0.5),  # a tie: not in the accuracy
    ]

    card = report_card(pairs)

    assert card["num_pairs"] == 3
    assert card["num_ties"] == 1
    # one win, one loss, one equal score
    assert card["accuracy"] == 0.5
    # longer is chosen once, shorter once, equal once
    assert card["floors"] == {"chance": 0.5, "length": 0.5, "majority": 0.5}
    assert card["margins"]["mean"] == 1.5
    assert card["by_vote_share"]["1"]["accuracy"] == 1.0
    assert card["by_vote_share"]["0.6-0.8"]["accuracy"] == 0.0
    assert card["by_vote_share"]["0.5-0.6"]["accuracy"] == 0.5
    assert card["length"]["longer_is_right"]["num_pairs"] == 1
    assert headline(card)["length_floor"] == 0.5


def test_the_length_floor_takes_its_direction_from_training():
    pairs = [scored(1.0, chosen_length=20), scored(1.0, chosen_length=20), scored(1.0, chosen_length=5)]

    assert report_card(pairs, longer_is_better=True)["floors"]["length"] == pytest.approx(2 / 3)
    assert report_card(pairs, longer_is_better=False)["floors"]["length"] == pytest.approx(1 / 3)
    assert length_wins([(2, 1), (1, 1)]) == 0.75


def test_the_human_ceiling_by_hand():
    # 3 of 4 for chosen: each of the three sees 2 to 1 among the others and agrees; the fourth sees 3 to 0
    assert human_ceiling([scored(1.0, share=0.75, votes=4)]) == 0.75
    # 2 of 3: each of the two sees 1 to 1, a coin; the third disagrees: (2 * 0.5 + 0) / 3
    assert human_ceiling([scored(1.0, share=2 / 3, votes=3)]) == pytest.approx(1 / 3)
    assert math.isnan(human_ceiling([scored(1.0)]))


def test_a_model_that_reads_length_only_is_flagged():
    rng = np.random.default_rng(3)
    lengths = rng.integers(1, 100, (60, 2))
    by_length = [scored(float(a - b), chosen_length=int(a), rejected_length=int(b)) for a, b in lengths]
    honest = [scored(float(rng.normal(2)), chosen_length=int(a), rejected_length=int(b)) for a, b in lengths]

    assert any("reads length" in flag for flag in report_card(by_length)["flags"])
    assert not any("reads length" in flag for flag in report_card(honest)["flags"])


def test_a_model_no_better_than_its_floors_is_flagged():
    assert "floor" in report_card([scored(1.0), scored(-1.0)])["flags"][0]
    assert "no decided pair" in report_card([])["flags"][0]


def test_a_score_that_is_no_number_stops_the_card():
    with pytest.raises(ModelError, match="1 of 2 pairs"):
        report_card([scored(1.0), scored(float("nan"))])


def test_the_spread_of_two_members_by_hand():
    # pairs: both right and apart by 2; both wrong and apart by 4; divided, mean right, apart by 4
    gaps = np.array([[3.0, -1.0, 3.0], [1.0, -5.0, -1.0]])

    report = spread_report(gaps)

    # population standard deviation of two numbers is half their distance
    assert report["spread"] == pytest.approx((1 + 2 + 2) / 3)
    assert report["spread_right"] == pytest.approx((1 + 2) / 2)
    assert report["spread_wrong"] == pytest.approx(2.0)
    assert report["accuracies"] == [pytest.approx(2 / 3), pytest.approx(1 / 3)]
    assert report["united"] == pytest.approx(2 / 3)
    assert report["accuracy_united"] == pytest.approx(0.5)
    assert report["accuracy_divided"] == 1.0
    # the wrong pair's 2 beats one right pair's 1 and equals the other's 2
    assert report["error_auc"] == pytest.approx(0.75)
    with pytest.raises(ValueError, match="two members"):
        spread_report(gaps[:1])


def test_accuracy_by_subset_and_by_annotator_by_hand():
    pairs = [
        ScoredPair(2, 1, 5, 5, subset="chat", judges=(("ann", 1.0), ("bob", 0.0))),
        ScoredPair(1, 2, 5, 5, subset="chat", judges=(("ann", 1.0),)),
        ScoredPair(3, 1, 5, 5, subset="code", judges=(("bob", 1.0), ("cy", 0.5))),
        ScoredPair(1, 1, 5, 5, share=0.5, judges=(("bob", 0.0),)),
    ]

    card = report_card(pairs)

    assert {name: part["accuracy"] for name, part in card["by_subset"].items()} == {"chat": 0.5, "code": 1.0}
    # bob: against the model, with it, and a pair that the model scores alike
    assert card["by_annotator"]["ann"] == {"accuracy": 0.5, "num_pairs": 2} | {
        key: card["by_annotator"]["ann"][key] for key in ("accuracy_low", "accuracy_high")
    }
    assert card["by_annotator"]["bob"]["accuracy"] == pytest.approx(1.5 / 3)
    assert "cy" not in card["by_annotator"]
    names = [row[0] for row in card_table(card)["rows"]]
    assert {"accuracy, subset code", "accuracy, by bob"} <= set(names)


def test_the_share_of_the_ceiling_by_hand():
    # three judges, two for chosen: each of the two meets an even rest (half), the third is alone
    pairs = [ScoredPair(2, 1, 5, 5, share=2 / 3, votes=3), ScoredPair(2, 1, 5, 5, share=1.0, votes=3)]

    card = report_card(pairs)

    # ceiling (2 * 0.5 + 0 + 3) / 6 = 2/3; accuracy 1: (1 - 1/2) / (2/3 - 1/2) = 3
    assert card["ceiling"] == pytest.approx(2 / 3)
    assert card["of_ceiling"] == pytest.approx(3.0)


def test_the_temperature_is_scikit_learns_slope_without_an_offset():
    rng = np.random.default_rng(5)
    gaps = rng.normal(0.4, 2.0, 400)
    labels = rng.random(400) < 1 / (1 + np.exp(-gaps / 2.5))

    slope = LogisticRegression(C=1e12, fit_intercept=False, tol=1e-10, max_iter=1000).fit(
        gaps[:, None], labels
    )

    assert fitted_temperature(gaps, labels.astype(float)) == pytest.approx(1 / slope.coef_[0, 0], rel=1e-4)
