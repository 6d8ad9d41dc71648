"""Probes that a sound reward model scores below the response, and the card as a table."""

from __future__ import annotations

import json
import math

from reward.card import report_card
from reward.card_table import card_table
from reward.probes import SAME, WORSE, probe_flags, probe_report, probe_texts
from tests.test_reward_card import scored


def test_the_probes_of_two_responses_by_hand():
    texts = probe_texts(["One two. Three!", "Four"])

    assert texts["empty"] == ["", ""]
    assert texts["repeated three times"] == [
        "One two. Three! One two. Three! One two. Three!",
        "Four Four Four",
    ]
    assert texts["first half only"] == ["One", "Four"]
    assert texts["answer to another prompt"] == ["Four", "One two. Three!"]
    assert texts["a line break added"][0].endswith("!\n")
    assert texts["as a bold list"] == ["- **One two**\n- **Three**", "- **Four**"]
    assert set(texts) == {*WORSE, *SAME}


def test_shifts_and_shares_by_hand():
    # originals 0 and 2: mean 1, standard deviation 1; probe shifts +1 and -3
    report = probe_report([0.0, 2.0], {"empty": [1.0, -1.0], "as a bold list": [0.0, math.nan]})

    assert report["empty"] == {
        "num_rows": 2,
        "shift": -1.0,
        "shift_in_sd": -1.0,
        "preferred": 0.5,
        "should": "lose",
    }
    # an equal score counts half; a probe that equals its response is left out
    assert report["as a bold list"]["preferred"] == 0.5
    assert report["as a bold list"]["num_rows"] == 1


def test_a_model_that_likes_empty_answers_is_called_out():
    originals = [0.0] * 10
    report = probe_report(originals, {"empty": [1.0] * 4 + [-1.0] * 6, "as a bold list": [1.0] * 10})

    assert probe_flags(report) == ["a response that is 'empty' scores above the real one in 40% of rows"]
    assert probe_flags(probe_report(originals, {"empty": [-1.0] * 10})) == []


def test_no_responses_give_no_probes():
    assert probe_report([], {name: [] for name in WORSE}) == {}


def test_the_table_holds_the_cards_numbers_as_text():
    card = report_card([scored(2.0, chosen_length=20), scored(1.0), scored(-1.0), scored(3.0)])
    card["probes"] = probe_report([1.0], {"empty": [0.0]})

    table = card_table(card)

    rows = {row[0]: row[1:] for row in table["rows"]}
    assert rows["accuracy"][0] == "0.750"
    assert "4 pairs" in rows["accuracy"][1]
    # one longer chosen and three of equal length: (1 + 1.5) / 4
    assert rows["floor: length"][0] == "0.625"
    assert rows["probe: empty"] == ["-1.000", "higher in 0%; should score lower"]
    assert "ceiling: people" not in rows, "one judge a pair has no ceiling"
    assert table["notes"] == card["flags"]
    assert json.loads(json.dumps(table)) == table


def test_a_card_without_pairs_is_still_a_table():
    table = card_table(report_card([]))

    assert [row[0] for row in table["rows"]] == ["floor: chance", "floor: length", "floor: majority"]
    assert table["notes"] == ["no decided pair was held out, so nothing is known of this model's accuracy"]
