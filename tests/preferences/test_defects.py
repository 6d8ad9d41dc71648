"""Faults planted into a clean file, one at a time: each is found with its line and its field."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from reward.preferences.checks.bias import is_refusal
from reward.preferences.checks.result import CheckResult, Verdict
from reward.preferences.checks.rows import RowTally
from reward.preferences.checks.settings import CheckSettings
from reward.preferences.inspection import Inspection, inspect_file
from reward.preferences.notes import RowFinding
from tests.preferences.planted import NUM_ROWS, PLANTED_ROW, PLANTS, Plant, clean_rows, write_jsonl
from tests.preferences.test_readers import PAIRED, UNPAIRED


def check_of(found: Inspection, name: str) -> CheckResult:
    return next(check for check in found.checks if check.id == name)


def inspect_rows(tmp_path: Path, rows: list[Any], **settings: Any) -> Inspection:
    return inspect_file(write_jsonl(tmp_path / "rows.jsonl", rows), settings=CheckSettings(**settings))


def test_nothing_is_found_in_a_clean_file(tmp_path: Path) -> None:
    found = inspect_rows(tmp_path, clean_rows())

    loud = {check.id: check.count for check in found.checks if check.verdict >= Verdict.WARN}
    assert loud == {}
    assert (found.tally.read, found.tally.rejected, found.tally.flagged) == (NUM_ROWS, 0, 0)


@pytest.mark.parametrize("name", [*PAIRED, *UNPAIRED])
def test_no_clean_row_of_any_format_is_rejected(name: str, tmp_path: Path) -> None:
    found = inspect_rows(tmp_path, {**PAIRED, **UNPAIRED}[name])

    assert found.rejects == []
    assert found.tally.rejected == 0


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_a_planted_fault_is_found_with_its_line_and_field(plant: Plant, tmp_path: Path) -> None:
    rows: list[Any] = clean_rows()
    rows[PLANTED_ROW] = plant.change(rows[PLANTED_ROW])

    found = inspect_rows(tmp_path, rows)

    check = check_of(found, plant.check)
    assert (check.count, check.of) == (1, NUM_ROWS)
    assert (check.examples[0].line, check.examples[0].field) == (PLANTED_ROW + 1, plant.field)
    assert check.verdict >= Verdict.INFO
    assert found.tally.rejected == int(plant.rejects)
    assert found.tally.flagged == int(not plant.rejects)
    assert [reject.line for reject in found.rejects] == [PLANTED_ROW + 1] * plant.rejects


def test_a_row_that_is_set_aside_is_not_flagged_too(tmp_path: Path) -> None:
    rows = clean_rows()
    rows[3]["responses"][0]["text"] = " "
    rows[3]["responses"][1]["text"] += "\u200b"
    rows[4]["responses"][1]["text"] += "\u200b"

    tally = inspect_rows(tmp_path, rows).tally

    assert (tally.rejected, tally.flagged, tally.accepted) == (1, 1, NUM_ROWS - 1)


def test_a_row_with_a_flag_and_a_rejection_counts_as_rejected() -> None:
    tally = RowTally(CheckSettings())
    odd, bad = RowFinding("mojibake", "prompt", "odd"), RowFinding("too_long", "prompt", "bad")

    for rejections, flags in (((bad,), (odd,)), ((), (odd,)), ((), ())):
        tally.see(SimpleNamespace(raw=SimpleNamespace(line=1), rejections=rejections, flags=flags))

    assert (tally.read, tally.rejected, tally.flagged, tally.accepted) == (3, 1, 1, 2)


def test_a_row_counts_once_however_many_of_its_fields_are_odd(tmp_path: Path) -> None:
    rows = clean_rows()
    for response in rows[3]["responses"]:
        response["text"] += "\u200b"

    check = check_of(inspect_rows(tmp_path, rows), "control_or_zero_width")

    assert (check.count, len(check.examples)) == (1, 1)


def test_every_fault_at_once_is_accounted_for(tmp_path: Path) -> None:
    rows: list[Any] = clean_rows(len(PLANTS))
    rows = [plant.change(row) for plant, row in zip(PLANTS, rows, strict=True)]

    found = inspect_rows(tmp_path, rows)

    rejected = {number + 1 for number, plant in enumerate(PLANTS) if plant.rejects}
    assert {reject.line for reject in found.rejects} == rejected
    assert found.tally.read == found.tally.accepted + found.tally.rejected == len(PLANTS)
    assert found.tally.flagged == len(PLANTS) - len(rejected)
    assert found.verdict is Verdict.FAIL


def test_listed_words_are_flagged_only_when_a_list_is_given(tmp_path: Path) -> None:
    rows = clean_rows()
    rows[3]["responses"][0]["text"] += " Blast it."

    assert check_of(inspect_rows(tmp_path, rows), "toxicity").count == 0
    told = check_of(inspect_rows(tmp_path, rows, toxic_words=("blast",)), "toxicity")
    assert [(example.line, example.field) for example in told.examples] == [(4, "r0")]


def test_personal_data_is_masked_in_the_report_and_rejected_by_policy(tmp_path: Path) -> None:
    rows = clean_rows()
    rows[0]["responses"][0]["text"] = "Ask jo.doe@example.org about it, she knows."

    found = inspect_rows(tmp_path, rows)
    strict = inspect_rows(tmp_path, rows, pii_rejects=True)

    assert "jo.doe" not in str(found.rendered)
    assert "[email]" in str(found.rendered)
    assert [reject.check for reject in strict.rejects] == ["pii"]


def with_votes(row: dict[str, Any], *votes: tuple[str, int]) -> dict[str, Any]:
    """Replace the votes by (annotator, better side)."""
    row["votes"] = [{"annotator": who, "tiers": [[f"r{side}"], [f"r{1 - side}"]]} for who, side in votes]
    return row


def test_one_person_who_answers_both_ways_contradicts_herself(tmp_path: Path) -> None:
    rows = clean_rows()
    with_votes(rows[9], ("ann", 0))
    again = json.loads(json.dumps(rows[9]))
    with_votes(again, ("ann", 1))
    rows.append(again)

    check = check_of(inspect_rows(tmp_path, rows), "contradiction")

    # One repeated pair, and it contradicts: above 5 % of the repeated pairs.
    assert (check.count, check.of, check.verdict) == (1, 1, Verdict.FAIL)
    assert check.examples[0].line == 10
    assert f"{NUM_ROWS + 1}" in check.examples[0].text


def test_one_person_who_prefers_and_then_finds_both_equal_does_not_contradict_herself(tmp_path: Path) -> None:
    rows = clean_rows()
    with_votes(rows[9], ("ann", 0))
    again = json.loads(json.dumps(rows[9]))
    again["votes"] = [{"annotator": "ann", "tiers": [["r0", "r1"]], "kind": "tie"}]
    rows.append(again)

    assert check_of(inspect_rows(tmp_path, rows), "contradiction").count == 0


def test_two_people_who_disagree_are_no_contradiction(tmp_path: Path) -> None:
    rows = clean_rows()
    with_votes(rows[9], ("ann", 0), ("ben", 1))

    assert check_of(inspect_rows(tmp_path, rows), "contradiction").count == 0


def test_a_repeated_judgement_is_a_duplicate(tmp_path: Path) -> None:
    rows = clean_rows()
    rows.append(json.loads(json.dumps(rows[4])))
    rows[-1]["votes"] = rows[-1]["votes"][:1]

    check = check_of(inspect_rows(tmp_path, rows), "duplicate_exact")

    assert check.count == 1
    assert (check.examples[0].line, check.examples[0].text) == (
        NUM_ROWS + 1,
        "repeats the judgement of line 5",
    )


def test_a_duplicate_with_swapped_sides_and_other_blanks_is_a_duplicate(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {n}", "chosen": f"yes {n}.", "rejected": f"no {n}."} for n in range(30)]
    rows.append({"prompt": "question  7", "chosen": "yes 7. ", "rejected": "no 7."})
    rows.append({"prompt": "question 8", "chosen": "no 8.", "rejected": "yes 8."})

    found = inspect_rows(tmp_path, rows)

    assert [example.line for example in check_of(found, "duplicate_exact").examples] == [31]
    assert check_of(found, "contradiction").count == 1


def test_votes_in_a_circle_are_found(tmp_path: Path) -> None:
    rows = clean_rows()
    prompt = "Which of three?"
    for better, worse in (("rock", "scissors"), ("scissors", "paper"), ("paper", "rock"), ("rock", "mud")):
        responses = [f"The {better}.", f"The {worse}."]
        rows.append({"prompt": prompt, "responses": responses, "votes": [{"tiers": [["r0"], ["r1"]]}]})

    check = check_of(inspect_rows(tmp_path, rows), "cycle")

    assert check.count == 3
    assert check.measured == {"components": 1, "largest": 3, "three_cycles": 1}
    assert check.examples[0].line == NUM_ROWS + 1


def test_the_same_texts_judged_the_other_way_after_another_prompt_are_no_circle(tmp_path: Path) -> None:
    rows = clean_rows()
    for prompt, better in (("Shall I wait?", 0), ("Shall I go?", 1)):
        responses = ["Yes, do so.", "No, better not."]
        votes = [{"tiers": [[f"r{better}"], [f"r{1 - better}"]]}]
        rows.append({"prompt": prompt, "responses": responses, "votes": votes})

    assert check_of(inspect_rows(tmp_path, rows), "cycle").count == 0


def test_a_ranking_is_said_to_give_many_pairs(tmp_path: Path) -> None:
    rows = clean_rows()
    texts = ["one way.", "two ways.", "three ways.", "four ways."]
    rows[0]["responses"] = [{"id": f"r{n}", "text": text} for n, text in enumerate(texts)]
    rows[0]["votes"] = [{"annotator": "ann", "tiers": [["r3"], ["r0"], ["r1", "r2"]]}]

    check = check_of(inspect_rows(tmp_path, rows), "pair_explosion")

    # 4 * 3 / 2 = 6 pairs of one ranking.
    assert (check.count, check.measured) == (6, {"rankings": 1, "largest": 6})


def test_one_text_for_many_prompts_is_boilerplate(tmp_path: Path) -> None:
    rows = clean_rows()
    for row in rows[:6]:
        row["responses"][0]["text"] = "I would rather talk about the weather."

    check = check_of(inspect_rows(tmp_path, rows), "boilerplate")

    assert check.count == 1
    assert "6 prompts" in check.examples[0].text


def test_one_text_that_answers_one_prompt_again_and_again_is_no_boilerplate(tmp_path: Path) -> None:
    rows = clean_rows()
    for row in rows[:8]:
        row["prompt"] = "What shall we talk about?"
        row["responses"][0]["text"] = "I would rather talk about the weather."

    assert check_of(inspect_rows(tmp_path, rows), "boilerplate").count == 0


def test_the_length_slope_is_the_log_odds_of_a_side_that_is_twice_as_long(tmp_path: Path) -> None:
    # 10 letters against 20 letters: one doubling. The longer side wins 30 of 40: ln(30 / 10) = 1.0986.
    rows = [
        {"prompt": f"q{n}", "chosen": f"{n:010d}" * (1 + (n < 30)), "rejected": f"{n:09d}x" * (1 + (n >= 30))}
        for n in range(40)
    ]

    check = check_of(inspect_rows(tmp_path, rows), "length_bias")

    assert (check.count, check.of) == (30, 40)
    assert check.measured["slope_per_doubling"] == pytest.approx(1.0986, abs=1e-3)


def test_nearly_equal_prompts_are_found(tmp_path: Path) -> None:
    rows = clean_rows()
    words = " ".join(f"word{n}" for n in range(40))
    rows[10]["prompt"] = f"{words} one"
    rows[50]["prompt"] = f"{words} two"

    check = check_of(inspect_rows(tmp_path, rows), "near_duplicate_prompt")

    # 38 word 3-grams in common, 40 in all: 38 / 40.
    assert (check.count, check.measured["pairs"]) == (2, 1)
    assert [example.line for example in check.examples] == [51]


def test_long_winners_are_a_length_bias(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"question {n}?", "chosen": f"a long answer to number {n}.", "rejected": f"no {n}."}
        for n in range(40)
    ]
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows[:14]]

    always = check_of(inspect_rows(tmp_path, rows), "length_bias")
    often = check_of(inspect_rows(tmp_path, swapped + rows[14:] + _more(rows, 60)), "length_bias")

    assert (always.verdict, always.measured["longer_share"]) == (Verdict.FAIL, 1.0)
    # 26 + 44 of 100 are won by the longer side: between 60 % and 75 %.
    assert (often.verdict, often.count, often.of) == (Verdict.WARN, 70, 100)


def _more(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    made = [{**rows[n % 40], "prompt": f"another question {n * 31}"} for n in range(count)]
    return [
        {**row, "chosen": row["rejected"], "rejected": row["chosen"]} if n < 16 else row
        for n, row in enumerate(made)
    ]


def test_a_preference_for_the_first_place_is_found_at_the_stated_power(tmp_path: Path) -> None:
    # With 1,000 votes a deviation of 0.052 has p below 0.001: 552 of 1,000 first.
    def rows(num_first: int) -> list[dict[str, Any]]:
        made = clean_rows(500)
        votes = [vote for row in made for vote in row["votes"]]
        for number, vote in enumerate(votes):
            vote["shown_order"] = [vote["tiers"][0][0], vote["tiers"][1][0]]
            if number >= num_first:
                vote["shown_order"].reverse()
        return made

    biased = check_of(inspect_rows(tmp_path, rows(553)), "position_bias")
    fair = check_of(inspect_rows(tmp_path, rows(515)), "position_bias")

    assert (biased.verdict, biased.count, biased.of) == (Verdict.WARN, 553, 1000)
    assert fair.verdict is Verdict.OK


def test_ties_say_nothing_of_a_taste_for_a_place(tmp_path: Path) -> None:
    rows = clean_rows()
    decided = check_of(inspect_rows(tmp_path, rows), "position_bias")
    for row in rows[:20]:
        tie = {"annotator": "ann", "tiers": [["r0", "r1"]], "kind": "tie", "shown_order": ["r0", "r1"]}
        row["votes"].append(tie)

    check = check_of(inspect_rows(tmp_path, rows), "position_bias")

    assert check.of == decided.of == 2 * NUM_ROWS
    assert check.measured["first_share"] == decided.measured["first_share"]


@pytest.mark.parametrize(("second", "measured"), [("ann", (1, 1.0)), ("ben", (0, None))])
def test_only_a_person_who_judged_both_orders_can_have_changed_sides(
    tmp_path: Path, second: str, measured: tuple[int, float | None]
) -> None:
    rows = clean_rows()
    rows[5]["votes"] = [
        {"annotator": who, "tiers": [[first], [other]], "kind": "strict", "shown_order": [first, other]}
        for who, first, other in (("ann", "r0", "r1"), (second, "r1", "r0"))
    ]

    check = check_of(inspect_rows(tmp_path, rows), "position_bias")

    # Each time the response shown first was preferred.
    assert (check.measured["swapped_pairs"], check.measured["swap_flip_rate"]) == measured


def test_a_source_that_only_meets_itself_wins_nothing(tmp_path: Path) -> None:
    rows = clean_rows()
    for row in rows:
        for response in row["responses"]:
            response["source"] = "one-model"

    check = check_of(inspect_rows(tmp_path, rows), "source_confound")

    assert (check.count, check.of, check.measured) == (0, 0, {})
    assert check.verdict is Verdict.INFO


def test_a_refusal_is_looked_for_at_the_beginning_of_a_text_only() -> None:
    assert is_refusal("I'm sorry, but no.")
    assert not is_refusal("Gladly. " * 40 + "I'm sorry, but no.")


def test_position_bias_is_not_measurable_without_the_order(tmp_path: Path) -> None:
    rows = clean_rows()
    for row in rows:
        for vote in row["votes"]:
            del vote["shown_order"]

    check = check_of(inspect_rows(tmp_path, rows), "position_bias")

    assert check.verdict is Verdict.INFO
    assert check.advice.startswith("Not measurable")


def test_a_source_that_always_wins_is_a_confound(tmp_path: Path) -> None:
    rows = clean_rows()
    for row in rows:
        winner = row["votes"][0]["tiers"][0][0]
        row["votes"] = row["votes"][:1]
        for response in row["responses"]:
            response["source"] = "gold-writer" if response["id"] == winner else "small-model"

    check = check_of(inspect_rows(tmp_path, rows), "source_confound")

    assert check.count == 1
    assert check.examples[0].text == f"gold-writer wins {NUM_ROWS} of {NUM_ROWS} pairs"


def test_many_ties_are_said(tmp_path: Path) -> None:
    rows = clean_rows()
    for row in rows[:40]:
        row["votes"] = [{"annotator": "x", "kind": "tie"}, {"annotator": "y", "kind": "both_bad"}]

    check = check_of(inspect_rows(tmp_path, rows), "tie_rate")

    assert (check.verdict, check.count, check.of) == (Verdict.WARN, 80, 120)
    assert check.measured["both_bad"] == 40


def test_refusals_on_one_side_are_said(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"q {n}?", "chosen": f"Take {n} spoons.", "rejected": f"Well, {n}."} for n in range(40)
    ]
    for n, row in enumerate(rows[:12]):
        row["chosen"] = f"I'm sorry, but I can't help with number {n}."

    check = check_of(inspect_rows(tmp_path, rows), "refusal_skew")

    assert check.verdict is Verdict.WARN
    assert check.measured == {"chosen": 12, "rejected": 0}


@pytest.mark.parametrize(
    ("raw", "check"),
    [
        pytest.param(lambda text: b"\xef\xbb\xbf" + text.encode(), "bom", id="byte order mark"),
        pytest.param(lambda text: text.encode("utf-16"), "file_encoding", id="UTF-16"),
        pytest.param(lambda text: text.encode("utf-16-le"), "file_encoding", id="UTF-16 without a mark"),
        pytest.param(lambda text: text.encode("utf-32"), "file_encoding", id="UTF-32"),
        pytest.param(
            lambda text: text.replace("\n", "\r\n", 3).encode(), "mixed_newlines", id="mixed line ends"
        ),
    ],
)
def test_the_form_of_a_file_is_noted_and_nothing_is_lost(raw: Any, check: str, tmp_path: Path) -> None:
    text = write_jsonl(tmp_path / "plain.jsonl", clean_rows()).read_text("utf-8")
    path = tmp_path / "rows.jsonl"
    path.write_bytes(raw(text))

    found = inspect_file(path)

    assert check_of(found, check).verdict is Verdict.WARN
    assert (found.tally.read, found.tally.rejected) == (NUM_ROWS, 0)


def test_a_byte_that_is_not_utf8_costs_its_row_only(tmp_path: Path) -> None:
    rows = clean_rows()
    rows[0]["responses"][0]["text"] += " Für Öl, Käse und Würste über alles: größer."
    text = write_jsonl(tmp_path / "rows.jsonl", rows).read_bytes().splitlines()
    text[20] = text[20].replace(b"Answer", b"Answ\xe9r", 1)
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(text) + b"\n")

    found = inspect_file(tmp_path / "rows.jsonl")

    assert [(reject.line, reject.check) for reject in found.rejects] == [(21, "encoding_not_utf8")]


def test_too_long_and_equal_when_cut_need_a_tokenizer(tmp_path: Path) -> None:
    rows = clean_rows()
    rows[1]["responses"][0]["text"] = "same " * 30 + "left"
    rows[1]["responses"][1]["text"] = "same " * 30 + "right, and then some more words"
    path = write_jsonl(tmp_path / "rows.jsonl", rows)

    found = inspect_file(
        path,
        settings=CheckSettings(max_length=40),
        token_ids=lambda prompt, response: (list(range(10)), [hash(word) for word in response.split()]),
    )

    # 10 tokens of prompt leave 30 of the 31 and 36 words: the 30 that are equal.
    checks = {reject.check for reject in found.rejects if reject.line == 2}
    assert checks == {"too_long"}
    assert check_of(found, "identical_after_truncation").examples[0].line == 2
