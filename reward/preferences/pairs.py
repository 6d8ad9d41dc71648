"""Pairs for training, derived from comparison records: a side that is better, and by how many votes."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reward.preferences.detect import Verdict
from reward.preferences.mapping import Mapping, load_mapping
from reward.preferences.notes import RowFinding
from reward.preferences.records import (
    PreferenceRecord,
    Prompt,
    Response,
    Vote,
    digest,
    prompt_group,
    prompt_text,
)
from reward.preferences.source import open_source


@dataclass(frozen=True, slots=True)
class Pair:
    """Two responses to one prompt; `chosen` has the larger share of votes."""

    prompt: Prompt
    chosen: str
    rejected: str
    label: float
    "P(chosen is better) = (wins + ties / 2) / votes; above 0.5, or exactly 0.5 in PairSet.ties."
    margin: float | None
    line: int
    "Line of the source where the comparison begins."
    group: str
    "Name of the prompt: pairs of one group stay on one side of every split."
    votes: int
    weight: float
    "1 / number of pairs of the comparison, so that a K-way ranking counts as one."
    tie: bool
    "True when more votes say tie than name either side."
    subset: str = ""
    "Part of the data that the row names; empty is none."
    judges: tuple[tuple[str, float], ...] = ()
    "Each named annotator and the share of their votes for chosen, a tie counting half."


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that was set aside, and why."""

    line: int
    check: str
    field: str
    message: str
    raw: str
    "The row as the file holds it."
    also: tuple[RowFinding, ...] = ()
    "Further reasons."


@dataclass(frozen=True, slots=True)
class Flag:
    """Something odd about a row that was kept."""

    line: int
    check: str
    field: str
    message: str


@dataclass(frozen=True, slots=True)
class Report:
    """Counts of one reading; accepted + rejected = read."""

    read: int
    accepted: int
    rejected: int
    comparisons: int
    pairs: int
    ties: int
    "Pairs whose votes are exactly even."
    unpaired: int
    "Comparisons with one response."
    unjudged: int
    "Comparisons without a vote that counts."
    rejected_by: dict[str, int]
    flagged_by: dict[str, int]


@dataclass(frozen=True, slots=True)
class PairSet:
    """What a preference file gives to training."""

    path: Path
    verdict: Verdict
    pairs: list[Pair]
    ties: list[Pair]
    rejects: list[Reject]
    flags: list[Flag]
    unpaired: list[PreferenceRecord]
    report: Report
    mapping: Mapping
    "How the file was read."


@dataclass(frozen=True, slots=True)
class Tally:
    """Votes on an ordered pair of responses."""

    wins: int
    losses: int
    ties: int

    @property
    def total(self) -> int:
        """Votes that count."""
        return self.wins + self.losses + self.ties

    @property
    def share(self) -> float:
        """Soft label of the first response."""
        return (self.wins + 0.5 * self.ties) / self.total

    @property
    def majority(self) -> str | None:
        """Return first, second or tie; None when two of them have equally many votes."""
        counts = {"first": self.wins, "second": self.losses, "tie": self.ties}
        best = max(counts.values())
        leaders = [name for name, count in counts.items() if count == best]
        return leaders[0] if len(leaders) == 1 else None


def load_pairs(path: Path, *, mapping: Path | None = None) -> PairSet:
    """Read a preference file and derive its pairs.

    Args:
        path: any file of the catalogue.
        mapping: YAML that says how to read it; it wins over detection.

    Raises:
        DataError: the file is missing, unreadable, or its format or direction is not known.
    """
    return read_pairs(path, load_mapping(mapping))


def read_pairs(path: Path, mapping: Mapping) -> PairSet:
    """Do the same with a mapping that is loaded already.

    Raises:
        DataError: the file is missing, unreadable, or its format or direction is not known.
    """
    source = open_source(path, mapping)
    records: list[PreferenceRecord] = []
    rejects: list[Reject] = []
    flags: list[Flag] = []
    num_read = 0
    for row in source.rows:
        num_read += 1
        flags += [Flag(row.raw.line, item.check, item.field, item.message) for item in row.flags]
        if row.accepted:
            records += row.records
        else:
            first = row.rejections[0]
            rejects.append(
                Reject(
                    row.raw.line, first.check, first.field, first.message, row.raw.text, row.rejections[1:]
                )
            )
    rows = _Rows(num_read, merge_votes(records), rejects, flags)
    return _pair_set(path, mapping, source.verdict, rows)


@dataclass(frozen=True, slots=True)
class _Rows:
    """What one reading gathered."""

    num_read: int
    records: list[PreferenceRecord]
    rejects: list[Reject]
    flags: list[Flag]


def _pair_set(path: Path, mapping: Mapping, verdict: Verdict, rows: _Rows) -> PairSet:
    derived = [pair for record in rows.records for pair in pairs_of(record)]
    pairs = [pair for pair in derived if pair.label > 0.5]
    ties = [pair for pair in derived if pair.label == 0.5]
    unpaired = [record for record in rows.records if len(record.responses) == 1]
    judged = [record for record in rows.records if any(vote.kind.counts for vote in record.votes)]
    report = Report(
        read=rows.num_read,
        accepted=rows.num_read - len(rows.rejects),
        rejected=len(rows.rejects),
        comparisons=len(rows.records),
        pairs=len(pairs),
        ties=len(ties),
        unpaired=len(unpaired),
        unjudged=len(rows.records) - len(unpaired) - len(judged),
        rejected_by=dict(sorted(Counter(reject.check for reject in rows.rejects).items())),
        flagged_by=dict(sorted(Counter(flag.check for flag in rows.flags).items())),
    )
    return PairSet(path, verdict, pairs, ties, rows.rejects, rows.flags, unpaired, report, mapping)


