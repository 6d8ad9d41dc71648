"""What stages cost: measured by the child, summed exactly, priced, and told as stable JSON."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from pipeline import make
from pipeline.cli.main import main
from pipeline.cost import (
    CostRecord,
    last_value,
    peak_memory_bytes,
    price_of,
    process_age_seconds,
    with_attempts,
)
from pipeline.errors import ExitCode, UserError
from pipeline.report.collect import collect
from pipeline.report.cost import cost_table, time_of
from pipeline.report.page import render, throughput
from pipeline.report.view import RunView
from pipeline.runner import Runner
from pipeline.summary import speed_of, summarise
from pipeline.tracking.lines import Series
from pipeline.work import WorkFolder
from tests.fakes import source
from tests.fakes.engine import Engine
from tests.report.sample_run import demo, stage

STAGE_FIELDS = {
    *("name", "kind", "state", "key", "parents", "seconds", "seconds_by_part"),
    *("tokens", "tokens_per_second"),
    *("peak_memory_bytes", "peak_gpu_memory_bytes", "price", "device", "attempts", "gate", "alarms"),
    *("metrics", "notes", "message"),
}
TOTAL_FIELDS = {
    *("seconds", "new_seconds", "seconds_by_part", "tokens", "price", "new_price"),
    *("peak_memory_bytes", "peak_gpu_memory_bytes"),
}


class Clock:
    """A clock that moves only when a stage works."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def sleep(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def stamp(self) -> str:
        return self.now.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(source.time, "sleep", clock.sleep)
    monkeypatch.setattr(make, "timestamp", clock.stamp)
    return clock


def test_the_times_of_all_stages_add_up_to_the_time_that_passed(tmp_path, clock):
    engine = Engine(tmp_path / "work")
    began = clock.now

    engine.run_here("first.pause_seconds=1.5", "second.pause_seconds=20", "third.pause_seconds=0.25")

    found = summarise(collect(engine.store, "chain"))
    passed = (clock.now - began).total_seconds()
    # Three steps a stage: 3 * (1.5 + 20 + 0.25).
    assert passed == 65.25
    assert [row["seconds"] for row in found["stages"]] == [4.5, 60.0, 0.75]
    assert found["totals"]["seconds"] == pytest.approx(passed, rel=0.01)


def test_the_parts_of_a_stage_add_up_to_its_time(tmp_path):
    engine = Engine(tmp_path / "work")

    assert engine.run("first.pause_seconds=0.05") == ExitCode.OK

    record = engine.store.load(engine.stage_folders()["first"].name)
    assert record.cost.parts.keys() == {"start", "work", "seal"}
    assert sum(record.cost.parts.values()) == pytest.approx(record.seconds, abs=0.003)
    # Three steps of 0.05 s.
    assert record.cost.parts["work"] >= 0.15
    # A new Python takes longer than nothing.
    assert record.cost.parts["start"] > 0.01


def test_attempts_before_the_last_are_a_part_of_their_own():
    cost = CostRecord(peak_memory_bytes=1, parts={"work": 6.0, "seal": 1.0})

    assert with_attempts(cost, earlier=4.5, last=9.0).parts == {
        "earlier": 4.5,
        "start": 2.0,
        "work": 6.0,
        "seal": 1.0,
    }
    # Nobody saw the end: what the child measured is all there is.
    assert with_attempts(cost, earlier=0.0, last=None).parts == {"start": 0.0, "work": 6.0, "seal": 1.0}
    old = CostRecord(peak_memory_bytes=1)
    assert with_attempts(old, earlier=4.5, last=9.0) == old


