"""From votes to labels: by hand, against crowd-kit, and where careful people are outvoted."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from pipeline.cli.main import main
from reward.preferences.aggregation import Rule, aggregate, dawid_skene
from reward.preferences.agreement import Ballots
from reward.preferences.pairs import load_pairs
from reward.preferences.records import (
    PreferenceRecord,
    Response,
    Vote,
    VoteKind,
    empty_vote,
    strict_vote,
    tie_vote,
)
from reward.preferences.writers import write_records

A, B = "r0", "r1"


def record(*votes: Vote, number: int = 0) -> PreferenceRecord:
    responses = (Response(A, f"one {number}"), Response(B, f"other {number}"))
    return PreferenceRecord(f"question {number}", responses, votes, line=number + 1)


def test_one_round_of_em_by_hand() -> None:
    # Two items, two answers, three people. Item 0 gets 0, 0, 1 and item 1 gets 1, 1, 1.
    # Shares of votes: item 0 (2/3, 1/3), item 1 (0, 1); so the answers have shares 1/3 and 2/3.
    # People 0 and 1 said 0 on item 0 and 1 on item 1: if 0 is true (1, 0); if 1 is true
    # (1/3, 1) / (4/3) = (1/4, 3/4).
    # Person 2 said 1 twice: (0, 1) whatever is true.
    # Item 0: 1/3 * 1 * 1 * 1 = 1/3 against 2/3 * 1/4 * 1/4 * 1 = 1/24, so 8/9 against 1/9.
    ballots = Ballots(
        np.array([0, 0, 0, 1, 1, 1]), np.array([0, 1, 2, 0, 1, 2]), np.array([0, 0, 1, 1, 1, 1])
    )

    found = dawid_skene(ballots, num_answers=2, prior_votes=0, prior_right=0, max_rounds=1)

    assert found.prior == pytest.approx([1 / 3, 2 / 3])
    assert found.confusion[0] == pytest.approx(np.array([[1, 0], [1 / 4, 3 / 4]]))
    assert found.confusion[2] == pytest.approx(np.array([[0, 1], [0, 1]]))
    assert found.posterior == pytest.approx(np.array([[8 / 9, 1 / 9], [0, 1]]))


def test_em_gives_what_crowd_kit_gives() -> None:
    rng = random.Random(5)
    truth = [rng.randrange(3) for _ in range(40)]
    care = [0.9, 0.8, 0.7, 0.6, 0.4]
    rows = [
        (item, person, answer if rng.random() < right else rng.randrange(3))
        for item, answer in enumerate(truth)
        for person, right in enumerate(care)
    ]
    items, people, said = (np.array(column) for column in zip(*rows, strict=True))

    found = dawid_skene(
        Ballots(items, people, said), num_answers=3, prior_votes=0, prior_right=0, max_rounds=25
    )

    # crowdkit 1.4.1, DawidSkene(n_iter=25, tol=-1): probas_, priors_ and the table of worker 0.
    tasks = [[0, 0, 1], [0.00129539, 0.99870461, 0], [0, 0, 1], [0.00027339, 0.99972661, 0]]
    worker = [[0.94544388, 0, 0.09107364], [0.05455612, 0.7978555, 0], [0, 0.2021445, 0.90892636]]
    assert np.abs(found.posterior[:4] - np.array(tasks)).max() < 1e-7
    assert np.abs(found.prior - np.array([0.47595951, 0.24946058, 0.27457991])).max() < 1e-7
    assert np.abs(found.confusion[0].T - np.array(worker)).max() < 1e-7


def test_the_three_rules_on_one_comparison() -> None:
    votes = [
        strict_vote(A, B, annotator="a"),
        strict_vote(A, B, annotator="b"),
        tie_vote((A, B), annotator="c"),
    ]
    decided, even = record(*votes), record(*votes[1:], number=1)
    skipped = record(empty_vote(VoteKind.SKIP, annotator="a"), number=2)

    by_share = aggregate([decided, even, skipped], Rule.SHARE)
    by_majority = aggregate([decided, even, skipped], Rule.MAJORITY)

    # (2 + 1/2) / 3, and (1 + 1/2) / 2.
    assert [pair.label for pair in by_share] == pytest.approx([5 / 6, 3 / 4])
    assert [pair.label for pair in by_majority] == [1.0, 0.5]


def test_most_votes_for_a_tie_make_a_tie() -> None:
    (pair,) = aggregate([record(tie_vote((A, B)), tie_vote((A, B)), strict_vote(B, A))], Rule.MAJORITY)

    assert (pair.label, pair.tie) == (0.5, True)


def crowd(seed: int) -> tuple[list[PreferenceRecord], list[str]]:
    """Three people who are right in 95 % and four who toss a coin judge 120 pairs."""
    rng = random.Random(seed)
    care = {f"careful-{n}": 0.95 for n in range(3)} | {f"coin-{n}": 0.5 for n in range(4)}
    records, truth = [], []
    for number in range(120):
        better, worse = (A, B) if rng.random() < 0.5 else (B, A)
        votes = [
            strict_vote(better, worse, annotator=name)
            if rng.random() < right
            else strict_vote(worse, better, annotator=name)
            for name, right in care.items()
        ]
        records.append(record(*votes, number=number))
        truth.append(f"one {number}" if better == A else f"other {number}")
    return records, truth


def test_dawid_skene_hears_the_careful_where_the_majority_is_outvoted() -> None:
    records, truth = crowd(1)

    right = {
        rule: sum(pair.chosen == best for pair, best in zip(aggregate(records, rule), truth, strict=True))
        for rule in (Rule.SHARE, Rule.DAWID_SKENE)
    }

    # Three careful votes carry the majority in about 90 %; with known care they are right in 99 %.
    assert right[Rule.DAWID_SKENE] >= 116
    assert right[Rule.DAWID_SKENE] > right[Rule.SHARE]


def test_people_without_a_name_or_with_few_votes_share_one_table() -> None:
    records, _ = crowd(2)
    anonymous = [
        record(*(strict_vote(*(tier[0] for tier in vote.tiers)) for vote in one.votes), number=number)
        for number, one in enumerate(records)
    ]

    for soft, share in zip(
        aggregate(anonymous, Rule.DAWID_SKENE), aggregate(anonymous, Rule.SHARE), strict=True
    ):
        # All votes weigh the same, so the larger side stays the larger side.
        assert soft.chosen == share.chosen


def test_nothing_to_aggregate_gives_no_pair() -> None:
    assert aggregate([], Rule.DAWID_SKENE) == aggregate([record()], Rule.DAWID_SKENE) == []


@pytest.mark.parametrize("rule", list(Rule))
def test_labels_and_weights_survive_the_way_to_training(rule: Rule, tmp_path: Path) -> None:
    ranked = PreferenceRecord(
        "three ways",
        tuple(Response(name, f"text {name}") for name in "abc"),
        (Vote((("a",), ("b", "c"))), Vote((("a",), ("c",), ("b",)))),
    )
    votes = [
        strict_vote(A, B, annotator="x"),
        strict_vote(A, B, annotator="y"),
        strict_vote(B, A, annotator="z"),
    ]
    write_records(tmp_path / "votes.jsonl", [record(*votes), ranked])
    out = tmp_path / "pairs.jsonl"

    assert (
        main(
            ["data", "pairs", str(tmp_path / "votes.jsonl"), "--aggregate", rule, "--ties", "--out", str(out)]
        )
        == 0
    )

    written = [json.loads(line) for line in out.read_text().splitlines()]
    again = load_pairs(out)
    assert again.verdict.format.name == "pairs"
    read = {(pair.chosen, pair.rejected): pair for pair in [*again.pairs, *again.ties]}
    assert len(written) == len(read) == 4
    for row in written:
        pair = read[row["chosen"], row["rejected"]]
        assert (pair.label, pair.weight, pair.group) == (row["label"], row["weight"], row["group"])
    assert sum(row["weight"] for row in written if row["prompt"] == "three ways") == pytest.approx(1)


def test_an_unknown_rule_is_refused_with_the_three_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["data", "pairs", "x.jsonl", "--aggregate", "mean"])

    assert "share" in (said := capsys.readouterr().err)
    assert "dawid-skene" in said
