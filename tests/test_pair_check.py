"""What plan says of a preference file before a reward or DPO stage runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.contract import StageCheck
from pipeline.errors import DataError, ModelError
from stages import dpo, reward
from stages.runtime.text.chat import ChatText
from stages.trainers.pair_data import load_pair_data
from stages.trainers.pair_model import PairModel, refuse_unfit
from tests.pair_fixtures import preference_file, token_pairs, toy_rows
from tests.test_segments import build
from tests.tiny import tiny_tokenizer

BAD = {"prompt": "p", "chosen": "same", "rejected": "same"}


def findings(tmp_path: Path, rows, *, held_out=None, **settings):
    inputs = {"preferences": preference_file(tmp_path / "pairs.jsonl", rows)}
    if held_out is not None:
        inputs["held_out"] = preference_file(tmp_path / "held.jsonl", held_out)
    return reward.SPEC.check(StageCheck("reward", reward.RewardConfig(**settings), inputs))


def test_a_sound_file_and_an_input_that_does_not_exist_yet_give_nothing(tmp_path):
    assert findings(tmp_path, toy_rows(4)) == []
    assert list(dpo.SPEC.check(StageCheck("dpo", dpo.DPOConfig(), {}))) == []


def test_too_many_bad_rows_are_named_by_line(tmp_path):
    found = findings(tmp_path, [*toy_rows(3), BAD])

    assert "1 of 4 rows cannot be used (25.0%, allowed 5.0%)" in found[0].message
    assert found[1].where.endswith("pairs.jsonl:4")
    assert findings(tmp_path, [*toy_rows(3), BAD], max_rejected_share=0.5) == []


def test_a_file_of_bad_rows_only_has_no_pairs(tmp_path):
    found = findings(tmp_path, [BAD], max_rejected_share=1.0)

    assert found[0].code == "no-pairs"


def test_a_file_that_is_no_preference_file_is_said_so(tmp_path):
    assert findings(tmp_path, [{"weather": "fine"}])


def test_a_held_out_prompt_that_is_trained_on_is_a_leak(tmp_path):
    rows = toy_rows(6)

    (finding,) = findings(tmp_path, rows, held_out=rows[2:3])

    assert finding.code == "leak"
    assert "1 held-out pairs" in finding.message
    assert findings(tmp_path, rows, held_out=toy_rows(3, seed=9)) == []


def test_the_stage_refuses_what_the_plan_refuses(tmp_path):
    file = preference_file(tmp_path / "pairs.jsonl", [*toy_rows(3), BAD])

    with pytest.raises(DataError, match="1 of 4 rows"):
        load_pair_data(file.path, reward.RewardConfig(), ChatText(tiny_tokenizer()))


def test_pairs_longer_than_the_bases_positions_are_refused():
    model = build("gpt2", n_positions=12)
    parts = PairModel(model, None, tiny_tokenizer(), None, None, None)

    with pytest.raises(ModelError, match="positions for 12"):
        refuse_unfit(parts, token_pairs(9))
