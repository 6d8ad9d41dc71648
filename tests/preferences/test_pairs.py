"""Votes become pairs: majority, ties, soft labels, weights; numbers worked by hand."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.errors import DataError
from reward.preferences.pairs import load_pairs
from reward.preferences.split import prompt_components, split_groups


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def comparison(*votes: dict, responses: int = 2, prompt: str = "Name a colour.", **more: object) -> dict:
    texts = ["Red, like a ripe apple.", "Blue.", "Seven.", "Green grass."][:responses]
    return {
        "prompt": prompt,
        "responses": [{"id": f"r{n}", "text": text} for n, text in enumerate(texts)],
        "votes": list(votes),
        **more,
    }


def says(annotator: str, *tiers: list[str]) -> dict:
    return {"annotator": annotator, "tiers": list(tiers)}


def test_soft_label_counts_a_tie_as_half_a_win(tmp_path: Path) -> None:
    row = comparison(says("a", ["r1"], ["r0"]), says("b", ["r1"], ["r0"]), says("c", ["r0", "r1"]))

    pair = load_pairs(write(tmp_path / "x.jsonl", row)).pairs[0]

    # Two of three for r1, one tie: (2 + 0.5) / 3.
    assert pair.chosen == "Blue."
    assert pair.rejected == "Red, like a ripe apple."
    assert pair.label == pytest.approx(2.5 / 3)
    assert (pair.votes, pair.tie, pair.weight, pair.line) == (3, False, 1.0, 1)


def test_an_even_vote_is_a_tie_and_no_pair(tmp_path: Path) -> None:
    row = comparison(says("a", ["r1"], ["r0"]), says("b", ["r0"], ["r1"]))

    found = load_pairs(write(tmp_path / "x.jsonl", row))

    assert found.pairs == []
    assert [pair.label for pair in found.ties] == [0.5]
    assert (found.report.read, found.report.accepted, found.report.ties) == (1, 1, 1)


def test_most_votes_for_a_tie_marks_the_pair(tmp_path: Path) -> None:
    row = comparison(says("a", ["r0", "r1"]), says("b", ["r0", "r1"]), says("c", ["r0"], ["r1"]))

    pair = load_pairs(write(tmp_path / "x.jsonl", row)).pairs[0]

    # (1 + 0.5 * 2) / 3.
    assert pair.tie
    assert pair.label == pytest.approx(2 / 3)


def test_a_ranking_of_three_gives_three_pairs_that_weigh_one(tmp_path: Path) -> None:
    row = comparison(says("a", ["r2"], ["r0"], ["r1"]), responses=3)

    found = load_pairs(write(tmp_path / "x.jsonl", row))

    assert sorted((p.chosen, p.rejected) for p in found.pairs) == [
        ("Red, like a ripe apple.", "Blue."),
        ("Seven.", "Blue."),
        ("Seven.", "Red, like a ripe apple."),
    ]
    assert sum(p.weight for p in found.pairs) == pytest.approx(1.0)
    assert len({p.group for p in found.pairs}) == 1


def test_responses_that_were_not_placed_make_no_pair(tmp_path: Path) -> None:
    row = comparison(says("a", ["r2"], ["r0"]), responses=3)

    found = load_pairs(write(tmp_path / "x.jsonl", row))

    assert [(p.chosen, p.weight) for p in found.pairs] == [("Seven.", 1.0)]


def test_skips_and_cancelled_votes_order_nothing(tmp_path: Path) -> None:
    row = comparison({"annotator": "a", "kind": "skip"}, {"annotator": "b", "kind": "cancelled"})

    found = load_pairs(write(tmp_path / "x.jsonl", row))

    assert found.pairs == []
    assert found.ties == []
    assert found.report.unjudged == 1


def test_votes_in_separate_rows_are_gathered_whatever_the_order_of_the_responses(tmp_path: Path) -> None:
    first = comparison(says("a", ["r0"], ["r1"]))
    second = comparison(says("b", ["r1"], ["r0"]))
    second["responses"].reverse()
    third = comparison(says("c", ["r0"], ["r1"]))

    found = load_pairs(write(tmp_path / "x.jsonl", first, second, third))

    assert [(p.votes, p.label) for p in found.pairs] == [(3, pytest.approx(2 / 3))]
    assert found.report.read == found.report.accepted == 3


def test_rows_without_annotators_are_not_gathered(tmp_path: Path) -> None:
    row = {"prompt": "p", "chosen": "yes", "rejected": "no"}

    found = load_pairs(write(tmp_path / "x.jsonl", row, row))

    assert [p.line for p in found.pairs] == [1, 2]


def test_margin_turns_with_the_sides(tmp_path: Path) -> None:
    kept = {"prompt": "p", "chosen": "yes", "rejected": "no", "margin": 0.5}
    turned = comparison(says("a", ["r1"], ["r0"]), margin=-2.0)

    assert load_pairs(write(tmp_path / "x.jsonl", kept)).pairs[0].margin == 0.5
    assert load_pairs(write(tmp_path / "y.jsonl", turned)).pairs[0].margin == 2.0


def test_both_trl_spellings_of_a_dialogue_give_the_same_pair(tmp_path: Path) -> None:
    question = {"role": "user", "content": "Which way is north?"}
    good, bad = ({"role": "assistant", "content": text} for text in ("Up on most maps.", "Left."))
    explicit = {"prompt": [question], "chosen": [good], "rejected": [bad]}
    implicit = {"chosen": [question, good], "rejected": [question, bad]}
    repeated = {"prompt": "Which way is north?", "chosen": [question, good], "rejected": [question, bad]}

    pairs = [
        load_pairs(write(tmp_path / f"{n}.jsonl", row)).pairs[0]
        for n, row in enumerate([explicit, implicit, repeated])
    ]

    assert {(p.chosen, p.rejected) for p in pairs} == {("Up on most maps.", "Left.")}
    assert [p.prompt for p in pairs] == [[question]] * 3


def test_plain_texts_without_prompt_are_refused_unless_a_person_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", {"chosen": "The sky is blue", "rejected": "The sky is green"})
    mapping = tmp_path / "map.yaml"
    mapping.write_text("no_prompt: true\n")

    refused = load_pairs(path)
    told = load_pairs(path, mapping=mapping)

    assert [(r.line, r.check, r.field) for r in refused.rejects] == [(1, "no_dialogue_marks", "chosen")]
    assert (told.pairs[0].prompt, told.pairs[0].chosen) == ("", "The sky is blue")


def test_a_broken_line_is_rejected_with_its_number_and_nothing_else_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    good = json.dumps({"prompt": "p", "chosen": "yes", "rejected": "no"})
    path.write_text(f"{good}\n\n{good[:-5]}\n{good}\n[1]\n")

    found = load_pairs(path)

    assert [(r.line, r.check) for r in found.rejects] == [(3, "parse_error"), (5, "wrong_type")]
    assert [p.line for p in found.pairs] == [1, 4]
    assert found.report.read == found.report.accepted + found.report.rejected == 4


def test_unpaired_rows_are_kept_apart(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "completion": "c", "label": label} for label in (True, False)]

    found = load_pairs(write(tmp_path / "x.jsonl", *rows))

    assert found.pairs == []
    assert [record.ratings[0].value for record in found.unpaired] == [1.0, 0.0]


def test_a_missing_file_and_a_file_of_unknown_fields_are_errors_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        load_pairs(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="no known format has these fields: left, right") as raised:
        load_pairs(write(tmp_path / "x.jsonl", {"left": "a", "right": "b"}))
    assert raised.value.findings[0].hint


def test_a_split_does_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {n} about {n * n}", "chosen": "yes", "rejected": "no"} for n in range(60)]
    forward = load_pairs(write(tmp_path / "x.jsonl", *rows)).pairs
    backward = load_pairs(write(tmp_path / "y.jsonl", *reversed(rows))).pairs

    held = {forward[i].prompt for i in split_groups(forward, 0.2, 3)[1]}

    assert held == {backward[i].prompt for i in split_groups(backward, 0.2, 3)[1]}
    assert len(held) == 12
    assert held != {forward[i].prompt for i in split_groups(forward, 0.2, 4)[1]}


def test_near_duplicate_prompts_stay_on_one_side(tmp_path: Path) -> None:
    words = " ".join(f"word{n}" for n in range(40))
    # One changed last word of 40 leaves 37 of 39 word 3-grams in common: 37 / 39 > 0.8.
    rows = [{"prompt": f"{words} {tail}", "chosen": "yes", "rejected": "no"} for tail in ("x", "y", "z")]
    rows += [
        {"prompt": f"{n} other {n + 1} thing {n * 7}", "chosen": "y", "rejected": "n"} for n in range(30)
    ]
    pairs = load_pairs(write(tmp_path / "x.jsonl", *rows)).pairs

    for seed in range(12):
        train, _ = split_groups(pairs, 0.3, seed)
        assert len({0, 1, 2} & set(train)) in (0, 3)


def test_prompts_that_are_alike_by_way_of_a_third_one_stay_together() -> None:
    words = [f"word{n}" for n in range(60)]
    # Five other words at one end leave 53 of 63 word 3-grams in common, 0.84; at both ends 48 of 68, 0.71.
    middle, other = " ".join(words), [f"else{n}" for n in range(5)]
    prompts = {"a": " ".join(other + words[5:]), "b": " ".join(words[:-5] + other), "c": middle}
    rows = [SimpleNamespace(group=name, prompt=prompt) for name, prompt in prompts.items()]

    assert prompt_components(rows) == {"a": "a", "b": "a", "c": "a"}
    assert prompt_components(rows[:2]) == {"a": "a", "b": "b"}


def test_a_large_group_of_prompts_does_not_overfill_the_held_out_side() -> None:
    crowd = [SimpleNamespace(group="crowd", prompt="the one prompt of them all")] * 50
    single = [SimpleNamespace(group=f"g{n}", prompt=f"{n * 7919} quite alone {n}") for n in range(50)]
    rows = [*crowd, *single]

    for seed in range(30):
        train, held_out = split_groups(rows, 0.2, seed)

        # 20 of 100; only a crowd that is drawn first stands there alone.
        assert len(held_out) == 20 or set(held_out) == set(range(50))
        assert sorted([*train, *held_out]) == list(range(100))


def test_a_pair_names_its_subset_and_each_annotators_own_share(tmp_path):
    row = {
        "prompt": "q",
        "responses": ["one", "two"],
        "votes": [
            {"tiers": [["r1"], ["r0"]], "annotator": "ann"},
            {"tiers": [["r1"], ["r0"]], "annotator": "bob"},
            {"tiers": [["r0"], ["r1"]], "annotator": "cy"},
            {"tiers": [["r1"], ["r0"]]},
        ],
        "meta": {"subset": "chat"},
    }
    path = tmp_path / "votes.jsonl"
    path.write_text(json.dumps(row) + "\n")

    (pair,) = load_pairs(path).pairs

    assert pair.chosen == "two"
    assert pair.subset == "chat"
    assert pair.judges == (("ann", 1.0), ("bob", 1.0), ("cy", 0.0))


def test_several_right_and_wrong_texts_are_compared_across_the_sides_only(tmp_path):
    row = {"prompt": "q", "chosen": ["a", "b"], "rejected": ["x", "y", "z"], "subset": "Factuality"}
    path = tmp_path / "bench.jsonl"
    path.write_text(json.dumps(row) + "\n")

    found = load_pairs(path)

    assert found.verdict.format.name == "rewardbench-2"
    assert {(pair.chosen, pair.rejected) for pair in found.pairs} == {(c, r) for c in "ab" for r in "xyz"}
    assert found.ties == []
    assert {pair.subset for pair in found.pairs} == {"Factuality"}
    assert sum(pair.weight for pair in found.pairs) == pytest.approx(1.0)