def test_a_result_whose_parent_died_counts_what_its_child_measured(tmp_path, clock, monkeypatch):
    engine = Engine(tmp_path / "work")
    work_of = {}

    def die(self, wired, recipe, result, *, attempts):
        work_of["folder"] = engine.store.work_folder(result.key)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(make.StageMaker, "_record", die)
        with pytest.raises(KeyboardInterrupt):
            engine.run_here("first.pause_seconds=2")
    attempts = WorkFolder(work_of["folder"]).read_attempts()
    unended = attempts[0].model_copy(update={"ended": None, "outcome": "running"})
    WorkFolder(work_of["folder"]).write_attempts(engine.store.disk, (unended,))
    engine.run_here("first.pause_seconds=2")

    record = engine.store.load(engine.stage_folders()["first"].name)
    assert record.attempts[0].outcome == "killed"
    assert record.seconds == pytest.approx(sum(record.cost.parts.values()), abs=0.003)
    assert record.seconds > 0


def test_the_parts_of_a_command_are_in_its_manifest_and_its_report_can_tell_them(tmp_path):
    engine = Engine(tmp_path / "work")
    shown = []
    runner = Runner(engine.load(), engine.store, engine.display)

    runner.go(before_seconds=2.5, finish=lambda: shown.append(dict(runner.manifest.times)))

    times = collect(engine.store, "chain").times
    assert shown == [{name: times[name] for name in ("start", "plan", "stages", "publish")}]
    assert times.keys() == {"start", "plan", "stages", "publish", "report"}
    assert times["start"] == 2.5
    assert all(seconds >= 0 for seconds in times.values())
    assert summarise(collect(engine.store, "chain"))["command_seconds"] == times


def test_the_stages_of_a_command_took_what_their_records_say(tmp_path):
    engine = Engine(tmp_path / "work")

    engine.run()
    first = collect(engine.store, "chain")
    engine.run()
    second = collect(engine.store, "chain")

    assert first.times["stages"] == pytest.approx(sum(stage.seconds for stage in first.stages), abs=0.01)
    assert second.times["stages"] == 0


def test_the_time_of_a_command_is_told_in_words_and_small_parts_are_not():
    times = {"start": 0.4, "plan": 0.01, "stages": 60.2, "publish": 0.5, "report": 0.3}

    # 0.4 + 0.01 + 60.2 + 0.5 + 0.3 = 61.41.
    assert time_of(times) == (
        "The last command took 1 min 01 s: 1 min 00 s in stages, 0.4 s to start, "
        "0.5 s to publish what they gave, 0.3 s for this page and the results."
    )
    assert time_of({}) == ""


def test_a_process_is_as_old_as_the_system_says(tmp_path):
    (tmp_path / "self").mkdir()
    ticks = os.sysconf("SC_CLK_TCK")
    # The name may hold spaces and brackets; the start is field 22, in ticks since boot.
    fields = " ".join(["S", *["0"] * 18, str(100 * ticks), "0"])
    (tmp_path / "self" / "stat").write_text(f"17 (a ) b) {fields}")
    (tmp_path / "uptime").write_text("103.5 9.9")

    assert process_age_seconds(tmp_path / "self" / "stat") == pytest.approx(3.5)
    assert process_age_seconds(tmp_path / "absent") == 0.0


def test_a_failed_attempt_counts_and_a_reused_stage_costs_nothing_new(tmp_path, clock):
    engine = Engine(tmp_path / "work")
    pauses = [f"{name}.pause_seconds=2" for name in ("first", "second", "third")]

    # `second` fails at its second step, after the pause of the first, and goes on with the third: 2 + 2.
    engine.run_here(*pauses, "second.trouble=user")
    engine.run_here(*pauses)

    found = summarise(collect(engine.store, "chain"))
    assert [row["seconds"] for row in found["stages"]] == [6.0, 4.0, 6.0]
    assert found["stages"][1]["attempts"] == 2
    assert found["stages"][0]["state"] == "reused"
    assert found["totals"]["seconds"] == 16.0
    assert found["totals"]["new_seconds"] == 10.0


