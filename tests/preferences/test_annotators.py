"""The annotator table: who agrees little, answers too fast, or always the same."""

from __future__ import annotations

import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from reward.preferences import annotators
from reward.preferences.annotators import AnnotatorRow, annotator_rows
from reward.preferences.checks.settings import CheckSettings
from reward.preferences.ledger import Ledger
from reward.preferences.records import PreferenceRecord, Response, Vote, VoteKind


def comparisons(
    num_items: int, people: dict[str, dict[str, Any]], *, seed: int = 0, per_item: int = 3
) -> list[PreferenceRecord]:
    """Simulate judgements: `care` is the chance of a right answer, other keys as below."""
    rng = random.Random(seed)
    names = list(people)
    records = []
    for number in range(num_items):
        better, worse = ("r0", "r1") if rng.random() < 0.5 else ("r1", "r0")
        votes = [
            _vote(rng, number, better, name=name, person=people[name]) for name in rng.sample(names, per_item)
        ]
        responses = tuple(Response(f"r{side}", f"text {number} {side} " + "word " * 30) for side in (0, 1))
        gold = (better, worse) if number % 4 == 0 else None
        records.append(
            PreferenceRecord(f"prompt {number}", responses, tuple(votes), gold=gold, line=number + 1)
        )
    return records


def _vote(rng: random.Random, number: int, better: str, *, name: str, person: dict[str, Any]) -> Vote:
    """One vote. Every fourth item is a probe, which careful people nearly always get right."""
    is_probe = number % 4 == 0
    worse = "r1" if better == "r0" else "r0"
    order = ("r0", "r1") if rng.random() < 0.5 else ("r1", "r0")
    care = person.get("care", 0.85) + 0.14 * is_probe
    if number > person.get("tired_after", 10**9):
        care = 0.1
    answer = better if rng.random() < care else worse
    if rng.random() < person.get("first", 0.0):
        answer = order[0]
    seconds = rng.lognormvariate(3.4, 0.3) * person.get("speed", 1.0)
    details: dict[str, Any] = {"annotator": name, "shown_order": order, "seconds": seconds}
    if not is_probe and rng.random() < person.get("ties", 0.05):
        return Vote((("r0", "r1"),), VoteKind.TIE, **details)
    return Vote(((answer,), ("r1" if answer == "r0" else "r0",)), VoteKind.STRICT, **details)


def rows_of(records: list[PreferenceRecord]) -> list[AnnotatorRow]:
    ledger = Ledger()
    for record in records:
        ledger.add(record)
    return annotator_rows(ledger, ledger.votes(), CheckSettings())


CREW = {f"rater-{number}": {} for number in range(7)}


def test_a_careless_annotator_comes_first_in_95_of_100_simulations() -> None:
    worst = 0
    for seed in range(100):
        people = {**CREW, "careless": {"care": 0.5}}
        worst += rows_of(comparisons(160, people, seed=seed))[0].name == "careless"

    assert worst >= 95


def test_careful_annotators_are_not_flagged() -> None:
    rows = [row for seed in range(10) for row in rows_of(comparisons(240, CREW, seed=seed))]
    flags = [flag for row in rows for flag in row.flags]

    assert flags == []


@pytest.mark.parametrize(
    ("habit", "flag"),
    [
        ({"care": 0.3}, "annotator_low_agreement"),
        ({"speed": 0.02}, "annotator_fast"),
        ({"speed": 200.0}, "annotator_slow"),
        ({"first": 0.98, "ties": 0.0}, "annotator_straightline"),
        ({"first": 0.7}, "annotator_position"),
        ({"ties": 0.7}, "annotator_tie"),
        ({"care": 0.5}, "gold_probe_fail"),
        ({"care": 0.95, "tired_after": 200}, "annotator_drift"),
    ],
)
def test_a_habit_is_flagged(habit: dict[str, Any], flag: str) -> None:
    rows = rows_of(comparisons(400, {**CREW, "odd": habit}, seed=3))

    flagged = {row.name for row in rows if flag in row.flags}
    assert flagged == {"odd"}


def test_somebody_who_gives_most_votes_is_said_to_dominate() -> None:
    records = comparisons(60, {"busy": {}, "second": {}, "third": {}, "fourth": {}}, per_item=2)
    alone = comparisons(120, {"busy": {}}, per_item=1, seed=5)

    assert [row.name for row in rows_of(records + alone) if "annotator_dominates" in row.flags] == ["busy"]


def test_nobody_is_judged_on_fewer_than_fifteen_votes() -> None:
    people = {**CREW, "new": {"care": 0.0}}
    records = comparisons(30, people, seed=1)
    votes = sum(vote.annotator == "new" for record in records for vote in record.votes)
    assert votes < 15

    (new,) = [row for row in rows_of(records) if row.name == "new"]

    assert "annotator_low_agreement" not in new.flags


