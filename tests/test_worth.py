"""Quality beside cost: whom a stage is charged to, and means over runs."""

from __future__ import annotations

import math

import pytest

from pipeline.cost import CostRecord
from pipeline.report.view import InputView, RunView, StageView, TableView
from pipeline.report.worth import averaged, worth


def stage(name, seconds, *parents, memory=0, tokens=None):
    return StageView(
        name,
        name,
        "complete",
        seconds=seconds,
        inputs=[InputView("x", "adapter", parent, producer=parent) for parent in parents],
        cost=CostRecord(peak_memory_bytes=memory, num_tokens=tokens),
    )


def run(dpo="0.60 [0.5, 0.7]", ppo=0.7):
    stages = [
        stage("base", 100.0),
        stage("sft", 10.0, "base", tokens=5),
        stage("reward", 20.0, "sft", "base", memory=300, tokens=7),
        stage("dpo", 30.0, "sft", "base", memory=200),
        stage("ppo", 40.0, "reward", "sft", "base", memory=250, tokens=11),
    ]
    rows = [
        ["base", 0.3, 0.0],
        ["few-shot", 0.2, 0.0],
        ["sft", 0.5, 0.0],
        ["dpo", dpo, 2.5],
        ["ppo", ppo, 1.9],
    ]
    table = TableView("evaluate", "t", ["model", "gold", "KL"], rows)
    return RunView("r", "", stages, "", tables=[TableView("other", "o", ["x"], [["sft"]]), table])


def test_ppo_is_charged_for_its_reward_model_and_nobody_for_the_common_start():
    found = {entry.name: entry for entry in worth(run())}

    # The base was made from nothing and is no policy; "few-shot" is no stage.
    assert list(found) == ["sft", "dpo", "ppo"]
    assert found["sft"].stages == ()
    assert found["dpo"].stages == ("dpo",)
    assert sorted(found["ppo"].stages) == ["ppo", "reward"]
    assert [found[name].seconds for name in found] == [0.0, 30.0, 60.0]
    assert found["ppo"].peak_memory_bytes == 300
    assert found["ppo"].num_tokens == 18
    assert found["dpo"].num_tokens is None
    assert found["ppo"].quality == {"gold": 0.7, "KL": 1.9}


def test_a_run_that_compares_nothing_gives_nothing():
    alone = run()

    assert worth(RunView("r", "", alone.stages, "")) == []
    assert worth(RunView("r", "", alone.stages, "", tables=[alone.tables[0]])) == []


def test_several_runs_give_means_with_an_interval_over_runs():
    found = averaged([worth(run()), worth(run("0.66 [0.6, 0.7]", 0.8)), worth(run("0.60", 0.9))])

    by_name = {entry.name: entry for entry in found}
    # 0.60, 0.66, 0.60: mean 0.62, deviation sqrt(2 * 0.02^2 + 0.04^2 over 2) = 0.0346, t 4.303, / sqrt 3.
    half = 4.303 * 0.034641 / math.sqrt(3)
    assert by_name["dpo"].quality["gold"] == f"0.620 +- {half:.3f}"
    assert by_name["ppo"].quality["gold"].startswith("0.800 +- ")
    assert by_name["ppo"].seconds == pytest.approx(60.0)


def test_a_cell_without_a_number_in_some_run_is_left_empty():
    found = averaged([worth(run()), worth(run(dpo=None))])

    assert {entry.name: entry for entry in found}["dpo"].quality["gold"] is None
