"""The report of a real run holds what its records, metrics and published files hold."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import pytest

from pipeline.errors import StoreError
from pipeline.report.artifacts import (
    MAX_ROWS,
    MAX_SAMPLES,
    as_text,
    read_data_report,
    read_samples,
    read_tables,
)
from pipeline.report.collect import alarms_of, collect, joined
from pipeline.report.live import LivePage, pause_after
from pipeline.report.view import DataView
from pipeline.report.write import write_report
from pipeline.tracking.lines import Series
from tests.fakes.engine import Engine


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(tmp_path / "work")


def test_a_run_is_shown_with_its_lineage_metrics_curves_and_tables(engine):
    engine.run_here()

    run = collect(engine.store, "chain")

    first, second, third = run.stages
    assert [stage.state for stage in run.stages] == ["ran", "ran", "ran"]
    producers = {item.role: item.producer for item in third.inputs}
    assert (producers["parent"], producers["other"]) == ("second", "first")
    assert first.inputs[0].source == "corpus.txt"
    assert first.metrics["value"] == 10.0
    assert second.notes == ("a planted note",)
    assert first.series["loss"].values == [1.0, 0.5, pytest.approx(1 / 3)]
    assert [table.rows for table in run.tables] == [[["third", 31.0]], [["second", 17.0]]]
    assert "name: chain" in run.config_text
    assert json.loads(run.resolved_text)["stages"]["second"]["rate"] == 2.0


def test_the_command_names_what_was_overridden(engine):
    engine.run_here("second.rate=3")

    command = collect(engine.store, "chain").command

    assert command.startswith("triptych run config.yaml ")
    assert "stages.second.rate=3.0" in command
    assert "seed" not in command


def test_a_reused_stage_is_named_as_such(engine):
    engine.run_here()
    engine.run_here("second.rate=3")

    assert [stage.state for stage in collect(engine.store, "chain").stages] == ["reused", "ran", "ran"]


def test_a_failed_stage_is_shown_with_its_reason_and_the_curve_it_has(engine):
    engine.run_here("second.trouble=user")

    _, second, third = collect(engine.store, "chain").stages

    assert second.state == "failed"
    assert "row 7 has no prompt" in second.reason
    assert second.series["loss"].steps == [1, 2]
    assert third.state in ("waiting", "blocked")


def test_a_damaged_record_is_shown_as_damage_not_as_an_error(engine):
    engine.run_here()
    record = engine.stage_folders()["second"] / "record.json"
    record.chmod(0o644)
    record.write_text(record.read_text().replace("17.0", "71.0").replace("17", "71"))

    states = {stage.name: stage.state for stage in collect(engine.store, "chain").stages}

    assert states == {"first": "ran", "second": "damaged", "third": "ran"}


def test_the_page_stands_beside_the_manifest_and_can_be_written_elsewhere(engine, tmp_path):
    engine.run_here()

    path = write_report(engine.store, "chain")
    other = write_report(engine.store, "chain", out=tmp_path / "new" / "page.html")

    assert path == engine.store.run_folder("chain") / "report.html"
    assert "a planted note" in path.read_text()
    assert other.is_file()


def test_no_path_of_the_machine_is_in_the_page(engine, tmp_path):
    engine.run_here()

    text = write_report(engine.store, "chain").read_text()

    # The fake stages are told a path by an override; real ones hold none.
    told = [line for line in text.splitlines() if str(tmp_path) in line and "tally" not in line]
    assert told == []


def test_an_unknown_run_is_named_with_those_that_are_there(engine):
    engine.run_here()

    with pytest.raises(StoreError, match="chain"):
        collect(engine.store, "chian")


def test_a_run_that_goes_on_has_a_page_that_grows(engine):
    engine.run_here()

    with LivePage(engine.store, "chain", refresh_seconds=0.01):
        path = engine.store.run_folder("chain") / "report.html"
        deadline = time.monotonic() + 20
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)

    assert 'http-equiv="refresh"' in path.read_text()


def test_a_live_page_that_cannot_be_written_is_named_once(engine, caplog):
    engine.store.create()

    with caplog.at_level(logging.WARNING), LivePage(engine.store, "none", refresh_seconds=0.005):
        deadline = time.monotonic() + 20
        while not caplog.records and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)

    assert len([r for r in caplog.records if "live report" in r.getMessage()]) == 1


def test_a_short_run_writes_no_live_page(engine):
    engine.run_here()

    with LivePage(engine.store, "chain"):
        pass

    assert not (engine.store.run_folder("chain") / "report.html").exists()


def test_long_tables_are_cut_with_a_note(tmp_path):
    rows = [[i, "x" * 1000] for i in range(MAX_ROWS + 5)]
    (tmp_path / "table.json").write_text(json.dumps({"title": "t", "columns": ["a", "b"], "rows": rows}))

    (table,) = read_tables(tmp_path, "evaluate")

    assert table is not None
    assert len(table.rows) == MAX_ROWS
    assert "305 rows" in table.notes[0]
    assert len(table.rows[0][1]) < 500


def test_samples_are_counted_and_cut(tmp_path):
    line = {"prompt": "p", "by": {"sft": {"text": "a" * 9000, "scores": {"gold": 0.5, "odd": "x"}}}}
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for _ in range(40)) + "{broken\n")

    found = read_samples(tmp_path, "evaluate")

    assert found is not None
    assert (len(found.samples), found.total) == (MAX_SAMPLES, 41)
    (answer,) = found.samples[0].answers
    assert answer.text.endswith("(5000 more characters)")
    assert answer.scores == {"gold": 0.5}


def test_a_data_report_gives_facts_flags_and_rejected_rows(tmp_path):
    content = {
        "file": "pairs.jsonl",
        "format": "trl",
        "rows": {"read": 10, "accepted": 9, "rejected": 1},
        "longer_share": 0.625,
        "agreement": {
            "alpha_nominal": {"value": 0.4321, "low": 0.4, "high": 0.5},
            "fleiss_kappa": {"value": None, "raters": 3},
            "unanimous": 0.25,
            "vote_mix": {"tie": 0.1},
        },
        "rejects": [{"line": 4, "check": "empty", "message": "the prompt is empty"}],
        "flags": [{"line": 7, "message": "a control character"}],
    }
    (tmp_path / "report.json").write_text(json.dumps(content))

    found = read_data_report(tmp_path, "reward")

    assert found is not None
    assert dict(found.facts) == {
        "format": "trl",
        "rows read": "10",
        "rows accepted": "9",
        "rows rejected": "1",
        "longer answer preferred": "62.5 % of decided pairs",
        "alpha nominal": "0.4321 [0.4, 0.5]",
        "unanimous": "0.25",
    }
    assert found.rejects == [("line 4", "the prompt is empty")]
    assert found.flags == ["line 7: a control character"]


@pytest.mark.parametrize("content", ["", "[]", "{", '{"rows": 3}', "null"])
def test_files_of_another_shape_are_left_out(tmp_path, content):
    for name in ("table.json", "samples.jsonl", "report.json"):
        (tmp_path / name).write_text(content)

    assert read_tables(tmp_path, "x") == []
    assert read_samples(tmp_path, "x") is None


def test_messages_are_shown_with_their_roles():
    assert as_text([{"role": "user", "content": "hi"}]) == "hi"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert as_text(turns) == "user: a\n\nassistant: b"


def test_what_several_stages_found_alike_in_a_file_is_shown_once():
    facts = [("rows read", "9")]
    data = [
        DataView("reward", "pairs.jsonl", facts, [], []),
        DataView("dpo", "pairs.jsonl", facts, [], []),
        DataView("kto", "pairs.jsonl", [("rows read", "8")], [], []),
    ]

    found = joined(data)

    assert [(item.stage, item.facts) for item in found] == [
        ("reward, dpo", facts),
        ("kto", [("rows read", "8")]),
    ]


def test_an_alarm_is_a_metric_that_was_ever_above_zero():
    def curve(*values: float) -> Series:
        return Series([10 * at for at in range(len(values))], list(values), [0.0] * len(values))

    series = {
        "alarm/length": curve(0, 0, 0, 1),
        "alarm/kl": curve(0, 1, 0, 1),
        "alarm/entropy": curve(0, 0, 0, 0),
        "ppo/kl": curve(1, 1, 1, 1),
    }

    found = alarms_of(series)

    # The first that rose stands first: kl at step 10 on two lines, length at step 30 on one.
    assert [(alarm.name, alarm.step, alarm.count) for alarm in found] == [("kl", 10, 2), ("length", 30, 1)]


def test_the_time_of_a_run_leaves_out_what_was_reused(engine: Engine):
    engine.run_here("first.pause_seconds=0.05")
    made = collect(engine.store, "chain")
    engine.run_here("first.pause_seconds=0.05")
    reused = collect(engine.store, "chain")

    assert made.seconds == pytest.approx(sum(stage.seconds for stage in made.stages))
    assert made.seconds >= 0.15
    assert reused.seconds == 0


def test_pages_of_a_large_run_are_written_less_often():
    # A fiftieth of a core: 2 s of work are followed by 100 s of rest, 0.1 s by the least there is.
    assert pause_after(2.0, least=20.0) == pytest.approx(100.0)
    assert pause_after(0.1, least=20.0) == 20.0
