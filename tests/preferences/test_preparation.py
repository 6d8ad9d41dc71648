"""Preparation steps: what each changes, what it leaves, and that the account is true."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.main import main
from pipeline.errors import DataError
from reward.preferences.preparation import Recipe, prepare, records_sha256, write_prepared
from reward.preferences.records import PreferenceRecord
from reward.preferences.writers import read_records
from tests.preferences.planted import clean_rows, write_jsonl


def run(tmp_path: Path, rows: list[Any], *steps: dict[str, Any], seed: int = 0) -> list[PreferenceRecord]:
    write_jsonl(tmp_path / "in.jsonl", rows)
    recipe = Recipe.model_validate({"inputs": [{"file": "in.jsonl"}], "steps": steps, "seed": seed})
    return prepare(recipe, folder=tmp_path).records


def pair(number: int = 0, **values: Any) -> dict[str, Any]:
    row = {
        "prompt": f"Question {number}?",
        "responses": [{"id": "r0", "text": f"yes {number}"}, {"id": "r1", "text": f"no {number}"}],
        "votes": [{"annotator": "ann", "tiers": [["r0"], ["r1"]]}],
    }
    return {**row, **values}


def test_cleaning_unifies_line_ends_and_takes_off_what_nobody_sees(tmp_path: Path) -> None:
    dirty = " a\r\nb\u200b\x07 e\u0301 "
    row = pair(responses=[{"id": "r0", "text": dirty}, {"id": "r1", "text": "no"}])

    (record,) = run(tmp_path, [row], {"step": "clean"})

    assert record.responses[0].text == "a\nb é"
    assert record.responses[1].text == "no"


def test_masking_names_the_kind_and_keeps_the_rest(tmp_path: Path) -> None:
    row = pair(prompt="Write to jo@example.org or 10.0.0.1 today")

    (record,) = run(tmp_path, [row], {"step": "mask_pii"})

    assert record.prompt == "Write to [email] or [ipv4] today"


def test_only_equal_judgements_are_duplicates(tmp_path: Path) -> None:
    other_person = pair(votes=[{"annotator": "ben", "tiers": [["r0"], ["r1"]]}])
    other_answer = pair(votes=[{"annotator": "ann", "tiers": [["r1"], ["r0"]]}])

    (record,) = run(tmp_path, [pair(), pair(), other_person, other_answer], {"step": "dedupe"})

    said = [(vote.annotator, vote.tiers[0][0]) for vote in record.votes]
    assert said == [("ann", "r0"), ("ben", "r0"), ("ann", "r1")]


def test_duplicates_without_names_are_dropped_too(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "chosen": "yes", "rejected": "no"}] * 3

    assert len(run(tmp_path, rows)) == 3
    assert len(run(tmp_path, rows, {"step": "dedupe"})) == 1


def test_gaps_are_filled_and_what_is_there_stays(tmp_path: Path) -> None:
    votes = [
        {"annotator": who, "tiers": [["r0"], ["r1"]], "seconds": seconds}
        for who, seconds in (("a", 10), ("b", None), ("c", 30), ("d", 20))
    ]
    (record,) = run(
        tmp_path,
        [pair(votes=votes)],
        {"step": "fill", "field": "seconds", "rule": "median"},
        {"step": "fill", "field": "guideline", "value": "v3"},
        {"step": "fill", "field": "source", "value": "policy-7"},
    )

    # The median of 10, 20 and 30.
    assert [vote.seconds for vote in record.votes] == [10, 20, 30, 20]
    assert {vote.guideline for vote in record.votes} == {"v3"}
    assert {response.source for response in record.responses} == {"policy-7"}


@pytest.mark.parametrize(
    "step",
    [
        {"step": "fill", "field": "seconds", "value": "long"},
        {"step": "fill", "field": "guideline", "rule": "median"},
        {"step": "fill", "field": "guideline"},
        {"step": "fill", "field": "strength", "rule": "median"},
        {"step": "paraphrase", "function": "missing.py:f"},
    ],
)
def test_a_step_that_does_not_fit_is_refused(step: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError):
        run(tmp_path, [pair()], step)


def test_lengths_drop_whole_comparisons_and_cut_nothing(tmp_path: Path) -> None:
    def row(number: int, words: int) -> dict[str, Any]:
        responses = [{"id": "r0", "text": "word " * words + "end"}, {"id": "r1", "text": f"one two {number}"}]
        return pair(number, responses=responses)

    rows = [row(0, 2), row(1, 9), row(2, 30)]

    assert len(run(tmp_path, rows, {"step": "length", "max_words": 10})) == 2
    assert len(run(tmp_path, rows, {"step": "length", "min_words": 4})) == 0
    assert len(run(tmp_path, rows, {"step": "length", "max_ratio": 4})) == 2
    assert len(run(tmp_path, rows, {"step": "length", "max_prompt_words": 1})) == 0


def test_people_are_dropped_with_all_their_votes(tmp_path: Path) -> None:
    votes = [{"annotator": who, "tiers": [["r0"], ["r1"]]} for who in ("ann", "ben")]

    found = run(tmp_path, [pair(0, votes=votes), pair(1)], {"step": "drop_annotators", "names": ["ann"]})

    assert [[vote.annotator for vote in record.votes] for record in found] == [["ben"]]


def test_swapping_turns_sides_and_keeps_who_won(tmp_path: Path) -> None:
    rows = [pair(number, margin=1.5) for number in range(200)]

    found = run(tmp_path, rows, {"step": "swap_order", "share": 0.5})

    turned = [record for record in found if record.responses[0].id == "r1"]
    assert 70 < len(turned) < 130
    assert all(record.text_of(record.votes[0].tiers[0][0]).startswith("yes") for record in found)
    assert all(record.margin == (-1.5 if record.responses[0].id == "r1" else 1.5) for record in found)


def test_a_draw_depends_on_seed_and_content_and_not_on_the_order_of_rows(tmp_path: Path) -> None:
    rows = [pair(number) for number in range(60)]
    step = {"step": "swap_order", "share": 0.5}

    def turned(found: list[PreferenceRecord]) -> set[str]:
        return {str(record.prompt) for record in found if record.responses[0].id == "r1"}

    assert turned(run(tmp_path, rows, step)) == turned(run(tmp_path, rows[::-1], step))
    assert turned(run(tmp_path, rows, step)) != turned(run(tmp_path, rows, step, seed=1))


def test_a_paraphrase_adds_copies_that_say_where_they_come_from(tmp_path: Path) -> None:
    (tmp_path / "reword.py").write_text("def loudly(text):\n    return text.upper()\n")
    step = {"step": "paraphrase", "function": f"{tmp_path / 'reword.py'}:loudly"}

    found = run(tmp_path, [pair(3, id="c3")], step)

    assert [str(record.prompt) for record in found] == ["Question 3?", "QUESTION 3?"]
    assert found[1].meta["paraphrase_of"] == "c3"
    assert found[1].votes == found[0].votes


def test_the_account_names_the_bytes_of_a_function_that_was_run(tmp_path: Path) -> None:
    file = tmp_path / "reword.py"
    write_jsonl(tmp_path / "in.jsonl", [pair(3)])
    step = {"step": "paraphrase", "function": f"{file}:loudly"}
    recipe = Recipe.model_validate({"inputs": [{"file": "in.jsonl"}], "steps": [step]})
    digests = []

    for body in ("text.upper()", "text.upper() + '!'"):
        file.write_text(f"def loudly(text):\n    return {body}\n")
        account = prepare(recipe, folder=tmp_path).provenance()["steps"][0]["step"]
        digests.append(account["function_sha256"])
        assert digests[-1] == hashlib.sha256(file.read_bytes()).hexdigest()

    assert digests[0] != digests[1]


def test_a_step_may_not_leave_equal_responses(tmp_path: Path) -> None:
    texts = [{"id": "r0", "text": "to a@example.org"}, {"id": "r1", "text": "to b@example.org"}]

    with pytest.raises(DataError, match=r"mask_pii leaves .* equal"):
        run(tmp_path, [pair(responses=texts)], {"step": "mask_pii"})


def test_mixing_takes_each_file_by_its_weight(tmp_path: Path) -> None:
    for name, offset in (("a", 0), ("b", 1000), ("c", 2000)):
        write_jsonl(tmp_path / f"{name}.jsonl", [pair(offset + number) for number in range(200)])
    recipe = Recipe.model_validate(
        {
            "inputs": [
                {"file": "a.jsonl"},
                {"file": "b.jsonl", "weight": 0.25},
                {"file": "c.jsonl", "weight": 2.0},
            ]
        }
    )

    prepared = prepare(recipe, folder=tmp_path)

    taken = {item["file"]: item["taken"] for item in prepared.inputs}
    assert (taken["a.jsonl"], taken["c.jsonl"]) == (200, 400)
    assert 30 < taken["b.jsonl"] < 70


def test_the_account_holds_digests_that_match_and_repeats_to_the_byte(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", clean_rows())
    recipe = Recipe.model_validate(
        {"inputs": [{"file": "in.jsonl"}], "steps": [{"step": "clean"}, {"step": "swap_order"}], "seed": 4}
    )

    account = write_prepared(prepare(recipe, folder=tmp_path), tmp_path / "one.jsonl")
    write_prepared(prepare(recipe, folder=tmp_path), tmp_path / "two.jsonl")

    found = json.loads(account.read_text())
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    steps = found["steps"]
    assert [step["step"]["step"] for step in steps] == ["clean", "swap_order"]
    assert steps[0]["sha256_out"] == steps[1]["sha256_in"]
    assert steps[0]["sha256_in"] == steps[0]["sha256_out"]
    assert steps[1]["sha256_in"] != steps[1]["sha256_out"]
    records, _ = read_records(tmp_path / "one.jsonl")
    assert found["sha256"] == records_sha256(records) == steps[1]["sha256_out"]


def test_each_step_begins_with_the_bytes_that_the_one_before_it_left(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", [pair(prompt="Write to jo@example.org\u200b today")])
    steps = [{"step": "clean"}, {"step": "mask_pii"}]
    recipe = Recipe.model_validate({"inputs": [{"file": "in.jsonl"}], "steps": steps})

    done = prepare(recipe, folder=tmp_path)

    first, second = done.steps
    assert first.sha256_in == records_sha256(read_records(tmp_path / "in.jsonl")[0])
    assert second.sha256_in == first.sha256_out
    assert second.sha256_out == records_sha256(done.records)
    assert len({first.sha256_in, first.sha256_out, second.sha256_out}) == 3


def test_the_command_prepares_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_jsonl(tmp_path / "in.jsonl", [pair(), pair(), pair(1)])
    out = tmp_path / "out.jsonl"

    assert (
        main(["data", "prepare", str(path), "--dedupe", "--clean", "--max-words", "50", "--out", str(out)])
        == 0
    )
    assert main(["data", "prepare", "--out", str(out)]) == 2
    assert main(["data", "split", str(path), "--share", "0.5", "--out", str(tmp_path / "sides")]) == 0

    shown = capsys.readouterr().out
    assert "dedupe: 2 in, 2 out" in shown
    assert out.read_text().count("\n") == 2
    sides = [(tmp_path / "sides" / f"{name}.jsonl").read_text() for name in ("train", "heldout")]
    assert sorted(side.count("\n") for side in sides) == [1, 1]
