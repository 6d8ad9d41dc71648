"""From the votes on a pair to one label: share of votes, majority with a tie class, or Dawid-Skene.

Shares are the safe rule. Dawid-Skene pays off where people have many votes each and differ in care.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from reward.preferences.agreement import Ballots
from reward.preferences.pairs import JudgedPair, Label, Pair, Tally, judged_pairs, oriented_pair
from reward.preferences.records import PreferenceRecord, Vote

if TYPE_CHECKING:
    import numpy as np

MIN_VOTES = 15
"People with fewer votes share one table of mistakes."
PRIOR_VOTES = 1.0
"Votes that every cell of a table of mistakes holds beforehand."
PRIOR_RIGHT = 2.0
"Further votes that the right answer holds beforehand."
MAX_ROUNDS = 200
TOLERANCE = 1e-8
FIRST, TIE, SECOND = 0, 1, 2


class Rule(StrEnum):
    """How votes become a label."""

    SHARE = "share"
    "(wins + ties / 2) / votes."
    MAJORITY = "majority"
    "The answer with most votes for certain; a tie, or two leaders, gives one half."
    DAWID_SKENE = "dawid-skene"
    "Weighs people by how often they are right, estimated together with the answers."


@dataclass(frozen=True, slots=True)
class Consensus:
    """What the votes say together."""

    posterior: np.ndarray
    "P(answer) of each item, (items, answers)."
    confusion: np.ndarray
    "P(a person says the second index | the first is true), (people, answers, answers)."
    prior: np.ndarray
    "Share of each answer, (answers,)."


def aggregate(records: Sequence[PreferenceRecord], rule: Rule) -> list[Pair]:
    """Return the pairs of all records, labelled by a rule; ties have label 0.5."""
    judged = [(record, judged_pairs(record)) for record in records]
    if rule is Rule.DAWID_SKENE:
        labels = iter(_dawid_skene_labels(judged))
    else:
        labels = iter([_rule_label(rule, tally) for _, pairs in judged for *_, tally in pairs])
    return [
        oriented_pair(record, (one, other), next(labels), num_pairs=len(pairs), group=record.group)
        for record, pairs in judged
        for one, other, _ in pairs
    ]


def dawid_skene(
    ballots: Ballots,
    *,
    num_answers: int,
    prior_votes: float = PRIOR_VOTES,
    prior_right: float = PRIOR_RIGHT,
    max_rounds: int = MAX_ROUNDS,
) -> Consensus:
    """Estimate answers and people's tables of mistakes together, by expectation-maximisation.

        confusion[p, k, l] ~ prior + sum of posterior[i, k] over votes of p that say l on item i
        posterior[i, k]    ~ prior[k] * product of confusion[p, k, said] over the votes on i

    Starts from the shares of votes. Stops when no posterior moves by more than 1e-8.

    Args:
        ballots: items and people from 0 without gaps; values are answers from 0.
        num_answers: number of different answers.
        prior_votes: votes in every cell of each table beforehand; 0 is the method of 1979.
        prior_right: further votes on the diagonal beforehand.
        max_rounds: rounds at most.

    Source: Dawid and Skene, Maximum Likelihood Estimation of Observer Error-Rates Using the EM
        Algorithm, 1979, equations 2.3 to 2.5.
    """
    import numpy as np

    num_items, num_people = int(ballots.items.max()) + 1, int(ballots.annotators.max()) + 1
    posterior = np.zeros((num_items, num_answers))
    np.add.at(posterior, (ballots.items, ballots.values), 1.0)
    posterior /= posterior.sum(axis=1, keepdims=True)
    beforehand = prior_votes + prior_right * np.eye(num_answers)
    for _ in range(max_rounds):
        counts = np.zeros((num_people, num_answers, num_answers))
        np.add.at(counts.transpose(0, 2, 1), (ballots.annotators, ballots.values), posterior[ballots.items])
        counts += beforehand
        totals = counts.sum(axis=2, keepdims=True)
        confusion = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
        prior = posterior.mean(axis=0)
        with np.errstate(divide="ignore"):
            logs = np.tile(np.log(prior), (num_items, 1))
            np.add.at(logs, ballots.items, np.log(confusion)[ballots.annotators, :, ballots.values])
        logs -= logs.max(axis=1, keepdims=True)
        updated = np.exp(logs)
        updated /= updated.sum(axis=1, keepdims=True)
        moved = float(np.abs(updated - posterior).max())
        posterior = updated
        if moved <= TOLERANCE:
            break
    return Consensus(posterior, confusion, prior)


def _rule_label(rule: Rule, tally: Tally) -> Label:
    leader = tally.majority
    if rule is Rule.SHARE:
        return Label(tally.share, leader == "tie", tally.total)
    share = {"first": 1.0, "second": 0.0}.get(leader or "", 0.5)
    return Label(share, leader == "tie", tally.total)


def _dawid_skene_labels(judged: Sequence[tuple[PreferenceRecord, list[JudgedPair]]]) -> list[Label]:
    """Label every pair in order; anonymous votes and people with few votes share one table.

    Which response a file names first says nothing. So every pair counts once as it stands and once
    the other way round, and neither side can be likelier beforehand.
    """
    import numpy as np

    items: list[int] = []
    names: list[str | None] = []
    said: list[int] = []
    totals: list[int] = []
    for record, pairs in judged:
        for one, other, tally in pairs:
            for vote in record.votes:
                answer = _answer(vote, one.id, other.id)
                if answer is not None:
                    items.append(len(totals))
                    names.append(vote.annotator)
                    said.append(answer)
            totals.append(tally.total)
    if not items:
        return []
    place, people, answers = np.array(items), _people(names), np.array(said)
    ballots = Ballots(
        np.concatenate([place, place + len(totals)]),
        np.concatenate([people, people]),
        np.concatenate([answers, SECOND - answers]),
    )
    posterior = dawid_skene(ballots, num_answers=3).posterior[: len(totals)]
    return [
        Label(float(found[FIRST] + found[TIE] / 2), bool(found.argmax() == TIE), total)
        for found, total in zip(posterior, totals, strict=True)
    ]


def _answer(vote: Vote, first: str, second: str) -> int | None:
    places = {name: place for place, tier in enumerate(vote.tiers) for name in tier}
    if not vote.kind.counts or first not in places or second not in places:
        return None
    return TIE + (places[first] > places[second]) - (places[first] < places[second])


def _people(names: Sequence[str | None]) -> np.ndarray:
    """Number people with MIN_VOTES or more from 1; everybody else is 0."""
    import numpy as np

    counts = Counter(names)
    known = [name for name, votes in counts.items() if name is not None and votes >= MIN_VOTES]
    numbers = {name: number for number, name in enumerate(known, start=1)}
    return np.array([numbers.get(name, 0) if name is not None else 0 for name in names])
