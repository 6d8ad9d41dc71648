"""Planted wrong labels are found: by a model's margins, by the votes, by circles."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from pipeline.cli.main import main
from reward.preferences.exchange.tasks import cmp_id_of
from reward.preferences.noise import CIRCLE, MODEL, VOTES, find_suspects
from reward.preferences.records import PreferenceRecord, Response, strict_vote
from reward.preferences.writers import read_records, write_records


def pair(
    number: int, better: str, *, texts: tuple[str, str] | None = None, prompt: str = ""
) -> PreferenceRecord:
    one, other = texts or (f"one {number}", f"other {number}")
    worse = "b" if better == "a" else "a"
    responses = (Response("a", one), Response("b", other))
    return PreferenceRecord(
        prompt or f"question {number}", responses, (strict_vote(better, worse),), line=number + 1
    )


def planted(
    num_pairs: int, flipped: float, *, seed: int
) -> tuple[list[PreferenceRecord], dict[str, list[float]], set[str]]:
    """Pairs whose first response is better, some labels turned round, and margins of a fair model.

    Margins are normal around 1 with standard deviation 1.4: the model is right in
    Phi(1 / 1.4) = 76 % of the pairs, as one trained on real arguments is.
    """
    rng = random.Random(seed)
    records, margins, wrong = [], {}, set()
    for number in range(num_pairs):
        turned = rng.random() < flipped
        record = pair(number, "b" if turned else "a")
        name = cmp_id_of(record)
        margins[name] = [rng.gauss(1, 1.4)]
        records.append(record)
        if turned:
            wrong.add(name)
    return records, margins, wrong


@pytest.mark.parametrize("flipped", [0.1, 0.2])
def test_planted_flips_have_the_area_under_the_curve_that_follows_from_the_margins(flipped: float) -> None:
    records, margins, wrong = planted(3000, flipped, seed=3)

    found = find_suspects(records, margins, below=1.0)

    confidence = {item.cmp_id: item.confidence for item in found}
    right = sorted(value for name, value in confidence.items() if name not in wrong)
    bad = [value for name, value in confidence.items() if name in wrong]
    below = sum(sum(value < other for other in right) for value in bad)
    # A flipped pair's margin is N(-1, 1.4), an honest one's N(1, 1.4), so their difference is
    # N(2, 1.98): the flipped one is less sure in Phi(2 / 1.98) = Phi(1.01) = 84.4 %.
    assert below / (len(right) * len(bad)) == pytest.approx(0.844, abs=0.03)


def test_the_most_doubted_come_first_and_say_why() -> None:
    records, margins, wrong = planted(400, 0.1, seed=1)

    found = find_suspects(records, margins)

    chances = [item.confidence for item in found]
    assert chances == sorted(chances)
    assert all(chance < 0.5 for chance in chances)
    assert set(found[0].reasons) == {MODEL}
    share_wrong = sum(item.cmp_id in wrong for item in found[:20]) / 20
    # One in ten labels is wrong; among the twenty most doubted far more are.
    assert share_wrong >= 0.5


def test_a_careless_majority_is_doubted_by_the_votes_alone() -> None:
    rng = random.Random(4)
    people = {f"careful-{n}": 0.97 for n in range(3)} | {f"coin-{n}": 0.5 for n in range(4)}
    records = []
    for number in range(150):
        votes = tuple(
            strict_vote(*(("a", "b") if rng.random() < care else ("b", "a")), annotator=name)
            for name, care in people.items()
        )
        record = pair(number, "a")
        records.append(PreferenceRecord(record.prompt, record.responses, votes, line=record.line))
    outvoted = {
        cmp_id_of(record) for record in records if sum(vote.tiers[0] == ("a",) for vote in record.votes) < 4
    }

    found = find_suspects(records)

    assert len(outvoted) >= 5
    assert all(set(item.reasons) == {VOTES} for item in found)
    assert sum(item.cmp_id in outvoted for item in found) >= 0.8 * len(outvoted)


def test_a_pair_inside_a_circle_is_doubted_and_one_outside_is_not() -> None:
    circle = [
        pair(n, "a", texts=texts, prompt="which?")
        for n, texts in enumerate((("x", "y"), ("y", "z"), ("z", "x"), ("x", "w")))
    ]

    found = find_suspects(circle)

    assert {item.record.line for item in found} == {1, 2, 3}
    assert all(item.reasons == {CIRCLE: 0.5} for item in found)


def test_the_order_of_the_responses_does_not_matter_to_the_margin() -> None:
    record = pair(0, "b")
    sure = find_suspects([record], {cmp_id_of(record): [-3.0]})
    against = find_suspects([record], {cmp_id_of(record): [3.0]})

    assert sure == []
    # 1 / (1 + e^3) = 0.0474
    assert against[0].confidence == pytest.approx(0.0474, abs=1e-4)


def test_the_command_writes_what_export_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records, margins, _ = planted(60, 0.2, seed=2)
    votes, scores = tmp_path / "votes.jsonl", tmp_path / "margins.jsonl"
    write_records(votes, records)
    scores.write_text("".join(json.dumps({"cmp_id": n, "margins": m}) + "\n" for n, m in margins.items()))
    out = tmp_path / "doubted.jsonl"

    assert (
        main(["data", "noise", str(votes), "--margins", str(scores), "--count", "5", "--out", str(out)]) == 0
    )

    said = capsys.readouterr().out
    assert "60 of 60 comparisons have margins" in said
    again, rejected = read_records(out)
    assert (len(again), rejected) == (5, 0)
    assert all(record.meta["doubt"]["confidence"] < 0.5 for record in again)
    assert main(["data", "export", str(out), "--to", "csv", "--out", str(tmp_path / "round")]) == 0


def test_a_share_out_of_range_is_refused(tmp_path: Path) -> None:
    assert main(["data", "noise", str(tmp_path / "x.jsonl"), "--below", "1.5"]) == 2