def test_agreement_of_one_person_by_hand() -> None:
    # ann and two others on four items: the others agree on three of them, ann with them on two.
    def item(number: int, ann: str, ben: str, cid: str) -> PreferenceRecord:
        responses = (Response("r0", f"a {number}"), Response("r1", f"b {number}"))
        votes = tuple(
            Vote(((better,), ("r1" if better == "r0" else "r0",)), annotator=name)
            for name, better in (("ann", ann), ("ben", ben), ("cid", cid))
        )
        return PreferenceRecord(f"p{number}", responses, votes)

    said = ("r0", "r0", "r0"), ("r0", "r0", "r0"), ("r1", "r0", "r0"), ("r0", "r1", "r0")
    rows = rows_of([item(number, *answers) for number, answers in enumerate(said)])

    (ann,) = [row for row in rows if row.name == "ann"]
    assert (ann.votes, ann.shared_items, ann.agreement) == (4, 3, pytest.approx(2 / 3))


def test_a_real_corpus_has_its_numbers(tmp_path: Path) -> None:
    import gzip
    import json

    from reward.preferences.agreement import count, krippendorff_alpha
    from reward.preferences.agreement_summary import summarise_agreement
    from reward.preferences.inspection import inspect_file
    from tests.realdata import find_realdata

    def table(name: str) -> list[dict[str, Any]]:
        with gzip.open(find_realdata("ukpconvarg1", f"ukp_{name}.jsonl.gz"), "rt", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    text = {argument["id"]: argument["text"] for argument in table("arguments")}
    votes: dict[str, list[dict[str, Any]]] = {}
    for vote in table("votes"):
        tiers = {"a": [["a"], ["b"]], "b": [["b"], ["a"]], "tie": [["a", "b"]]}[vote["choice"]]
        votes.setdefault(vote["pair"], []).append({**vote, "tiers": tiers})
    # A text may stand under two ids; such pairs are one pair for the ledger, so take each text once.
    seen: set[frozenset[str]] = set()
    pairs = []
    for pair in table("pairs")[:1500]:
        texts = frozenset(" ".join(text[pair[side]].split()) for side in "ab")
        if len(texts) == 2 and texts not in seen:
            seen.add(texts)
            pairs.append(pair)
    path = tmp_path / "ukp.jsonl"
    with path.open("w", encoding="utf-8") as lines:
        for pair in pairs:
            responses = [{"id": side, "text": text[pair[side]]} for side in "ab"]
            row = {"prompt": pair["topic"], "responses": responses, "votes": votes[pair["id"]]}
            lines.write(json.dumps(row) + "\n")

    found = inspect_file(path)

    assert (found.tally.read, found.tally.rejected) == (len(pairs), 0)
    block = summarise_agreement(found.votes, 0)
    # The same votes straight from their table: the ledger has lost and turned none.
    place = [number for number, pair in enumerate(pairs) for _ in votes[pair["id"]]]
    answers = {"a": 1, "b": -1, "tie": 0}
    said = [answers[vote["choice"]] for pair in pairs for vote in votes[pair["id"]]]
    assert block["alpha_nominal"]["value"] == pytest.approx(krippendorff_alpha(count(place, said)), abs=1e-9)
    assert len(found.annotators) > 100


def _strict(name: str, answer: str, **details: Any) -> Vote:
    return Vote(((answer,), ("r1" if answer == "r0" else "r0",)), VoteKind.STRICT, annotator=name, **details)


def _record(number: int, *votes: Vote, gold: tuple[str, str] | None = None) -> PreferenceRecord:
    responses = (Response("r0", f"one {number}"), Response("r1", f"two {number}"))
    return PreferenceRecord(f"prompt {number}", responses, votes, gold=gold, line=number + 1)


def test_the_gold_share_counts_every_probe_whichever_side_is_right_and_nothing_else() -> None:
    # Ten probes won by r0 and answered so, six won by r1 of which two are answered so, four that are none.
    records = [_record(n, _strict("ann", "r0"), gold=("r0", "r1")) for n in range(10)]
    records += [
        _record(n, _strict("ann", "r1" if n < 12 else "r0"), gold=("r1", "r0")) for n in range(10, 16)
    ]
    records += [_record(n, _strict("ann", "r1")) for n in range(16, 20)]

    (row,) = rows_of(records)

    assert row.gold == pytest.approx(12 / 16)


def test_agreement_is_measured_against_what_the_others_reach() -> None:
    # Ann agrees in 6 of 10 shared votes. Everybody together: 96 of 110, so the others reach 90 of 100.
    ann = SimpleNamespace(agrees=np.array([1] * 6 + [0] * 4 + [-1] * 3))

    # P(6 or fewer of 10) at 0.9 is 0.0128; with her own votes in the pool, at 0.873, it would be 0.031.
    assert annotators._p_low(ann, 96, 110) == pytest.approx(0.0128, abs=1e-4)


def test_votes_after_a_pause_say_nothing_of_how_fast_a_person_answers() -> None:
    settings = CheckSettings()
    idle = settings.slow_seconds + 1
    quick = SimpleNamespace(seconds=np.array([10.0] * settings.min_votes + [idle] * 40))
    few = SimpleNamespace(seconds=np.array([10.0] * (settings.min_votes - 1) + [idle] * 40))

    assert annotators._log_seconds(quick, settings) == pytest.approx(math.log(10))
    assert annotators._log_seconds(few, settings) is None
