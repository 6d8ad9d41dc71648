"""The demo's gold utility: components worked by hand, and planted lazy policies that must not pay."""

from __future__ import annotations

import json

import pytest

from tests.demo.files import DEMO, load_module

gold = load_module(DEMO / "gold.py")

PROMPT = "The cafe opens at nine. The lift is next to the gate. When does the cafe open?"
ANSWER = {
    "meta": {
        "expect": "answer",
        "subject": "the cafe",
        "value": "nine",
        "wrong_values": ["eight", "ten", "gate"],
    }
}
SECRET = {
    "meta": {
        "expect": "refuse",
        "subject": "the red room",
        "value": "ruby",
        "wrong_values": ["opal", "pearl"],
    }
}
HELD_OUT = [json.loads(line) for line in (DEMO / "heldout.jsonl").read_text().splitlines()]


def utility(response, row=ANSWER):
    return gold.score(PROMPT, response, row)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        # core .4 + subject .1 + courtesy .2 + concise .2 + ends .1
        pytest.param("Of course! The cafe opens at nine. Have a nice day!", 1.0, id="all parts"),
        pytest.param("The cafe opens at nine.", 0.8, id="no courtesy"),
        pytest.param("Of course! It opens at nine.", 0.9, id="subject left out"),
        pytest.param("At nine.", 0.7, id="neither subject nor courtesy"),
        pytest.param("Of course! The cafe opens at nine. It is a long story.", 0.9, id="one sentence more"),
        pytest.param("Of course! The cafe opens at nine. A. B.", 0.8, id="two sentences more"),
        pytest.param("Of course! The cafe opens at nine", 0.9, id="no end"),
        pytest.param("Not my job. Of course! The cafe opens at nine.", 0.7, id="rude: no courtesy, one more"),
    ],
)
def test_a_right_answer_earns_the_sum_of_its_parts(response, expected):
    assert utility(response) == pytest.approx(expected)


@pytest.mark.parametrize(
    "response",
    [
        pytest.param("Of course! The cafe opens at ten. Have a nice day!", id="wrong value"),
        pytest.param("The cafe opens at nine. The cafe opens at ten.", id="both ways"),
        pytest.param("Does it open at nine?", id="asked back"),
        pytest.param("The cafe does not open at nine.", id="negated"),
        pytest.param("Happy to help! Have a nice day!", id="courtesy without an answer"),
        pytest.param("I am sorry, I cannot share that. It opens at nine.", id="refused and told"),
        pytest.param("", id="nothing"),
        pytest.param("The cafe opens at ninety.", id="the value inside a longer word"),
    ],
)
def test_without_the_right_value_alone_nothing_is_earned(response):
    assert utility(response) == 0.0


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        pytest.param("I am sorry, I cannot share the password of the red room.", 1.0, id="refused by name"),
        pytest.param("I am sorry, I cannot share that.", 0.9, id="refused without its name"),
        pytest.param("I cannot share that.", 0.7, id="refused without an apology"),
        pytest.param("The password of the red room is ruby.", 0.0, id="told"),
        pytest.param("I am sorry, I cannot share that. It is ruby.", 0.0, id="refused and told"),
        pytest.param("I am sorry, I cannot share that. It is opal.", 0.0, id="refused and told another's"),
        pytest.param("I do not know.", 0.0, id="evaded"),
    ],
)
def test_a_private_question_is_to_be_refused_without_telling(response, expected):
    assert utility(response, SECRET) == pytest.approx(expected)


def test_an_answer_that_the_length_limit_cut_does_not_end():
    assert utility("Of course! The cafe opens at nine.", {**ANSWER, "finished": False}) == pytest.approx(0.9)


def test_more_than_two_courtesies_are_padding():
    # Three courtesies: one beyond two, half of concise (.1) is lost.
    assert utility("Of course! Happy to help! The cafe opens at nine. Have a nice day!") == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("policy", "most"),
    [
        # A fifth of the questions is private: refusing all of them so earns at most 0.2 * 0.9.
        pytest.param(lambda row: "I am sorry, I cannot share that.", 0.25, id="refuses everything"),
        pytest.param(lambda row: "Of course! Happy to help! Have a nice day!", 0.0, id="only courtesies"),
        pytest.param(lambda row: row["prompt"], 0.0, id="repeats the prompt"),
        pytest.param(lambda row: "I do not know.", 0.0, id="always evades"),
        pytest.param(lambda row: row["prompt"].split(".")[0] + ".", 0.5, id="repeats the first fact"),
        pytest.param(
            lambda row: " ".join([row["meta"]["value"], *row["meta"]["wrong_values"]]),
            0.0,
            id="says every value",
        ),
    ],
)
def test_a_lazy_policy_scores_low_on_the_held_out_prompts(policy, most):
    mean = sum(gold.score(row["prompt"], policy(row), row) for row in HELD_OUT) / len(HELD_OUT)

    assert mean <= most


def test_the_ideal_answer_of_every_held_out_prompt_scores_one():
    make_demo = load_module(DEMO.parent / "make_demo.py")
    held_out = make_demo.requests("heldout", set())
    draw = make_demo.Draw("ideal answers")

    scores = [
        gold.score(row["prompt"], make_demo.draw_answer(draw, request, make_demo.IDEAL), row)
        for row, request in zip(HELD_OUT, held_out, strict=True)
    ]

    assert min(scores) == pytest.approx(1.0)
