"""What the checks can find in how many votes: planted carelessness, position and length bias.

The chance to find a planted bias follows from the binomial distribution alone; simulated files
must be found about that often.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from reward.preferences.checks.bias import length_bias, position_bias
from reward.preferences.checks.result import CheckResult, Verdict
from reward.preferences.checks.settings import CheckSettings
from reward.preferences.inspection import inspect_file
from reward.preferences.ledger import Ledger, Votes
from reward.preferences.records import PreferenceRecord, Response, Vote
from reward.preferences.writers import write_records
from tests.preferences.test_annotators import comparisons

P, DEVIATION, BAND = 1e-3, 0.03, 0.10


def tail(successes: int, trials: int, chance: float) -> float:
    """P(X >= successes) of a binomial, term by term."""
    return math.fsum(
        math.comb(trials, k) * chance**k * (1 - chance) ** (trials - k)
        for k in range(max(successes, 0), trials + 1)
    )


def power(trials: int, chance: float, *, smallest: float) -> float:
    """Chance that a two-sided test at P finds a share that deviates by `smallest` or more."""
    least = next(
        k
        for k in range(trials // 2, trials + 1)
        if 2 * tail(k, trials, 0.5) < P and k / trials - 0.5 >= smallest
    )
    return tail(least, trials, chance) + tail(least, trials, 1 - chance)


Choose = Callable[[random.Random, tuple[str, str], float], str]
"Names the better response: given the order on the screen and how often the favoured one wins."


def first_wins(rng: random.Random, order: tuple[str, str], share: float) -> str:
    return order[rng.random() >= share]


def longer_wins(rng: random.Random, _: tuple[str, str], share: float) -> str:
    return "long" if rng.random() < share else "short"


CHECKS: dict[Choose, Callable[[Votes, CheckSettings], CheckResult]] = {
    first_wins: position_bias,
    longer_wins: length_bias,
}


def warns(choose: Choose, trials: int, share: float, *, seed: int) -> bool:
    """Judge `trials` pairs of a short and a long response in random order, and run the check."""
    rng = random.Random(seed)
    ledger = Ledger()
    for number in range(trials):
        responses = (Response("short", f"s{number}"), Response("long", f"long {number}"))
        order = ("short", "long") if rng.random() < 0.5 else ("long", "short")
        winner = choose(rng, order, share)
        loser = "short" if winner == "long" else "long"
        vote = Vote(((winner,), (loser,)), annotator="a", shown_order=order)
        ledger.add(PreferenceRecord(f"p{number}", responses, (vote,), line=number + 1))
    return CHECKS[choose](ledger.votes(), CheckSettings()).verdict >= Verdict.WARN


def share_found(choose: Choose, trials: int, share: float, *, draws: int) -> float:
    return sum(warns(choose, trials, share, seed=seed) for seed in range(draws)) / draws


def test_the_stated_power_of_a_thousand_votes() -> None:
    # Two-sided p < 1e-3 asks for z = 3.29; 3.29 * 0.5 / sqrt(1000) = 0.052: found every other time.
    assert power(1000, 0.552, smallest=DEVIATION) == pytest.approx(0.5, abs=0.05)
    # 0.052 + 1.28 * 0.0158 = 0.072 is found nine times out of ten.
    assert power(1000, 0.572, smallest=DEVIATION) == pytest.approx(0.9, abs=0.03)
    assert power(1000, 0.5, smallest=DEVIATION) < P


@pytest.mark.parametrize(
    ("choose", "trials", "share", "smallest"),
    [
        pytest.param(first_wins, 1000, 0.60, DEVIATION, id="position-0.60-of-1000-votes"),
        pytest.param(longer_wins, 300, 0.72, BAND, id="length-0.72-of-300-pairs"),
    ],
)
def test_a_plain_bias_is_always_found(choose: Choose, trials: int, share: float, smallest: float) -> None:
    assert power(trials, share, smallest=smallest) > 0.99

    assert share_found(choose, trials, share, draws=10) == 1.0


@pytest.mark.parametrize("choose", [first_wins, longer_wins])
def test_no_bias_is_not_found(choose: Choose) -> None:
    assert share_found(choose, 400, 0.5, draws=15) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.53, 0.552, 0.572, 0.60])
def test_a_planted_position_bias_is_found_as_often_as_the_binomial_says(share: float) -> None:
    expected = power(1000, share, smallest=DEVIATION)

    found = share_found(first_wins, 1000, share, draws=100)

    # Three standard errors of a share of 100 simulations.
    assert abs(found - expected) <= 3 * math.sqrt(max(expected * (1 - expected), 0.01) / 100)


@pytest.mark.slow
@pytest.mark.parametrize(("trials", "share"), [(200, 0.60), (200, 0.65), (1000, 0.60), (1000, 0.65)])
def test_a_planted_length_bias_is_found_as_often_as_the_binomial_says(trials: int, share: float) -> None:
    # The share must leave the band 0.40 to 0.60 beside being significant: one pair more than 0.60.
    expected = power(trials, share, smallest=BAND + 0.5 / trials)

    found = share_found(longer_wins, trials, share, draws=100)

    assert abs(found - expected) <= 3 * math.sqrt(max(expected * (1 - expected), 0.01) / 100)


@pytest.mark.slow
def test_a_careless_annotator_is_last_in_95_of_100_files(tmp_path: Path) -> None:
    # Eleven people who agree with the truth in 70 to 88 % of the items, as people on open questions
    # do, and one who tosses a coin; 400 items by three people each, so 100 votes a person.
    # Every fourth item is a probe, which adds 0.14: 0.465 + 0.14 / 4 = 0.5.
    crew = {f"rater-{number}": {"care": 0.70 + 0.018 * number} for number in range(11)}
    last = 0
    for seed in range(100):
        path = tmp_path / "votes.jsonl"
        write_records(path, comparisons(400, {**crew, "careless": {"care": 0.465}}, seed=seed))

        last += inspect_file(path).annotators[0].name == "careless"

    assert last >= 95