def test_the_price_is_the_time_times_the_run_files_price(tmp_path, clock, capsys, monkeypatch):
    engine = Engine(tmp_path / "work")
    engine.run_here("price_per_hour=36", *[f"{name}.pause_seconds=10" for name in ("first", "second")])
    monkeypatch.chdir(engine.folder)

    assert main(["summary", "chain", "--json"]) == ExitCode.OK
    found = json.loads(capsys.readouterr().out)
    # 30 s at 36 an hour are 0.3; a price on the command line goes before the run file's.
    assert [row["price"] for row in found["stages"]] == [0.3, 0.3, 0.0]
    assert found["totals"]["price"] == 0.6
    assert main(["summary", "chain", "--json", "--price-per-hour", "72"]) == ExitCode.OK
    assert json.loads(capsys.readouterr().out)["totals"]["price"] == 1.2
    assert main(["summary", "chain", "--price-per-hour", "-1"]) == ExitCode.USER_ERROR


def test_the_currency_stands_wherever_a_price_does(tmp_path, clock, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    engine = Engine(tmp_path / "work")
    engine.run_here("price_per_hour=36", "currency=EUR", "first.pause_seconds=10")
    monkeypatch.chdir(engine.folder)

    run = collect(engine.store, "chain")
    assert summarise(run)["currency"] == "EUR"
    assert summarise(run, currency="CHF")["currency"] == "CHF"
    assert cost_table(run).columns[-1] == "Price, EUR"
    assert "36.00 EUR an hour" in render(run)
    assert main(["summary", "chain"]) == ExitCode.OK
    assert "price, EUR" in capsys.readouterr().out
    assert main(["summary", "chain", "--currency", "CHF"]) == ExitCode.OK
    assert "price, CHF" in capsys.readouterr().out
    assert main(["summary", "chain", "--currency", "euros"]) == ExitCode.USER_ERROR


def test_without_a_word_prices_are_in_dollars_and_a_currency_is_three_letters(tmp_path):
    engine = Engine(tmp_path / "work")

    engine.run_here()

    assert summarise(collect(engine.store, "chain"))["currency"] == "USD"
    with pytest.raises(UserError, match="currency"):
        engine.run_here("currency=dollars")


def test_a_changed_price_makes_no_stage_again(tmp_path):
    engine = Engine(tmp_path / "work")
    engine.run_here()
    computed = len(engine.tally)

    engine.run_here("price_per_hour=1")

    assert len(engine.tally) == computed
    assert summarise(collect(engine.store, "chain"))["price_per_hour"] == 1.0


def test_the_summary_has_the_fields_that_its_page_lists(tmp_path):
    engine = Engine(tmp_path / "work")
    engine.run_here()

    found = summarise(collect(engine.store, "chain"))

    assert (found["schema"], found["schema_version"]) == ("triptych/run-summary", 1)
    assert found.keys() == {
        *("schema", "schema_version", "name", "state", "updated", "totals", "stages"),
        *("price_per_hour", "currency", "command_seconds"),
    }
    assert found["totals"].keys() == TOTAL_FIELDS
    assert all(row.keys() == STAGE_FIELDS for row in found["stages"])
    assert found["stages"][2]["parents"] == {"parent": "second", "other": "first"}
    page = (source.Path(__file__).parents[1] / "docs" / "summary.md").read_text()
    assert [name for name in sorted(STAGE_FIELDS | TOTAL_FIELDS) if f"`{name}`" not in page] == []


@pytest.mark.parametrize("state", ["running", "failed", "blocked", "interrupted", "complete"])
def test_a_run_is_what_its_worst_stage_is(state):
    states = ["ran", "reused"] if state == "complete" else ["ran", "waiting", state]
    stages = [stage(f"s{at}", "sft", {}, {}, state=name) for at, name in enumerate(states)]

    assert summarise(RunView("r", "now", stages, "triptych run"))["state"] == state


def test_a_stage_measures_its_own_memory_and_not_its_parents(tmp_path):
    engine = Engine(tmp_path / "work")
    ballast = bytearray(300_000_000)

    engine.run()

    peak = engine.store.load(next(iter(engine.stage_folders().values())).name).cost.peak_memory_bytes
    assert len(ballast) > peak > 5_000_000


def test_the_peak_is_what_was_held_and_let_go():
    code = (
        "from pipeline.cost import peak_memory_bytes as peak; before = peak(); "
        "held = bytearray(b'x') * 200_000_000; del held; print(peak() - before)"
    )

    grown = int(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    )

    assert 190_000_000 < grown < 230_000_000


def test_without_proc_the_systems_own_count_is_taken(tmp_path):
    assert peak_memory_bytes(tmp_path / "absent") > 1_000_000


def test_tokens_are_the_last_count_that_was_logged(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(
        '{"step": 1, "metrics": {"num_tokens": 100}}\n'
        '{"step": 2, "metrics": {"num_tokens": 250}}\n'
        '{"step": 2, "metrics": {"eval_loss": 1.0}}\n'
    )

    assert last_value(metrics, "num_tokens") == 250
    assert last_value(metrics, "loss") is None
    assert last_value(tmp_path / "absent", "num_tokens") is None


def test_the_speed_of_a_stage_is_its_median_and_a_pause_or_a_nan_moves_it_not():
    values = [10.0, 30.0, math.nan, 1000.0]
    speeds = Series([1, 2, 3, 4], values, [0.0] * 4)
    one = stage("sft", "sft", {}, {"tokens_per_second": speeds})

    # Of 10, 30 and 1000; their mean would be 347.
    assert speed_of(one) == 30.0
    assert throughput(one) == 30.0
    assert speed_of(stage("sft", "sft", {}, {})) is None
    assert throughput(stage("sft", "sft", {}, {"samples_per_second": speeds})) == 30.0


def test_no_price_is_no_price_and_not_nothing():
    assert price_of(3600, None) is None
    assert price_of(1800, 3.0) == 1.5


def test_the_reports_cost_table_leaves_out_what_nobody_measured():
    run = demo()

    table = cost_table(run)

    # The sample run has no costs recorded: only time, its share and speed are known.
    assert table.columns == ("Time", "Share", "Tokens/s")
    assert len(table.rows) == len(run.stages)
    shares = [float(row.cells[1].rstrip("%")) for row in table.rows]
    assert sum(shares) == pytest.approx(100, abs=3)


def log_lines(monkeypatch, *, start, moments, tokens):
    """Let a trainer's callback see steps at the given moments, each followed by a line of metrics."""
    from types import SimpleNamespace

    from stages.runtime.saving import seal
    from tests.tiny import RecordingLogger

    times = iter(moments)
    monkeypatch.setattr(seal.time, "perf_counter", lambda: next(times))
    logger = RecordingLogger()
    callback = seal.LogCallback(logger)
    state = SimpleNamespace(global_step=start, max_steps=10, epoch=None)
    callback.on_train_begin(None, state, None)
    for count in tokens:
        callback.on_step_begin(None, state, None)
        callback.on_optimizer_step(None, state, None)
        state.global_step += 1
        callback.on_log(None, state, None, logs={"loss": 1.0, "num_tokens": count})
    return logger.series("tokens_per_second")


def test_speed_counts_the_time_of_steps_and_not_of_what_lies_between(monkeypatch):
    # Steps of 2 s with 10 s of evaluation between them: 100 tokens in 2 s, then 200 in 2 s.
    speeds = log_lines(monkeypatch, start=0, moments=[0, 2, 12, 14], tokens=[100, 300])

    assert speeds == [50.0, 100.0]


def test_after_a_resume_the_tokens_of_before_are_no_speed(monkeypatch):
    speeds = log_lines(monkeypatch, start=5, moments=[0, 2, 2, 4], tokens=[1000, 1100])

    assert speeds == [50.0]
