"""A run from the outside: what is computed, what is reused, what blocks, what the exit code says."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import worker
from pipeline.cli.main import main
from pipeline.contract import StageContext
from pipeline.errors import ConfigError, ExitCode
from pipeline.manifest import read_manifest
from tests.fakes.engine import CHAIN, VALUES, Engine

GATED = """\
name: {name}
seed: 1
tracking: {{wandb: "off"}}
stages:
  first: {{kind: tests.fakes.source, inputs: {{text: corpus.txt}}, gate: {{min_accuracy: 0.6}}}}
  second: {{kind: tests.fakes.adder, inputs: {{parent: first}}}}
  apart: {{kind: tests.fakes.source, inputs: {{text: corpus.txt}}, rate: 5}}
"""


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(tmp_path / "work")


def test_a_chain_runs_and_every_number_is_as_worked_by_hand(engine: Engine) -> None:
    assert engine.run() == ExitCode.OK

    assert engine.values() == VALUES
    assert engine.display.now() == dict.fromkeys(VALUES, "complete")
    assert ("first", 3) in engine.display.steps
    assert "second: a planted note" in engine.display.said


def test_a_second_run_computes_nothing(engine: Engine) -> None:
    engine.run_here()
    computed = len(engine.tally)

    assert engine.run_here() == ExitCode.OK

    assert computed == 9
    assert len(engine.tally) == computed
    assert engine.display.now() == dict.fromkeys(VALUES, "reused")


def test_a_changed_setting_runs_its_stage_and_what_follows_only(engine: Engine) -> None:
    engine.run_here()

    engine.run_here("second.rate=3")

    assert engine.display.now() == {"first": "reused", "second": "complete", "third": "complete"}


def test_a_parent_that_comes_out_unchanged_leaves_its_children_valid(engine: Engine) -> None:
    engine.run_here()

    # Six steps of a half give the same number as three steps of one.
    engine.run_here("first.rate=0.5", "first.steps=6")

    assert engine.display.now() == {"first": "complete", "second": "reused", "third": "reused"}


def test_a_setting_that_cannot_change_the_result_runs_nothing(engine: Engine) -> None:
    engine.run_here()

    engine.run_here("first.pause_seconds=0.001")

    assert set(engine.display.now().values()) == {"reused"}


def test_runs_of_different_names_share_stages(engine: Engine, tmp_path: Path) -> None:
    engine.run_here()
    other = Engine(engine.folder, name="other")

    other.run_here()

    assert set(other.display.now().values()) == {"reused"}


def test_a_closed_gate_blocks_children_only_and_says_why(engine: Engine) -> None:
    engine.write(GATED)

    code = engine.run_here()

    manifest = read_manifest(engine.store, "chain")
    assert code == ExitCode.GATE_CLOSED
    assert engine.display.now() == {"first": "gate closed", "second": "blocked", "apart": "complete"}
    assert manifest.stages["second"].message == (
        "gate of first is closed: accuracy is 0.5, and the gate wants min_accuracy: 0.6"
    )
    assert manifest.stages["first"].state == "complete"


def test_a_gate_that_is_lowered_opens_without_a_new_run_of_its_stage(engine: Engine) -> None:
    engine.write(GATED)
    engine.run_here()

    assert engine.run_here("first.gate.min_accuracy=0.5") == ExitCode.OK
    assert engine.display.now() == {"first": "reused", "second": "complete", "apart": "reused"}


@pytest.mark.parametrize(
    ("trouble", "outcome", "code", "words"),
    [
        pytest.param("user", "user-error", ExitCode.USER_ERROR, "row 7 has no prompt", id="user"),
        pytest.param("bug", "bug", ExitCode.STAGE_FAILED, "ZeroDivisionError: a planted bug", id="bug"),
        pytest.param("memory", "out-of-memory", ExitCode.OUT_OF_MEMORY, "out of memory", id="memory"),
        pytest.param("disk", "out-of-disk", ExitCode.OUT_OF_DISK, "the disk is full", id="disk"),
        pytest.param("kill", "killed", ExitCode.KILLED, "killed by SIGKILL", id="kill"),
    ],
)
def test_a_failure_is_told_apart_and_the_same_command_goes_on(
    engine: Engine, trouble: str, outcome: str, code: int, words: str
) -> None:
    assert engine.run(f"second.trouble={trouble}") == code

    status = read_manifest(engine.store, "chain").stages["second"]
    assert (status.state, status.failure) == ("failed", outcome)
    assert words in status.message
    assert engine.display.now() == {"first": "complete", "second": "failed", "third": "blocked"}

    before = len(engine.tally)
    assert engine.run_here() == ExitCode.OK
    assert engine.values() == VALUES
    # Two of three steps were saved: one more of second, three of third.
    assert len(engine.tally) - before == 4


def test_the_log_of_a_bug_holds_the_traceback_and_the_terminal_does_not(engine: Engine) -> None:
    engine.run("second.trouble=bug")

    said = "\n".join(engine.display.said)
    log = next(engine.folder.glob("store/work/*/log.txt"))
    assert "Traceback" not in said
    assert str(log.name) in said
    assert "ZeroDivisionError: a planted bug" in log.read_text()
    assert "Traceback" in log.read_text()


def test_a_user_mistake_in_a_stage_leaves_no_traceback_at_all(engine: Engine) -> None:
    engine.run("second.trouble=user")

    assert "Traceback" not in next(engine.folder.glob("store/work/*/log.txt")).read_text()


def test_after_a_failure_keep_going_runs_what_does_not_need_it(engine: Engine) -> None:
    engine.write(GATED)

    assert engine.run_here("first.trouble=user", keep_going=True) == ExitCode.USER_ERROR
    assert engine.display.now() == {"first": "failed", "second": "blocked", "apart": "complete"}


def test_after_a_failure_nothing_more_is_started(engine: Engine) -> None:
    engine.write(GATED)

    assert engine.run_here("first.trouble=user") == ExitCode.USER_ERROR
    # `apart` needs nothing of `first`; without --keep-going it waits all the same.
    assert engine.display.now() == {"first": "failed", "second": "blocked"}
    assert not [line for line in engine.tally if line.startswith("apart")]


def test_a_run_until_a_stage_makes_that_stage_and_its_parents_only(engine: Engine) -> None:
    assert engine.run_here(until=["second"]) == ExitCode.OK
    assert engine.display.now() == {"first": "complete", "second": "complete"}
    assert engine.run_here() == ExitCode.OK
    assert engine.display.now() == {"first": "reused", "second": "reused", "third": "complete"}

    # What lies in the store is not forgotten by a run that asks for less.
    assert engine.run_here(until=["first"]) == ExitCode.OK
    assert engine.display.now() == dict.fromkeys(VALUES, "reused")
    assert engine.run_here("third.rate=9", until=["second"]) == ExitCode.OK
    assert engine.display.now() == {"first": "reused", "second": "reused"}

    with pytest.raises(ConfigError, match="no stage 'secnd'") as caught:
        engine.run_here(until=["secnd"])
    assert caught.value.findings[0].hint == "second"


def test_a_pickle_among_the_outputs_is_left_out_and_said(engine: Engine) -> None:
    engine.run_here("first.trouble=pickle")

    folder = engine.stage_folders()["first"]
    assert not list(folder.rglob("*.bin"))
    assert engine.store.load(folder.name).notes == ("left out of the result: training_args.bin",)


def test_an_input_edited_while_its_stage_ran_gives_no_result(engine: Engine) -> None:
    assert engine.run_here("first.trouble=edit") == ExitCode.USER_ERROR

    message = read_manifest(engine.store, "chain").stages["first"].message
    assert "input 'text' (corpus.txt) changed while the stage ran" in message
    assert engine.stage_folders() == {}
    # seed 1, "edited" has 6 bytes too, and three steps of 1: the new file has a key of its own.
    assert engine.run_here() == ExitCode.OK
    assert len(engine.tally) == 3 + 9


def test_what_was_made_from_an_edited_input_is_not_found_again(engine: Engine) -> None:
    engine.run_here("first.trouble=edit")
    (engine.folder / "corpus.txt").write_text("hello\n")

    assert engine.run_here() == ExitCode.OK

    assert len(engine.tally) == 3 + 9
    assert engine.values() == VALUES


def test_metrics_of_an_interrupted_stage_hold_each_step_once(engine: Engine) -> None:
    engine.run_here("second.trouble=bug")
    engine.run_here()

    lines = (engine.stage_folders()["second"] / "metrics.jsonl").read_text().splitlines()
    steps = [line.split('"step": ')[1].split(",")[0] for line in lines]
    assert steps == ["1", "2", "3"]


def test_a_record_counts_every_attempt(engine: Engine) -> None:
    engine.run_here("second.trouble=bug")
    engine.run_here()

    record = engine.store.load(engine.stage_folders()["second"].name)
    assert [(attempt.number, attempt.outcome) for attempt in record.attempts] == [(1, "bug"), (2, "complete")]


def test_no_committed_byte_names_this_machine(engine: Engine) -> None:
    engine.run_here()

    names = [str(engine.folder), os.uname().nodename, str(Path.home())]
    for path in (engine.folder / "store" / "stages").rglob("*"):
        if path.is_file():
            text = path.read_text(errors="replace")
            assert not [name for name in names if name in text], path


def test_all_mistakes_are_shown_before_anything_runs(engine: Engine) -> None:
    engine.write(CHAIN.replace("corpus.txt", "corpsu.txt").replace("parent: second", "parent: secnod"))

    with pytest.raises(ConfigError) as caught:
        engine.run_here()

    found = [
        (finding.code, finding.where.rpartition("/")[2], finding.hint) for finding in caught.value.findings
    ]
    assert found == [
        ("missing-file", "chain.yaml:5", "corpus.txt is there"),
        ("missing-file", "chain.yaml:7", "second"),
    ]
    assert engine.tally == []


def test_mistakes_of_the_file_and_of_its_inputs_are_shown_together(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.write(CHAIN.replace("rate: 2", "rat: 2").replace("corpus.txt", "corpse.txt"))
    monkeypatch.chdir(engine.folder)

    assert main(["plan", engine.file.name]) == ExitCode.USER_ERROR

    said = capsys.readouterr().err
    assert "'rat'" in said
    assert "corpse.txt" in said
    assert "corpus.txt is there" in said


def test_a_cards_own_check_speaks_before_anything_runs(engine: Engine) -> None:
    with pytest.raises(ConfigError, match="rate is -1") as caught:
        engine.run_here("third.rate=-1")

    assert caught.value.findings[0].code == "bad-rate"
    assert engine.tally == []


def test_stages_that_need_each_other_are_named_in_order(engine: Engine) -> None:
    engine.write(CHAIN.replace("parent: first", "parent: third"))

    with pytest.raises(ConfigError, match="second -> third -> second"):
        engine.run_here()


def test_a_damaged_result_is_set_aside_and_made_again(engine: Engine) -> None:
    engine.run_here()
    before = engine.outputs()
    weights = engine.stage_folders()["second"] / "model" / "model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")

    assert engine.run_here() == ExitCode.OK

    assert engine.outputs() == before
    assert engine.display.now() == {"first": "reused", "second": "complete", "third": "reused"}
    assert "model/model.safetensors changed" in "\n".join(engine.display.said)
    assert len(list((engine.folder / "store" / "quarantine").iterdir())) == 1


def test_ctrl_c_saves_and_the_same_command_goes_on_with_equal_bytes(engine: Engine) -> None:
    child = engine.start("second.pause_seconds=0.2", "second.steps=40")
    _wait_until(child, lambda: "second 2" in engine.tally)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)

    assert child.returncode == ExitCode.INTERRUPTED
    assert "second: interrupted" in said
    assert "run the same command to go on" in said
    assert read_manifest(engine.store, "chain").stages["second"].state == "interrupted"
    assert engine.run_here("second.steps=40") == ExitCode.OK
    # 1 + 10 + 40 * 2, each step computed once.
    assert engine.values()["second"] == 91.0
    assert engine.tally.count("second 1") == 1


def test_a_second_signal_ends_the_run_at_once(engine: Engine) -> None:
    # A stage does not stop after its last step: this one would sleep for a minute.
    child = engine.start("first.steps=1", "first.pause_seconds=60")
    _wait_until(child, lambda: "first 1" in engine.tally)
    child.terminate()
    assert child.stderr is not None
    assert any("press again to end at once" in line for line in child.stderr)
    child.terminate()

    assert child.wait(timeout=30) == 128 + signal.SIGTERM


def test_a_stage_ends_when_its_run_is_killed_and_its_lock_is_free(engine: Engine) -> None:
    child = engine.start("first.pause_seconds=0.3", "first.steps=60")
    _wait_until(child, lambda: "first 2" in engine.tally)
    child.kill()
    child.wait(timeout=30)
    done = len(engine.tally)
    time.sleep(1.0)

    assert len(engine.tally) <= done + 1
    assert engine.run_here("first.steps=60") == ExitCode.OK
    assert engine.values()["first"] == 67.0
    attempts = engine.store.load(engine.stage_folders()["first"].name).attempts
    assert [attempt.outcome for attempt in attempts] == ["killed", "complete"]


def _wait_until(child: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60.0
    while not condition():
        assert child.poll() is None, "the run ended early"
        assert time.monotonic() < end, "the stage did not get there"
        time.sleep(0.05)


def test_every_stage_is_given_the_stores_own_cache_folder(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path | None] = []
    real = worker.StageContext

    def context(**given: Any) -> StageContext:
        seen.append(given["cache_dir"])
        return real(**given)

    monkeypatch.setattr(worker, "StageContext", context)
    engine.run_here()

    assert seen == [(engine.folder / "store" / "cache" / "stages").resolve()] * 3
