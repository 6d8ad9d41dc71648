"""The GPU checks on a GPU, and their rehearsal on a CPU in the normal tests."""

from __future__ import annotations

import json

import pytest
import torch

from tests.gpu.run import collect, main

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(scope="module")
def rehearsal():
    return collect(cpu=True, only="peaks")


def test_the_rehearsal_takes_a_step_of_every_stage_on_plain_and_on_4_bit_bases(rehearsal):
    seen = [(case["held"], case["stage"]) for case in rehearsal["cases"]]

    assert seen == [(held, stage) for held in ("bf16", "nf4") for stage in ("sft", "reward", "dpo", "ppo")]
    assert all(case["packed"] and case["seen"] > 0 and case["planned"] > 0 for case in rehearsal["cases"])
    assert rehearsal["holds"]
    json.dumps(rehearsal)


def test_the_rehearsed_4_bit_base_is_smaller(rehearsal):
    by = {(case["held"], case["stage"]): case for case in rehearsal["cases"]}

    for stage in ("sft", "reward", "dpo"):
        assert by["nf4", stage]["seen"] < by["bf16", stage]["seen"]
        assert by["nf4", stage]["planned"] < by["bf16", stage]["planned"] + 2**20


def test_without_a_card_the_command_says_so(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    assert main([]) == 2

    assert "--cpu rehearses" in capsys.readouterr().out


@pytest.mark.slow
def test_the_whole_rehearsal_holds_and_writes_its_report(tmp_path, capsys):
    assert main(["--cpu", "--out", str(tmp_path / "report.json")]) == 0

    report = json.loads((tmp_path / "report.json").read_text())
    assert all(check["holds"] for check in report["checks"])
    assert "holds  start qlora ppo" in capsys.readouterr().out


@pytest.mark.gpu
@NEEDS_CUDA
def test_every_check_holds_on_this_card(tmp_path):
    assert main(["--out", str(tmp_path / "report.json")]) == 0