def merge_votes(records: Sequence[PreferenceRecord]) -> list[PreferenceRecord]:
    """Gather the votes of named annotators on one comparison that stand in several rows.

    Rows without an annotator stay as they are: nobody can say whether they are one comparison.
    """
    merged: dict[Any, PreferenceRecord] = {}
    for number, record in enumerate(records):
        named = bool(record.votes) and all(vote.annotator is not None for vote in record.votes)
        key = comparison_key(record) if named else number
        earlier = merged.get(key)
        merged[key] = record if earlier is None else with_votes_of(earlier, record)
    return list(merged.values())


def comparison_key(record: PreferenceRecord) -> str:
    """Return a name of prompt and responses that does not depend on the order of the responses."""
    texts = sorted(digest(response.text) for response in record.responses)
    return digest(prompt_text(record.prompt), *texts)


def with_votes_of(first: PreferenceRecord, second: PreferenceRecord) -> PreferenceRecord:
    """Add the votes of a record of the same comparison, whatever it calls the responses."""
    ids = {digest(response.text): response.id for response in first.responses}
    names = {response.id: ids[digest(response.text)] for response in second.responses}
    votes = tuple(_renamed(vote, names) for vote in second.votes)
    ratings = tuple(replace(rating, response=names[rating.response]) for rating in second.ratings)
    return replace(first, votes=first.votes + votes, ratings=first.ratings + ratings)


def _renamed(vote: Vote, names: dict[str, str]) -> Vote:
    tiers = tuple(tuple(names[name] for name in tier) for tier in vote.tiers)
    order = None if vote.shown_order is None else tuple(names[name] for name in vote.shown_order)
    return replace(vote, tiers=tiers, shown_order=order)


def pairs_of(record: PreferenceRecord, *, group: str | None = None) -> Iterator[Pair]:
    """Derive every pair of a comparison that got a vote; the better side stands first.

    Args:
        record: the comparison.
        group: name of its prompt when the caller knows it already.
    """
    judged = judged_pairs(record)
    if group is None:
        group = prompt_group(record.prompt) if judged else ""
    for first, second, tally in judged:
        stated = record.share if len(record.responses) == 2 else None
        share = tally.share if stated is None else stated
        tie = tally.ties > max(tally.wins, tally.losses)
        yield oriented_pair(
            record, (first, second), Label(share, tie, tally.total), num_pairs=len(judged), group=group
        )


@dataclass(frozen=True, slots=True)
class Label:
    """What is known of two responses: P(the first is better), whether they tie, from how many votes."""

    share: float
    tie: bool
    votes: int


JudgedPair = tuple[Response, Response, Tally]


def judged_pairs(record: PreferenceRecord) -> list[JudgedPair]:
    """Return every two responses of a comparison that got a vote, with the votes."""
    counted = [vote for vote in record.votes if vote.kind.counts]
    return [
        (first, second, tally)
        for first, second in itertools.combinations(record.responses, 2)
        if (tally := tally_of(counted, first.id, second.id)).total
    ]


def oriented_pair(
    record: PreferenceRecord,
    sides: tuple[Response, Response],
    label: Label,
    *,
    num_pairs: int,
    group: str,
) -> Pair:
    """Return a pair whose better side stands first; num_pairs is that of the comparison."""
    swapped = label.share < 0.5
    better, worse = sides[::-1] if swapped else sides
    margin = record.margin
    return Pair(
        record.prompt,
        better.text,
        worse.text,
        label=1 - label.share if swapped else label.share,
        margin=-margin if margin is not None and swapped else margin,
        line=record.line,
        group=group,
        votes=label.votes,
        weight=1 / num_pairs if record.weight is None else record.weight,
        tie=label.tie,
        subset=str(record.meta.get("subset") or ""),
        judges=judges_of((vote for vote in record.votes if vote.kind.counts), better.id, worse.id),
    )


def judges_of(votes: Iterable[Vote], first: str, second: str) -> tuple[tuple[str, float], ...]:
    """Return each named annotator who placed both responses, and the share of their votes for the first."""
    by_name: dict[str, list[Vote]] = {}
    for vote in votes:
        if vote.annotator is not None:
            by_name.setdefault(vote.annotator, []).append(vote)
    tallies = {name: tally_of(own, first, second) for name, own in by_name.items()}
    return tuple((name, tally.share) for name, tally in sorted(tallies.items()) if tally.total)


def tally_of(votes: Iterable[Vote], first: str, second: str) -> Tally:
    """Count the votes on two responses; a vote that did not place both says nothing."""
    wins = losses = ties = 0
    for vote in votes:
        places = {name: place for place, tier in enumerate(vote.tiers) for name in tier}
        if first in places and second in places:
            wins += places[first] < places[second]
            losses += places[first] > places[second]
            ties += places[first] == places[second]
    return Tally(wins, losses, ties)
