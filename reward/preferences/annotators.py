"""One row a person: how much, how fast, how consistent, and what is odd about it.

Nobody is judged on fewer than 15 votes, and nobody's agreement on fewer than 10 shared items.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reward.preferences.agreement import Ballots, agrees_with_others
from reward.preferences.checks.settings import CheckSettings
from reward.preferences.ledger import Ledger, Votes
from reward.preferences.significance import (
    RobustScale,
    benjamini_hochberg,
    binomial_at_most,
    binomial_two_sided,
    longest_run_p,
    median,
    robust_scale,
    two_proportions,
)

if TYPE_CHECKING:
    import numpy as np

WORDS_PER_SECOND = 8.0
FLAGS = {
    "annotator_low_agreement": "agrees with the others less than the pool does",
    "annotator_fast": "answers faster than the texts can be read",
    "annotator_slow": "has votes of more than half an hour; their time is not counted",
    "annotator_straightline": "gives nearly always the same answer by place on the screen",
    "annotator_position": "prefers one place on the screen",
    "annotator_tie": "says tie far more often than the others",
    "gold_probe_fail": "fails probe items",
    "annotator_dominates": "gives a large part of all votes",
    "annotator_drift": "agrees differently in the second half of the work",
}


@dataclass(frozen=True, slots=True)
class AnnotatorRow:
    """What is known of one person."""

    name: str
    votes: int
    shared_items: int
    "Votes that can be compared with a majority of others."
    agreement: float | None
    "Share of those that agree with it."
    p_low: float
    "P of so little agreement in somebody who agrees like the pool; the smaller, the worse."
    seconds: float | None
    "Median seconds a vote, idle votes left out."
    tie_share: float
    first_share: float | None
    "Share of decisive votes for the response shown first."
    gold: float | None
    "Share of probe items answered rightly."
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Person:
    """The votes of one person, in the order they were given."""

    name: str
    index: int
    value: np.ndarray
    shown: np.ndarray
    agrees: np.ndarray
    seconds: np.ndarray
    words: np.ndarray
    gold: np.ndarray


@dataclass(frozen=True, slots=True)
class _Pool:
    """What everybody together does."""

    speed: RobustScale | None
    "Of the median log seconds of people with enough votes."
    tie_share: RobustScale | None
    votes: int
    people: int


MIN_POOL = 5
"People a robust scale needs before anybody is odd beside them."


def annotator_rows(ledger: Ledger, votes: Votes, settings: CheckSettings) -> list[AnnotatorRow]:
    """Return a row for each person, the worst agreement first."""
    people = _people(ledger, votes)
    if not people:
        return []
    pool_agree = sum(int((person.agrees == 1).sum()) for person in people)
    pool_shared = sum(int((person.agrees >= 0).sum()) for person in people)
    p_low = [_p_low(person, pool_agree, pool_shared) for person in people]
    judged = [number for number, person in enumerate(people) if _is_judged(person, settings)]
    adjusted = dict(zip(judged, benjamini_hochberg([p_low[number] for number in judged]), strict=True))
    speeds = [_log_seconds(person, settings) for person in people]
    known = [speed for speed in speeds if speed is not None]
    shares = [_tie_share(person) for person in people if len(person.value) >= settings.min_votes]
    pool = _Pool(
        robust_scale(known, smallest_sd=0.1),
        robust_scale(shares, smallest_sd=0.05),
        sum(len(person.value) for person in people),
        len(people),
    )
    rows = [
        _row(person, settings, pool, p_low=p_low[number], adjusted=adjusted.get(number, 1.0))
        for number, person in enumerate(people)
    ]
    return sorted(rows, key=lambda row: (row.p_low, -row.votes, row.name))


def _people(ledger: Ledger, votes: Votes) -> list[_Person]:
    """Gather each person's votes on pairs."""
    import numpy as np

    named = np.flatnonzero(votes.counted & (votes.person >= 0))
    ballots = Ballots(votes.pair[named], votes.person[named], votes.value[named])
    agrees = agrees_with_others(ballots)
    words = votes.pair_words.sum(axis=1)[votes.pair[named]]
    order = np.argsort(votes.person[named], kind="stable")
    if not order.size:
        return []
    people = votes.person[named][order]
    starts = np.flatnonzero(np.diff(people, prepend=-1))
    names = list(ledger.people)
    found: list[_Person] = []
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(order)], strict=True):
        mine = order[start:end]
        at = named[mine]
        found.append(
            _Person(
                names[int(people[start])],
                int(people[start]),
                votes.value[at],
                votes.shown[at],
                agrees[mine],
                votes.seconds[at],
                words[mine],
                votes.gold[at],
            )
        )
    return found


def _is_judged(person: _Person, settings: CheckSettings) -> bool:
    enough = len(person.value) >= settings.min_votes
    return enough and int((person.agrees >= 0).sum()) >= settings.min_overlap


