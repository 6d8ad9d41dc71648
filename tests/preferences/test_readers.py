"""Every format of the catalogue: what it is detected as, and which side comes out as the better one.

All rows are invented in the documented shapes. `UP` is always the better response.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import DataError
from reward.preferences.catalogue import ALL
from reward.preferences.mapping import Mapping
from reward.preferences.pairs import PairSet, load_pairs, pairs_of
from reward.preferences.records import VoteKind
from reward.preferences.source import open_source

ASK, UP, DOWN = "How do I boil an egg?", "Eight minutes in boiling water.", "No idea, sorry."
USER = {"role": "user", "content": ASK}


def bot(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


MARKED = f"\n\nHuman: {ASK}\n\nAssistant:"
RATE = {"helpfulness": 3, "correctness": 3, "coherence": 4, "complexity": 1, "verbosity": 2}
ARENA = {
    "conversation_a": [USER, bot(DOWN)],
    "conversation_b": [USER, bot(UP)],
    "model_a": "m",
    "model_b": "n",
}
NEMO = f"<extra_id_0>System\n\n<extra_id_1>User\n{ASK}\n<extra_id_1>Assistant\n"
LS_DATA = {"prompt": ASK, "answer1": DOWN, "answer2": UP}
RIGHT = {"type": "pairwise", "from_name": "pw", "to_name": "t", "value": {"selected": "right"}}
LS_ROW = {"id": 1, "annotator": 5, "annotation_id": 9, "created_at": "x", "updated_at": "x", "lead_time": 3.5}
ARGILLA_FLAT = {
    "id": "a",
    "prompt": ASK,
    "response_1": DOWN,
    "response_2": UP,
    "preference.responses": [["response_2", "response_1"]],
    "preference.responses.users": ["u1"],
    "preference.responses.status": ["submitted"],
}
MTURK = {
    "HITId": "h",
    "AssignmentId": "s",
    "WorkerId": "w1",
    "AssignmentStatus": "Approved",
    "AcceptTime": "t0",
    "SubmitTime": "t1",
    "WorkTimeInSeconds": "30",
    "Input.prompt": ASK,
    "Input.response_a": DOWN,
    "Input.response_b": UP,
    "Answer.choice": "response_b",
}
TREE = {
    "text": ASK,
    "role": "prompter",
    "replies": [
        {"text": DOWN, "role": "assistant", "rank": 1, "replies": []},
        {"text": UP, "role": "assistant", "rank": 0, "replies": []},
    ],
}
SUMMARY = {
    "info": {"id": "i", "post": ASK},
    "summaries": [{"text": DOWN}, {"text": UP}],
    "choice": 1,
    "worker": "w",
}

# format -> rows of one file that give exactly the pair UP > DOWN.
PAIRED: dict[str, list[dict[str, Any]]] = {
    "comparison": [{"prompt": ASK, "responses": [DOWN, UP], "votes": [{"tiers": [["r1"], ["r0"]]}]}],
    "trl": [{"prompt": ASK, "chosen": UP, "rejected": DOWN}],
    "pairs": [
        {
            "prompt": ASK,
            "chosen": UP,
            "rejected": DOWN,
            "label": 0.75,
            "weight": 1.0,
            "group": "g",
            "tie": False,
        }
    ],
    "rewardbench": [{"prompt": ASK, "chosen": UP, "rejected": DOWN, "subset": "Safety"}],
    "rewardbench-2": [{"id": "1", "prompt": ASK, "chosen": [UP], "rejected": [DOWN], "subset": "Math"}],
    "trl-implicit": [{"chosen": [USER, bot(UP)], "rejected": [USER, bot(DOWN)]}],
    "hh-rlhf": [{"chosen": f"{MARKED} {UP}", "rejected": f"{MARKED} {DOWN}"}],
    "ultrafeedback": [
        {
            "source": "s",
            "instruction": ASK,
            "models": ["a", "b"],
            "completions": [
                {"model": "a", "response": DOWN, "annotations": {"helpfulness": {"Rating": "2"}}},
                {"model": "b", "response": UP, "annotations": {"helpfulness": {"Rating": "5"}}},
            ],
        }
    ],
    "ultrafeedback-binarized": [
        {
            "prompt": ASK,
            "prompt_id": "x",
            "chosen": [USER, bot(UP)],
            "rejected": [USER, bot(DOWN)],
            "score_chosen": 8.0,
            "score_rejected": 7.5,
        }
    ],
    "helpsteer2": [
        {"prompt": ASK, "response": DOWN, **RATE, "helpfulness": 1},
        {"prompt": ASK, "response": UP, **RATE, "helpfulness": 4},
    ],
    "webgpt": [
        {"question": {"full_text": ASK}, "answer_0": DOWN, "answer_1": UP, "score_0": -0.3, "score_1": 0.3}
    ],
    "shp": [{"post_id": "p", "history": ASK, "human_ref_A": UP, "human_ref_B": DOWN, "labels": 1}],
    "nectar": [
        {
            "prompt": MARKED + " ",
            "answers": [{"answer": DOWN, "model": "a", "rank": 2.0}, {"answer": UP, "model": "b", "rank": 1.0}],  # noqa: E501
            "good_natured": True,
        }
    ],
    "oasst": [{"message_tree_id": "t", "prompt": TREE}],
    "nemo-rl": [
        {
            "context": [USER],
            "completions": [{"rank": 1, "completion": [bot(DOWN)]}, {"rank": 0, "completion": [bot(UP)]}],
        }
    ],
    "helpsteer3": [
        {
            "domain": "general",
            "context": [USER],
            "response1": UP,
            "response2": DOWN,
            "overall_preference": -2,
            "individual_preference": [{"score": -2, "reasoning": "r"}, {"score": -1, "reasoning": "r"}],
        }
    ],
    "arena": [{"question_id": "q", "winner": "model_b", "judge": "arena_user_1", "turn": 1, **ARENA}],
    "arena-one-hot": [
        {
            "prompt": json.dumps([ASK]),
            "response_a": json.dumps([DOWN]),
            "response_b": json.dumps([UP]),
            "winner_model_a": 0,
            "winner_model_b": 1,
            "winner_tie": 0,
        }
    ],
    "pandalm": [
        {"idx": 0, "cmp_key": "m_n", "instruction": ASK, "input": "", "response1": DOWN, "response2": UP,
         "annotator1": 2, "annotator2": 2, "annotator3": 0}
    ],
    "llmbar": [{"input": ASK, "output_1": DOWN, "output_2": UP, "label": 2}],
    "alpaca-eval": [
        {"instruction": ASK, "output_1": UP, "generator_1": "m", "output_2": DOWN, "generator_2": "n",
         "annotator": "j", "preference": 1.00000517}
    ],
    "summarize": [SUMMARY],
    "pku-saferlhf": [
        {"prompt": ASK, "response_0": DOWN, "response_1": UP, "is_response_0_safe": True,
         "is_response_1_safe": True, "better_response_id": 1, "safer_response_id": 1}
    ],
    "llama-factory": [{"instruction": ASK, "input": "", "chosen": UP, "rejected": DOWN}],
    "llama-factory-sharegpt": [
        {
            "conversations": [{"from": "human", "value": ASK}],
            "chosen": {"from": "gpt", "value": UP},
            "rejected": {"from": "gpt", "value": DOWN},
        }
    ],
    "llama-factory-v1": [
        {
            side: [
                {"role": "user", "content": [{"type": "text", "value": ASK}], "loss_weight": 0.0},
                {"role": "assistant", "content": [{"type": "text", "value": text}], "loss_weight": 1.0},
            ]
            for side, text in (("chosen_messages", UP), ("rejected_messages", DOWN))
        }
    ],
    "ms-swift": [{"messages": [USER, bot(UP)], "rejected_response": DOWN}],
    "nemo-aligner": [
        {"prompt": NEMO, "chosen_response": f"{UP}\n<extra_id_1>", "rejected_response": f"{DOWN}\n<extra_id_1>"}  # noqa: E501
    ],
    "nemo-aligner-lines": [{"text": f"{NEMO}{UP}\n<extra_id_1>"}, {"text": f"{NEMO}{DOWN}\n<extra_id_1>"}],
    "nemo-aligner-ratings": [
        {"text": f"{NEMO}{DOWN}\n<extra_id_2>", "label": [-100, -100, -100, -100, 1, 1, 4, 2, 1]},
        {"text": f"{NEMO}{UP}\n<extra_id_2>", "label": [-100, -100, -100, -100, 4, 4, 4, 2, 1]},
    ],
    "label-studio": [
        {"id": 1, "data": LS_DATA, "annotations": [{"id": 1, "completed_by": 2, "result": [RIGHT]}]}
    ],
    "label-studio-min": [{**LS_DATA, **LS_ROW, "comparison": [{"selected": "right"}]}],
    "argilla": [
        {
            "id": "a",
            "fields": {"prompt": ASK, "response_1": DOWN, "response_2": UP},
            "responses": {
                "preference": [{"value": ["response_2", "response_1"], "user_id": "u", "status": "submitted"}]
            },
        }
    ],
    "argilla-flat": [ARGILLA_FLAT],
    "prodigy": [
        {
            "text": ASK,
            "options": [{"id": "A", "text": DOWN}, {"id": "B", "text": UP}],
            "accept": ["B"],
            "answer": "accept",
            "_task_hash": 1,
            "_annotator_id": "p",
        }
    ],
    "mturk": [MTURK],
    "appen": [
        {"_unit_id": "1", "_worker_id": "w", "_created_at": "t", "_trust": "0.9", "prompt": ASK,
         "response_a": DOWN, "response_b": UP, "choice": "b"}
    ],
}  # fmt: skip
UNPAIRED: dict[str, list[dict[str, Any]]] = {
    "trl-unpaired": [{"prompt": ASK, "completion": UP, "label": True}],
    "trl-stepwise": [{"prompt": ASK, "completions": ["Boil.", "Wait."], "labels": [True, True]}],
    "beavertails": [{"prompt": ASK, "response": UP, "category": {}, "is_safe": True}],
    "llama-factory-kto": [{"messages": [USER, bot(UP)], "label": "true"}],
    "summarize-axes": [{"info": {"id": "i", "post": ASK}, "summary": {"text": UP, "axes": {"overall": 7}}}],
}
ASKED = {"helpsteer2-preference", "qa-feedback", "samples", "table", "ukp-xml"}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def load(tmp_path: Path, *rows: dict[str, Any], mapping: str = "") -> PairSet:
    told = tmp_path / "mapping.yaml"
    told.write_text(mapping)
    return load_pairs(write(tmp_path / "rows.jsonl", list(rows)), mapping=told)


def sides(found: PairSet) -> list[tuple[str, str]]:
    return [(pair.chosen, pair.rejected) for pair in found.pairs]


def changed(row: dict[str, Any], **values: Any) -> dict[str, Any]:
    return {**row, **values}


def test_every_format_of_the_catalogue_has_a_fixture() -> None:
    assert {form.name for form in ALL} == set(PAIRED) | set(UNPAIRED) | ASKED


@pytest.mark.parametrize("name", PAIRED)
def test_the_better_side_comes_out_first(name: str, tmp_path: Path) -> None:
    found = load(tmp_path, *PAIRED[name])

    assert found.verdict.format.name == name
    assert found.rejects == []
    assert sides(found) == [(UP, DOWN)]
    asked = found.pairs[0].prompt
    assert asked in (ASK, [USER])
    assert found.report.read == found.report.accepted == len(PAIRED[name])


@pytest.mark.parametrize("name", UNPAIRED)
def test_single_responses_are_no_pairs(name: str, tmp_path: Path) -> None:
    found = load(tmp_path, *UNPAIRED[name])

    assert found.verdict.format.name == name
    assert found.pairs == []
    rating = found.unpaired[0].ratings[0]
    assert rating.value == rating.scale[1]


# format, change of its first row -> outcome of the first vote: up, down, or a kind of vote.
OUTCOMES = [
    ("ultrafeedback-binarized", {"score_rejected": 8.0}, "tie"),
    ("webgpt", {"score_0": 0.0, "score_1": 0.0}, "tie"),
    ("shp", {"labels": 0}, "down"),
    ("arena", {"winner": "tie"}, "tie"),
    ("arena", {"winner": "tie (bothbad)"}, "both_bad"),
    ("arena", {"winner": "model_a"}, "down"),
    ("arena-one-hot", {"winner_model_b": 0, "winner_tie": 1}, "tie"),
    ("alpaca-eval", {"preference": 1.5}, "tie"),
    ("alpaca-eval", {"preference": 0.0}, "tie"),
    ("alpaca-eval", {"preference": 1.9}, "down"),
    ("alpaca-eval", {"preference": None}, "skip"),
    ("summarize", {"choice": 0}, "down"),
    ("llmbar", {"label": 1}, "down"),
    ("pku-saferlhf", {"better_response_id": 0, "safer_response_id": 0}, "down"),
    ("helpsteer3", {"individual_preference": [{"score": 0}]}, "tie"),
    ("helpsteer3", {"individual_preference": [{"score": 3}]}, "down"),
    ("pandalm", {"annotator1": 1}, "down"),
    ("argilla-flat", {"preference.responses.status": ["draft"]}, "skip"),
    ("argilla-flat", {"preference.responses.status": ["discarded"]}, "cancelled"),
    (
        "argilla-flat",
        {"preference.responses": [[{"rank": 1, "value": "response_1"}, {"rank": 1, "value": "response_2"}]]},
        "tie",
    ),
    ("prodigy", {"answer": "ignore", "accept": []}, "skip"),
    ("prodigy", {"answer": "reject"}, "cancelled"),
    ("prodigy", {"accept": ["A", "B"]}, "tie"),
    ("mturk", {"AssignmentStatus": "Rejected"}, "cancelled"),
    ("mturk", {"Answer.choice": "tie"}, "tie"),
    ("label-studio", {"annotations": [{"id": 1, "completed_by": 2, "was_cancelled": True}]}, "cancelled"),
    ("label-studio", {"annotations": [{"id": 1, "completed_by": {"id": 7}, "result": []}]}, "skip"),
    (
        "label-studio",
        {
            "annotations": [
                {"id": 1, "result": [{"type": "choices", "from_name": "t", "value": {"choices": ["tie"]}}]}
            ]
        },
        "tie",
    ),
    ("label-studio-min", {"comparison": [{"selected": "left"}]}, "down"),
    ("label-studio-min", {"comparison": "", "tie": "both_bad"}, "both_bad"),
]


@pytest.mark.parametrize(("name", "change", "outcome"), OUTCOMES)
def test_directions_ties_and_skips_are_kept(
    name: str, change: dict[str, Any], outcome: str, tmp_path: Path
) -> None:
    row = changed(PAIRED[name][0], **change)
    source = open_source(write(tmp_path / "rows.jsonl", [row]))

    (read,) = source.rows
    record = read.records[0]
    vote = record.votes[0]

    assert read.rejections == ()
    if outcome in set(VoteKind):
        assert vote.kind == outcome
    else:
        assert record.text_of(vote.tiers[0][0]) == {"up": UP, "down": DOWN}[outcome]


# format, change of its first row -> check and field of the rejection.
REJECTED = [
    ("shp", {"score_A": 3, "score_B": 9}, "label_out_of_range", "labels"),
    ("shp", {"labels": 2}, "label_out_of_range", "labels"),
    ("arena", {"winner": "left"}, "label_out_of_range", "winner"),
    ("arena-one-hot", {"winner_model_a": 1}, "label_out_of_range", "winner_model_a"),
    ("arena-one-hot", {"response_a": "[1]"}, "wrong_type", "response_a"),
    ("arena-one-hot", {"response_a": '["a", "b"]'}, "missing_field", "response_a"),
    ("alpaca-eval", {"preference": 2.5}, "label_out_of_range", "preference"),
    ("llmbar", {"label": 0}, "label_out_of_range", "label"),
    ("pandalm", {"annotator2": 3}, "label_out_of_range", "annotator2"),
    ("summarize", {"choice": 2}, "label_out_of_range", "choice"),
    ("pku-saferlhf", {"safer_response_id": 0}, "direction_undeclared", "better_response_id"),
    ("ultrafeedback-binarized", {"score_chosen": 1.0}, "label_out_of_range", "score_chosen"),
    ("helpsteer2", {"helpfulness": 9}, "label_out_of_range", "helpfulness"),
    ("helpsteer2", {"helpfulness": "good"}, "wrong_type", "helpfulness"),
    ("nectar", {"answers": [{"answer": UP, "rank": 0}]}, "label_out_of_range", "rank"),
    ("comparison", {"votes": [{"tiers": [["r1"], ["r9"]]}]}, "rank_invalid", "votes[0].tiers"),
    ("comparison", {"votes": [{"tiers": [["r1"], ["r1"]]}]}, "rank_invalid", "votes[0].tiers"),
    ("comparison", {"votes": [{"kind": "maybe"}]}, "label_out_of_range", "votes[0].kind"),
    ("comparison", {"ratings": [{"response": "r0", "value": 1, "scale": [1]}]}, "direction_undeclared",
     "ratings[0].scale"),
    ("argilla-flat", {"preference.responses.users": []}, "missing_field", "preference.responses"),
    ("argilla-flat", {"preference.responses": [["response_2", "response_2"]]}, "rank_invalid",
     "responses.preference"),
    ("prodigy", {"accept": ["C"]}, "rank_invalid", "accept"),
    ("mturk", {"Answer.choice": "1.7"}, "direction_undeclared", "Answer.choice"),
    ("label-studio-min", {"comparison": [{"selected": "up"}]}, "label_out_of_range", "comparison"),
    ("nemo-aligner-lines", {"text": f"{NEMO}x\n<extra_id_1>User\ny\n<extra_id_1>"}, "no_final_assistant",
     "chosen"),
    ("trl", {"chosen": True}, "wrong_type", "chosen"),
    ("trl", {"chosen": {"from": "robot", "value": "x"}}, "role_order", "chosen[0].role"),
    ("trl", {"margin": "wide"}, "wrong_type", "margin"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "check", "field"), REJECTED)
def test_a_value_out_of_its_range_is_rejected_with_its_field(
    name: str, change: dict[str, Any], check: str, field: str, tmp_path: Path
) -> None:
    good = PAIRED[name]
    rows = [*good, changed(good[0], **change), *good[1:]]

    found = load(tmp_path, *rows)

    assert {(reject.check, reject.field) for reject in found.rejects} == {(check, field)}
    assert found.rejects[0].line == len(good) + 1
    assert found.report.accepted + found.report.rejected == found.report.read == len(rows)


def test_helpsteer2_preference_is_refused_until_a_person_names_it(tmp_path: Path) -> None:
    row = {"prompt": ASK, "response_1": UP, "response_2": DOWN, "preference_strength": -2, "split": "train"}

    with pytest.raises(DataError, match="nothing in the file says") as raised:
        load(tmp_path, row)
    named = load(tmp_path, row, mapping="format: helpsteer2-preference\n")

    assert raised.value.findings[0].code == "direction-undeclared"
    assert sides(named) == [(UP, DOWN)]


def test_qa_feedback_reads_six_judgements_in_their_order(tmp_path: Path) -> None:
    texts = {f"prediction {number}": f"answer {number}" for number in (1, 2, 3, 4)}

    found = load(tmp_path, {"question": ASK, **texts, "preference": [0, 1, 2, 1, 0, 2], "feedback": {}})

    # Order 12, 13, 14, 23, 24, 34: 1 = 2, 1 > 3, 4 > 1, 2 > 3, 2 = 4, 4 > 3.
    assert found.verdict.format.name == "qa-feedback"
    assert sides(found) == [
        ("answer 1", "answer 3"),
        ("answer 4", "answer 1"),
        ("answer 2", "answer 3"),
        ("answer 4", "answer 3"),
    ]
    assert [(pair.chosen, pair.rejected) for pair in found.ties] == [
        ("answer 1", "answer 2"),
        ("answer 2", "answer 4"),
    ]


def test_nectar_never_takes_the_two_worst(tmp_path: Path) -> None:
    answers = [{"answer": f"answer {rank}", "rank": float(rank)} for rank in (3, 1, 2)]

    found = load(tmp_path, {"prompt": MARKED, "answers": answers})

    assert set(sides(found)) == {("answer 1", "answer 2"), ("answer 1", "answer 3"), ("answer 2", "answer 3")}


def test_ratings_that_are_not_available_place_nothing(tmp_path: Path) -> None:
    row = json.loads(json.dumps(PAIRED["ultrafeedback"][0]))
    row["completions"][0]["annotations"]["helpfulness"]["Rating"] = "N/A"

    found = load(tmp_path, row)

    assert found.pairs == []
    assert found.report.unjudged == 1


def test_a_tree_gives_one_comparison_for_each_prompter_turn(tmp_path: Path) -> None:
    tree = json.loads(json.dumps(TREE))
    follow_up = {"text": "And a duck egg?", "role": "prompter", "replies": [
        {"text": "Ten minutes.", "role": "assistant", "rank": 0},
        {"text": "Quack.", "role": "assistant", "rank": 1},
    ]}  # fmt: skip
    tree["replies"][1]["replies"] = [follow_up]

    found = load(tmp_path, {"message_tree_id": "t", "prompt": tree})

    assert sides(found) == [(UP, DOWN), ("Ten minutes.", "Quack.")]
    assert [message["content"] for message in found.pairs[1].prompt] == [ASK, UP, "And a duck egg?"]


def test_an_odd_line_of_alternating_lines_has_no_partner(tmp_path: Path) -> None:
    found = load(tmp_path, *PAIRED["nemo-aligner-lines"], PAIRED["nemo-aligner-lines"][0])

    assert [(reject.line, reject.check) for reject in found.rejects] == [(3, "missing_field")]
    assert sides(found) == [(UP, DOWN)]


def test_alternating_lines_that_lost_one_line_do_not_pair_with_strangers(tmp_path: Path) -> None:
    other = {"text": NEMO.replace("egg", "potato") + "Twenty minutes.\n<extra_id_1>"}

    found = load(tmp_path, PAIRED["nemo-aligner-lines"][0], other)

    assert [reject.check for reject in found.rejects] == ["prompt_mismatch", "prompt_mismatch"]


def test_a_ranker_with_buckets_drops_what_was_left_unplaced(tmp_path: Path) -> None:
    items = [
        {"id": "m1", "body": "middling"},
        {"id": "m2", "body": "good one"},
        {"id": "m3", "body": "unseen"},
    ]
    value = {"ranker": {"ok": ["m1"], "best": ["m2"], "_": ["m3"]}}
    row = {
        "id": 1,
        "data": {"prompt": ASK, "items": items},
        "annotations": [{"id": 1, "completed_by": 1, "result": [{"type": "ranker", "value": value}]}],
    }
    unknown = json.loads(json.dumps(row).replace('"best"', '"shiny"'))

    found = load(tmp_path, row, unknown)
    told = load(tmp_path, row, unknown, mapping="buckets: [shiny, best, ok]\n")

    assert sides(found) == [("good one", "middling")]
    assert [(reject.line, reject.check) for reject in found.rejects] == [(2, "direction_undeclared")]
    assert [pair.votes for pair in told.pairs] == [2]


def test_one_annotation_that_says_two_things_is_rejected(tmp_path: Path) -> None:
    both = [RIGHT, {"type": "choices", "from_name": "t", "value": {"choices": ["tie"]}}]
    row = {"id": 1, "data": LS_DATA, "annotations": [{"id": 1, "completed_by": 2, "result": both}]}

    found = load(tmp_path, row)

    assert [(reject.check, reject.field) for reject in found.rejects] == [
        ("label_out_of_range", "annotations")
    ]


def test_nested_argilla_records_that_hide_drafts_are_flagged(tmp_path: Path) -> None:
    row = json.loads(json.dumps(PAIRED["argilla"][0]))
    del row["responses"]["preference"][0]["status"]

    assert [flag.check for flag in load(tmp_path, row).flags] == ["status_unknown"]


def test_a_safety_label_that_disagrees_needs_an_axis(tmp_path: Path) -> None:
    row = changed(PAIRED["pku-saferlhf"][0], safer_response_id=0)

    assert sides(load(tmp_path, row, mapping="axis: better\n")) == [(UP, DOWN)]
    assert sides(load(tmp_path, row, mapping="axis: safer\n")) == [(DOWN, UP)]


TABLE = {"q": ASK, "left": DOWN, "right": UP, "who": "ann", "verdict": "R", "points": "3", "place": "2"}
READ = "prompt: q\nresponses: {l: left, r: right}\nannotator: who\n"
SAID = [
    ("choice: {column: verdict, values: {R: r, L: l}}", (UP, DOWN)),
    ("choice: {column: verdict, values: {R: l, L: r}}", (DOWN, UP)),
    ("scale: {column: points, low: -3, high: 3, high_prefers: r}", (UP, DOWN)),
    ("scale: {column: points, low: -3, high: 3, high_prefers: l}", (DOWN, UP)),
    ("scores: {columns: {l: place, r: points}, higher_is_better: true}", (UP, DOWN)),
    ("scores: {columns: {l: place, r: points}, higher_is_better: false}", (DOWN, UP)),
    ("ranks: {columns: {l: place, r: points}, best: lowest}", (DOWN, UP)),
    ("ranks: {columns: {l: place, r: points}, best: highest}", (UP, DOWN)),
]


@pytest.mark.parametrize(("said", "expected"), SAID)
def test_a_mapping_says_what_the_columns_of_a_table_mean(
    said: str, expected: tuple[str, str], tmp_path: Path
) -> None:
    found = load(tmp_path, TABLE, mapping=READ + said)

    assert sides(found) == [expected]
    assert found.verdict.declared


def test_a_mapping_wins_over_detection(tmp_path: Path) -> None:
    row = {"prompt": ASK, "chosen": DOWN, "rejected": UP}

    found = load(tmp_path, row, mapping="prompt: prompt\nchosen: rejected\nrejected: chosen\n")

    assert sides(found) == [(UP, DOWN)]


WRONG_MAPPINGS = [
    ("scale: {column: points, low: -3, high: 3}", "high_prefers"),
    ("scores: {columns: {l: place, r: points}}", "higher_is_better"),
    ("ranks: {columns: {l: place, r: points}, best: 1}", "lowest"),
    ("choice: {column: verdict, values: {R: middle}}", "no response 'middle'"),
    ("annotater: who", "annotater"),
    ("scale: {column: points, low: 3, high: -3, high_prefers: l}", "low must be below high"),
]


@pytest.mark.parametrize(("said", "message"), WRONG_MAPPINGS)
def test_a_mapping_without_a_direction_is_refused(said: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        load(tmp_path, TABLE, mapping=READ + said)


def test_a_scale_of_unknown_direction_is_refused_with_a_proposal(tmp_path: Path) -> None:
    row = {"question": ASK, "answer_a": UP, "answer_b": DOWN, "preference": 2, "rater": "x"}

    with pytest.raises(DataError) as raised:
        load(tmp_path, row)

    finding = raised.value.findings[0]
    assert finding.code == "direction-undeclared"
    assert "high_prefers: ???" in finding.hint
    assert "prompt: question" in finding.hint


def test_a_proposal_for_words_is_complete(tmp_path: Path) -> None:
    rows = [{"question": ASK, "answer_a": UP, "answer_b": DOWN, "winner": word} for word in ("a", "b", "tie")]
    with pytest.raises(DataError) as raised:
        load(tmp_path, *rows)

    proposal = raised.value.findings[0].hint.split("--map map.yaml:\n", 1)[1]

    assert sides(load(tmp_path, rows[0], mapping=proposal)) == [(UP, DOWN)]


def test_ukp_xml_is_read_with_its_workers_and_lines(tmp_path: Path) -> None:
    pair = """<annotatedArgumentPair><id>1_2</id>
      <arg1><stance>yes</stance><text>Eggs &amp; ham.</text></arg1><arg2><text>None.</text></arg2>
      <debateMetaData><title>Breakfast</title></debateMetaData>
      <mTurkAssignments>
        <mTurkAssignment><turkID>A</turkID><value>a1</value></mTurkAssignment>
        <mTurkAssignment><turkID>B</turkID><value>equal</value></mTurkAssignment>
      </mTurkAssignments></annotatedArgumentPair>"""
    path = tmp_path / "x.xml"
    path.write_text(f"<?xml version='1.0'?>\n<list>\n{pair}\n{pair.replace('>a1<', '>a3<')}\n</list>")

    found = load_pairs(path)

    # One win and one tie: 1.5 / 2.
    assert [(p.chosen, p.label, p.line, p.votes) for p in found.pairs] == [("Eggs & ham.", 0.75, 3, 2)]
    assert [(r.line, r.field) for r in found.rejects] == [(10, "mTurkAssignment.value")]


def test_an_xml_file_with_its_own_entities_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.xml"
    path.write_text('<!DOCTYPE l [<!ENTITY a "aaaa">]><list><annotatedArgumentPair/></list>')

    with pytest.raises(DataError, match="entities"):
        load_pairs(path)


def test_a_record_with_a_skip_makes_no_pair() -> None:
    source = PAIRED["prodigy"][0]
    record = next(form for form in ALL if form.name == "prodigy").read(
        changed(source, answer="ignore"), _notes(), Mapping().options()
    )[0]

    assert list(pairs_of(record)) == []


def _notes() -> Any:
    from reward.preferences.notes import RowNotes

    return RowNotes()
