"""Two runs side by side: shared stages are named so, the others with what differs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.cli.main import main
from pipeline.report.collect import collect
from pipeline.report.compare import compare_runs, compare_tables
from pipeline.report.view import RunView, StageView, TableView
from tests.fakes.engine import Engine


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    """A store with the run `chain` and a run `other` whose second stage has another rate."""
    engine = Engine(tmp_path / "work")
    engine.run_here()
    engine.run_here("name=other", "second.rate=3")
    return engine


def test_runs_share_what_has_the_same_key_and_differ_in_what_was_changed(engine):
    first, second, third = compare_runs(collect(engine.store, "chain"), collect(engine.store, "other"))

    assert first.same
    assert [(d.name, d.first, d.second) for d in second.settings] == [("rate", 2.0, 3.0)]
    # Three steps of 3 in place of 2 add 3.
    assert [(d.name, d.change) for d in second.metrics] == [("value", 3.0)]
    assert [d.name for d in third.inputs] == ["parent"]
    assert third.settings == []


def test_tables_are_joined_by_row_and_column(engine):
    tables = compare_tables(collect(engine.store, "chain"), collect(engine.store, "other"))

    assert [(table.columns, table.rows) for table in tables] == [
        (["name", "value (a)", "value (b)"], [["third", 31.0, 34.0]]),
        (["name", "value (a)", "value (b)"], [["second", 17.0, 20.0]]),
    ]


def test_tables_of_a_stage_with_the_same_result_are_left_out(engine):
    run = collect(engine.store, "chain")

    assert len(run.tables) > 0
    assert compare_tables(run, replace(run, name="again")) == []


def test_the_command_prints_both_runs(engine, capsys):
    code = main(["compare", "chain", "other", "--store", str(engine.store.root)])

    shown = capsys.readouterr().out
    assert code == 0
    assert "first: the same result" in shown
    assert "rate: 2 -> 3" in shown


def test_another_environment_is_a_difference_of_its_own(engine):
    first = collect(engine.store, "chain")
    other = collect(engine.store, "other")
    stages = [replace(s, environment={**s.environment, "torch": "9.9"}) for s in other.stages]

    _, second, _ = compare_runs(first, replace(other, stages=stages))

    torch = first.stages[1].environment["torch"]
    assert [(d.name, d.first, d.second) for d in second.environment] == [("torch", torch, "9.9")]


def test_a_program_reads_the_comparison_as_json(engine, capsys):
    main(["compare", "chain", "other", "--json", "--store", str(engine.store.root)])

    document = json.loads(capsys.readouterr().out)
    assert [stage["same"] for stage in document["stages"]] == [True, False, False]
    assert document["stages"][1]["settings"] == [{"name": "rate", "a": 2.0, "b": 3.0, "change": 1.0}]


def test_a_stage_of_one_run_only_is_said_to_be(engine):
    run = collect(engine.store, "chain")
    shorter = replace(run, stages=run.stages[:1])

    pairs = compare_runs(shorter, run)

    assert [(pair.name, pair.first is None) for pair in pairs] == [
        ("first", False),
        ("second", True),
        ("third", True),
    ]


def test_two_numbers_that_are_not_numbers_do_not_differ():
    def run(key: str) -> RunView:
        stage = StageView("sft", "sft", "ran", key=key, metrics={"kl": math.nan, "loss": 1.0})
        return RunView("a", "now", [stage], "command")

    (pair,) = compare_runs(run("1"), run("2"))

    assert pair.metrics == []


def test_rows_and_columns_of_one_run_only_are_left_out():
    first = TableView("e", "t", ["model", "x", "y"], [["sft", 1, 2], ["dpo", 3, 4]])
    second = TableView("e", "t", ["model", "y", "z"], [["sft", 5, 6], ["ppo", 7, 8]])

    (joined,) = compare_tables(
        RunView("a", "", [], "", tables=[first]), RunView("b", "", [], "", tables=[second])
    )

    assert (joined.columns, joined.rows) == (["model", "y (a)", "y (b)"], [["sft", 2, 5]])