def _p_low(person: _Person, pool_agree: int, pool_shared: int) -> float:
    """Return the chance of so little agreement, given the agreement of everybody else."""
    agree, shared = int((person.agrees == 1).sum()), int((person.agrees >= 0).sum())
    others = pool_shared - shared
    if shared == 0 or others == 0:
        return 1.0
    return binomial_at_most(agree, shared, (pool_agree - agree) / others)


def _log_seconds(person: _Person, settings: CheckSettings) -> float | None:
    times = [math.log(value) for value in person.seconds.tolist() if 0 < value <= settings.slow_seconds]
    return median(times) if len(times) >= settings.min_votes else None


def _tie_share(person: _Person) -> float:
    return float((person.value == 0).mean())


def _row(
    person: _Person, settings: CheckSettings, pool: _Pool, *, p_low: float, adjusted: float
) -> AnnotatorRow:
    shared = int((person.agrees >= 0).sum())
    agreement = float((person.agrees == 1).sum() / shared) if shared else None
    shown = (person.shown != 0) & (person.value != 0)
    first = int((person.value[shown] == person.shown[shown]).sum())
    probes = person.gold != 2
    gold = float((person.value[probes] == person.gold[probes]).mean()) if probes.any() else None
    speed = _log_seconds(person, settings)
    flags = _flags(person, settings, pool, speed=speed)
    if adjusted < settings.bias_p:
        flags.insert(0, "annotator_low_agreement")
    return AnnotatorRow(
        person.name,
        len(person.value),
        shared,
        agreement,
        p_low,
        None if speed is None else math.exp(speed),
        _tie_share(person),
        first / int(shown.sum()) if shown.any() else None,
        gold,
        tuple(flags),
    )


def _flags(person: _Person, settings: CheckSettings, pool: _Pool, *, speed: float | None) -> list[str]:
    """Return what is odd about one person, agreement left aside."""
    enough = len(person.value) >= settings.min_votes
    shown = (person.shown != 0) & (person.value != 0)
    first, num_shown = int((person.value[shown] == person.shown[shown]).sum()), int(shown.sum())
    probes = person.gold != 2
    failed = probes.sum() >= 10 and (person.value == person.gold)[probes].mean() < settings.gold_accuracy
    ties = pool.tie_share
    many_ties = (
        ties is not None and ties.count >= MIN_POOL and ties.z(_tie_share(person)) > settings.robust_sd
    )
    found = {
        "annotator_fast": enough and _is_fast(person, speed, pool, settings),
        "annotator_slow": bool((person.seconds > settings.slow_seconds).any()),
        "annotator_straightline": enough and _is_straight(person, settings),
        "annotator_position": num_shown >= settings.min_votes
        and binomial_two_sided(first, num_shown) < settings.bias_p,
        "annotator_tie": enough and many_ties,
        "gold_probe_fail": bool(failed),
        "annotator_dominates": pool.people > 2 and len(person.value) > settings.dominance * pool.votes,
        "annotator_drift": enough and _drifts(person, settings),
    }
    return [name for name, is_odd in found.items() if is_odd]


def _is_fast(person: _Person, speed: float | None, pool: _Pool, settings: CheckSettings) -> bool:
    if speed is None:
        return False
    reading = median((person.words / WORDS_PER_SECOND).tolist())
    if math.exp(speed) < settings.fast_reading * reading:
        return True
    scale = pool.speed
    return scale is not None and scale.count >= MIN_POOL and scale.z(speed) < -settings.robust_sd


def _is_straight(person: _Person, settings: CheckSettings) -> bool:
    """Look at answers by place on the screen where it is known, else at the side of the file."""
    import numpy as np

    answers = person.value * np.where(person.shown == 0, 1, person.shown)
    if not (person.shown != 0).any():
        return False
    counts = np.array([(answers == side).sum() for side in (-1, 0, 1)])
    share = counts.max() / len(answers)
    if share >= settings.straightline_share:
        return True
    longest = _longest_run(answers)
    return longest_run_p(longest, len(answers), max(0.5, float(share))) < settings.straightline_p


def _longest_run(answers: np.ndarray) -> int:
    import numpy as np

    edges = np.flatnonzero(np.diff(answers)) + 1
    return int(np.diff([0, *edges.tolist(), len(answers)]).max()) if len(answers) else 0


def _drifts(person: _Person, settings: CheckSettings) -> bool:
    half = len(person.agrees) // 2
    early, late = person.agrees[:half], person.agrees[half:]
    shared = int((early >= 0).sum()), int((late >= 0).sum())
    if min(shared) < settings.min_overlap:
        return False
    agree = int((early == 1).sum()), int((late == 1).sum())
    return two_proportions(agree[0], shared[0], agree[1], shared[1]) < settings.bias_p
