"""Agreement statistics against published examples, hand-worked numbers and a real corpus of votes."""

from __future__ import annotations

import gzip
import json
import time
from typing import Any

import numpy as np
import pytest

from reward.preferences import agreement as stats
from reward.preferences.checks.pair_graph import strong_components, three_cycles
from reward.preferences.significance import (
    benjamini_hochberg,
    binomial_at_least,
    binomial_at_most,
    binomial_two_sided,
    robust_scale,
    two_proportions,
    wilson,
)
from tests.realdata import find_realdata

# Krippendorff, Computing Krippendorff's Alpha-Reliability (2011): four observers, twelve units.
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]


def published_counts() -> stats.Counts:
    votes = [(unit, value) for row in OBSERVERS for unit, value in enumerate(row) if value is not None]
    return stats.count([unit for unit, _ in votes], [value for _, value in votes])


@pytest.mark.parametrize(("metric", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_is_that_of_the_published_example(metric: stats.Metric, alpha: float) -> None:
    found = stats.krippendorff_alpha(published_counts(), metric)

    assert found == pytest.approx(alpha, abs=5e-4)


def test_an_item_with_one_vote_says_nothing() -> None:
    # The published example has one such unit, the last; without it the number is the same.
    counts = published_counts()

    assert len(counts.table) == 11
    alone = stats.count([0, 0, 1], [1, 1, 0])
    assert stats.raw_agreement(alone) == 1.0
    assert len(alone.table) == 1


def test_fleiss_kappa_is_that_of_the_published_example() -> None:
    # Fleiss (1971) as it is usually reprinted: 10 subjects, 14 raters, 5 categories, kappa 0.210.
    rows = "0 0 0 0 14|0 2 6 4 2|0 0 3 5 6|0 3 9 2 0|2 2 8 1 1"
    rows += "|7 7 0 0 0|3 2 6 3 0|2 5 3 2 2|6 5 2 1 0|0 2 2 3 7"
    table = np.array([[int(value) for value in row.split()] for row in rows.split("|")])

    kappa, raters = stats.fleiss_kappa(stats.Counts(table, np.arange(5)))

    assert raters == 14
    assert kappa == pytest.approx(0.210, abs=5e-4)


def test_cohen_kappa_of_a_two_by_two_table() -> None:
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: p = 0.7, chance = 0.5 * 0.6 + 0.5 * 0.4 = 0.5.
    first = [1] * 25 + [0] * 25
    second = [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15

    assert stats.cohen_kappa(first, second) == pytest.approx(0.4)


def test_raw_agreement_and_chance_by_hand() -> None:
    # Item 0: a a b -> 1 of 3 pairs agree; item 1: b b -> 1 of 1. Together 2 of 4.
    counts = stats.count([0, 0, 0, 1, 1], [1, 1, 0, 0, 0])

    assert stats.raw_agreement(counts) == 0.5
    # Five votes, 2 a and 3 b: (2 * 1 + 3 * 2) / (5 * 4).
    assert stats.chance_agreement(counts) == pytest.approx(0.4)
    assert stats.unanimous_share(counts) == 0.5


def test_alpha_is_one_when_all_agree_and_nothing_when_nothing_varies() -> None:
    assert stats.krippendorff_alpha(stats.count([0, 0, 1, 1], [1, 1, 0, 0])) == 1.0
    assert stats.krippendorff_alpha(stats.count([0, 0, 1, 1], [1, 1, 1, 1])) is None
    assert stats.krippendorff_alpha(stats.count([], [])) is None


def test_the_ceiling_leaves_out_votes_whose_others_are_split() -> None:
    # Item 0: 1 1 0. For each 1 the others are {1, 0}, split; for the 0 the others say 1: disagrees.
    # Item 1: 1 1 1: three times agrees.
    ballots = stats.Ballots(np.array([0, 0, 0, 1, 1, 1]), np.arange(6), np.array([1, 1, 0, 1, 1, 1]))

    assert stats.agrees_with_others(ballots).tolist() == [-1, -1, 0, 1, 1, 1]
    assert stats.human_ceiling(ballots) == (0.75, 4)


def test_rater_pairs_need_enough_items_in_common() -> None:
    items = np.repeat(np.arange(12), 2)
    people = np.tile([7, 3], 12)
    values = np.array([1, 1] * 9 + [1, 0] * 3)

    (found,) = stats.rater_pairs(stats.Ballots(items, people, values), min_items=10)

    assert (found.first, found.second, found.num_items) == (3, 7, 12)
    assert found.agreement == 0.75
    assert stats.rater_pairs(stats.Ballots(items, people, values), min_items=13) == []


def test_the_interval_holds_the_value_and_narrows_with_items() -> None:
    rng = np.random.default_rng(1)

    def interval(num_items: int) -> stats.Estimate:
        truth = rng.integers(0, 2, num_items)
        flips = rng.random((num_items, 3)) < 0.2
        items = np.repeat(np.arange(num_items), 3)
        found = stats.alpha_interval(stats.count(items, (truth[:, None] ^ flips).ravel()))
        assert found is not None
        return found

    few, many = interval(100), interval(1600)
    for found in (few, many):
        assert found.low < found.value < found.high
    # Sixteen times the items: about a quarter of the width.
    assert 2.5 < (few.high - few.low) / (many.high - many.low) < 6


def test_binomial_tails_by_hand() -> None:
    # Five tosses: P(X <= 1) = (1 + 5) / 32.
    assert binomial_at_most(1, 5, 0.5) == pytest.approx(6 / 32)
    assert binomial_at_least(4, 5, 0.5) == pytest.approx(6 / 32)
    assert binomial_two_sided(1, 5) == pytest.approx(12 / 32)
    assert binomial_at_most(5, 5, 0.5) == 1.0
    assert binomial_at_most(2600, 5200, 0.5) == pytest.approx(0.5055, abs=1e-3)


def test_wilson_interval_by_hand() -> None:
    # 8 of 10, z = 1.96: centre (0.8 + 0.19207) / 1.38415, half width 1.96 / 1.38415 * sqrt(0.016 + 0.0096).
    low, high = wilson(8, 10)

    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert wilson(0, 0) == (0.0, 1.0)


def test_many_tests_at_once_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.04: 3 * 0.01, 3 / 2 * 0.02, 0.04, then the smaller of each and what follows.
    assert benjamini_hochberg([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.03])


def test_two_proportions_by_hand() -> None:
    # 30 / 50 against 20 / 50: pooled 0.5, z = 0.2 / sqrt(0.25 * 0.04) = 2, p = 0.0455.
    assert two_proportions(30, 50, 20, 50) == pytest.approx(0.0455, abs=1e-4)


def test_robust_z_is_not_moved_by_an_outlier() -> None:
    # Median 3, absolute deviations 2 1 0 1 97: their median 1. (5 - 3) / 1.4826.
    scale = robust_scale([1, 2, 3, 4, 100])

    assert scale is not None
    assert scale.z(5) == pytest.approx(2 / 1.4826)


def test_components_of_a_graph_by_hand() -> None:
    edges = [(1, 2), (2, 3), (3, 1), (3, 4), (4, 5), (5, 4), (6, 1)]

    found = sorted(sorted(component) for component in strong_components(edges))

    assert found == [[1, 2, 3], [4, 5]]
    assert three_cycles(edges) == 1
    long_path = [(number, number + 1) for number in range(50_000)]
    assert strong_components(long_path) == []
    assert len(strong_components([*long_path, (50_000, 0)])[0]) == 50_001


def test_equal_leaders_share_the_credit() -> None:
    # Right; wrong; two leaders of which one is right.
    assert stats.gold_agreement([[3, 1, 0], [0, 2, 1], [2, 2, 1]], [0, 0, 1]) == pytest.approx(0.5)


@pytest.fixture(scope="module")
def ukp() -> dict[str, list[dict[str, Any]]]:
    tables = {}
    for name in ("arguments", "pairs", "votes"):
        with gzip.open(find_realdata("ukpconvarg1", f"ukp_{name}.jsonl.gz"), "rt", encoding="utf-8") as lines:
            tables[name] = [json.loads(line) for line in lines]
    return tables


CHOICES = {"a": 1, "b": -1, "tie": 0}


def test_agreement_of_84445_real_votes(ukp: dict[str, list[dict[str, Any]]]) -> None:
    place = {pair["id"]: number for number, pair in enumerate(ukp["pairs"])}
    items = np.array([place[vote["pair"]] for vote in ukp["votes"]])
    values = np.array([CHOICES[vote["choice"]] for vote in ukp["votes"]])
    assert len(values) == 84_445

    before = time.process_time()
    counts = stats.count(items, values)
    nominal = stats.krippendorff_alpha(counts)
    seconds = time.process_time() - before

    assert nominal == pytest.approx(0.2667578, abs=1e-7)
    assert stats.krippendorff_alpha(counts, "interval") == pytest.approx(0.3696107, abs=1e-7)
    decisive = stats.count(items[values != 0], values[values != 0])
    assert stats.krippendorff_alpha(decisive) == pytest.approx(0.4349598, abs=1e-7)
    assert round(float((values == 0).mean()), 3) == 0.226
    assert round(stats.unanimous_share(counts) or 0, 3) == 0.197
    # Measured 0.03 s; ten times that is still far from a second.
    assert seconds < 5


def test_majority_of_real_votes_agrees_with_the_gold_labels(ukp: dict[str, list[dict[str, Any]]]) -> None:
    judged = [pair for pair in ukp["pairs"] if pair["gold"]]
    tables = [[pair["votes"][name] for name in ("a", "b", "tie")] for pair in judged]

    share = stats.gold_agreement(tables, [("a", "b", "tie").index(pair["gold"]) for pair in judged])

    assert round(share, 3) == 0.890


def test_circles_and_lengths_of_the_real_gold_labels(ukp: dict[str, list[dict[str, Any]]]) -> None:
    text = {argument["id"]: argument["text"] for argument in ukp["arguments"]}
    edges = []
    for pair in ukp["pairs"]:
        if pair["gold"] in ("a", "b"):
            better, worse = (pair["a"], pair["b"]) if pair["gold"] == "a" else (pair["b"], pair["a"])
            edges.append(((pair["topic"], better), (pair["topic"], worse)))

    components = strong_components(edges)

    home = {node: number for number, component in enumerate(components) for node in component}
    inside = sum(one in home and home[one] == home.get(other) for one, other in edges)
    assert (len(edges), len(components), inside) == (12_792, 33, 9_522)
    longer = sum(len(text[better[1]]) > len(text[worse[1]]) for better, worse in edges)
    assert round(longer / len(edges), 3) == 0.744


def test_the_interval_of_raw_agreement_draws_items_as_often_as_they_occur() -> None:
    # 95 items of which both votes agree and 5 of which they do not: a share of 0.95, whose binomial
    # standard deviation over 100 items is sqrt(0.95 * 0.05 / 100) = 0.022.
    items = np.repeat(np.arange(100), 2)
    values = np.where((items >= 95) & (np.arange(200) % 2 == 1), 0.0, 1.0)

    found = stats.raw_interval(stats.count(items, values))

    assert found is not None
    assert found.value == pytest.approx(0.95)
    assert found.low == pytest.approx(0.95 - 1.96 * 0.022, abs=0.015)
    assert found.high == pytest.approx(0.95 + 1.96 * 0.022, abs=0.015)
