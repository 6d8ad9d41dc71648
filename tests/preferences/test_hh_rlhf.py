"""The public harmless-base test file: which rows are set aside, and why."""

from __future__ import annotations

import json

import pytest

from reward.preferences.pairs import PairSet, load_pairs
from reward.preferences.report import build
from reward.preferences.split import prompt_components, split_groups
from tests.realdata import find_realdata


@pytest.fixture(scope="module")
def harmless() -> PairSet:
    return load_pairs(find_realdata("hh-rlhf", "harmless-base-test.jsonl.gz"))


def test_nine_rows_are_set_aside_and_2303_pairs_remain(harmless: PairSet) -> None:
    by_check = {
        check: [r.line for r in harmless.rejects if r.check == check]
        for check in ("empty_response", "prompt_mismatch")
    }

    assert by_check == {
        "empty_response": [87, 517, 926, 1104],
        "prompt_mismatch": [1255, 1689, 1951, 1953, 2037],
    }
    assert len(harmless.rejects) == 9
    assert len(harmless.pairs) == 2303
    assert (harmless.report.read, harmless.report.accepted, harmless.report.rejected) == (2312, 2303, 9)


def test_rows_whose_role_order_is_broken_are_named(harmless: PairSet) -> None:
    lines = {flag.line for flag in harmless.flags if flag.check == "role_order"}

    assert sorted(lines) == [668, 764, 1255, 1320, 1689, 1850, 1951, 1953, 2037]


def test_the_longer_side_is_preferred_in_44_5_percent(harmless: PairSet) -> None:
    longer = sum(len(p.chosen) > len(p.rejected) for p in harmless.pairs)
    shorter = sum(len(p.chosen) < len(p.rejected) for p in harmless.pairs)

    assert round(longer / (longer + shorter), 3) == 0.445
    assert build(harmless)["longer_share"] == pytest.approx(longer / (longer + shorter))


def test_no_response_text_moves_into_the_prompt(harmless: PairSet) -> None:
    by_line = {pair.line: pair for pair in harmless.pairs}

    # Lines where both responses begin with the same characters.
    assert by_line[37].chosen.startswith("You")
    assert by_line[37].rejected.startswith("You")
    assert all(pair.prompt[-1]["role"] == "user" for pair in harmless.pairs)


def test_a_rejected_row_is_kept_as_it_was_written(harmless: PairSet) -> None:
    row = next(reject for reject in harmless.rejects if reject.line == 926)

    assert json.loads(row.raw)["rejected"].endswith("Assistant: Ok")


def test_a_split_keeps_near_duplicate_prompts_together(harmless: PairSet) -> None:
    train, held_out = split_groups(harmless.pairs, 0.1, 7)
    component = prompt_components(harmless.pairs)

    assert sorted(train + held_out) == list(range(2303))
    assert abs(len(held_out) - 230) <= 2
    sides = [{component[harmless.pairs[i].group] for i in side} for side in (train, held_out)]
    assert not sides[0] & sides[1]


def test_the_report_is_json_and_adds_up(harmless: PairSet) -> None:
    report = json.loads(json.dumps(build(harmless), allow_nan=False))

    assert report["rows"]["read"] == report["rows"]["accepted"] + report["rows"]["rejected"] == 2312
    assert report["rows"]["accepted"] == report["rows"]["clean"] + report["rows"]["flagged"] == 2303
    assert report["sha256"]
    assert report["format"] == "hh-rlhf"
    assert len(report["rejects"]) == 9
