"""Bradley-Terry ratings and the best of n: by hand, by enumeration, and against choix."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cli.main import main
from pipeline.errors import DataError
from reward.ranking import best_of_n, best_of_n_kl, best_of_report, bradley_terry, win_shares

WINS = {("a", "b"): 7.0, ("b", "a"): 3.0, ("b", "c"): 6.0, ("c", "b"): 4.5, ("a", "c"): 5.0, ("c", "a"): 1.5}


def ratings(wins, **options):
    return {item.name: item.rating for item in bradley_terry(wins, **options)}


def test_two_items_are_apart_by_their_log_odds():
    found = ratings({("a", "b"): 3.0, ("b", "a"): 1.0}, ridge=1e-9)

    assert found["a"] - found["b"] == pytest.approx(math.log(3), abs=1e-6)
    assert found["a"] + found["b"] == pytest.approx(0.0, abs=1e-12)


def test_the_interval_of_two_items_is_that_of_a_log_odds_ratio():
    best, _ = bradley_terry({("a", "b"): 30.0, ("b", "a"): 10.0}, ridge=1e-9)

    # the difference has variance 1 / (n p q) = 1 / (40 * 0.75 * 0.25); either rating half its deviation
    expected = 1.959963984540054 * math.sqrt(1 / 7.5) / 2
    assert best.high - best.rating == pytest.approx(expected, rel=1e-5)
    assert best.num_comparisons == 40


def test_an_item_that_won_everything_stays_finite():
    found = ratings({("a", "b"): 5.0})

    assert 0 < found["a"] < 10


def test_the_ratings_are_choixs():
    choix = pytest.importorskip("choix")
    # choix counts whole wins, so each twice; its penalty is alpha r^2, ours ridge / 2 r^2 once
    data = [("abc".index(i), "abc".index(j)) for (i, j), n in WINS.items() for _ in range(round(2 * n))]

    expected = choix.opt_pairwise(3, data, alpha=0.01, tol=1e-12)

    found = ratings(WINS, ridge=0.01)
    assert [found[name] for name in "abc"] == pytest.approx(list(expected - expected.mean()), abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30))
def test_the_slope_is_zero_at_the_ratings(games):
    wins: dict[tuple[str, str], float] = {(str(n), str(n + 1)): 1.0 for n in range(4)}
    for winner, loser in games:
        if winner != loser:
            key = str(winner), str(loser)
            wins[key] = wins.get(key, 0.0) + 1

    # with a ridge the optimum has mean 0 by itself: the slopes sum to -ridge * sum of ratings
    found = ratings(wins)
    slopes = dict.fromkeys(found, 0.0)
    for (winner, loser), count in wins.items():
        surprise = count / (1 + math.exp(found[winner] - found[loser]))
        slopes[winner] += surprise
        slopes[loser] -= surprise
    assert all(slopes[name] == pytest.approx(0.01 * found[name], abs=1e-8) for name in found)


def test_groups_that_never_met_are_refused_by_name():
    with pytest.raises(DataError, match="c and 1 more were never compared with a"):
        bradley_terry({("a", "b"): 1.0, ("c", "d"): 1.0})
    with pytest.raises(DataError, match="no comparisons"):
        bradley_terry({})


def test_the_best_of_n_by_enumerating_every_choice():
    proxy, gold = [0.3, -1.0, 2.0, 0.7], [1.0, 5.0, 0.0, 3.0]

    found = best_of_n(proxy, gold)

    for n in range(1, 5):
        picks = [max(chosen, key=lambda i: proxy[i]) for chosen in itertools.combinations(range(4), n)]
        assert found[n - 1] == pytest.approx(np.mean([gold[i] for i in picks]))


def test_samples_of_equal_proxy_share_their_gold():
    assert best_of_n([1.0, 1.0], [0.0, 4.0]) == [2.0, 2.0]
    with pytest.raises(ValueError, match="one proxy and one gold"):
        best_of_n([1.0], [])


def test_the_kl_of_the_best_of_n():
    assert best_of_n_kl(1) == 0.0
    assert best_of_n_kl(4) == pytest.approx(math.log(4) - 0.75)


def test_win_shares_are_means_over_a_responses_pairs():
    found = win_shares([("a", "b", 1.0), ("a", "c", 0.75), ("b", "c", 0.5)])

    assert found == {"a": 0.875, "b": 0.25, "c": 0.375}


def test_the_report_counts_groups_of_three_or_more():
    # the top score is the best response in the first group and not in the second; the pair does not count
    right = [(3.0, 1.0, True), (1.0, 0.5, False), (0.0, 0.0, False)]
    wrong = [(0.0, 1.0, True), (1.0, 0.5, False), (3.0, 0.0, False)]
    pair = [(1.0, 1.0, True), (0.0, 0.0, False)]

    report = best_of_report([right, wrong, pair])

    assert report["num_groups"] == 2
    assert report["top_accuracy"] == 0.5
    assert report["chance"] == pytest.approx(1 / 3)
    # one of three: 0.5; the best of three: 1 and 0
    assert [point["gold"] for point in report["curve"]] == pytest.approx([0.5, 0.5, 0.5])
    assert best_of_report([right])["curve"][2]["gold"] == 1.0
    assert best_of_report([pair]) is None


def test_models_are_rated_from_a_file_of_comparisons(tmp_path, capsys):
    def row(better, worse, number, winner="model_a"):
        turns = [{"role": "user", "content": f"q {number}"}]
        sides = {
            f"conversation_{s}": [*turns, {"role": "assistant", "content": f"{s} {number}"}] for s in "ab"
        }
        return {**sides, "model_a": better, "model_b": worse, "winner": winner}

    path = tmp_path / "arena.jsonl"
    rows = [row("big", "small", n) for n in range(3)] + [
        row("small", "big", 3),
        row("big", "small", 4, "tie"),
    ]
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))

    code = main(["reward", "ratings", str(path), "--json"])

    first, second = json.loads(capsys.readouterr().out)
    # 3.5 wins against 1.5
    assert code == 0
    assert (first["name"], second["name"]) == ("big", "small")
    assert first["rating"] - second["rating"] == pytest.approx(math.log(3.5 / 1.5), abs=0.02)
    assert first["num_comparisons"] == 5


def test_a_file_without_models_is_refused(tmp_path, capsys):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "q", "chosen": "a", "rejected": "b"}) + "\n")

    assert main(["reward", "ratings", str(path)]) == 2
    assert "different models" in capsys.readouterr().err
