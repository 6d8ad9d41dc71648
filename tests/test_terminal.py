"""What a run shows while it goes on, without a terminal."""

from __future__ import annotations

from pipeline.cli import terminal
from pipeline.cli.terminal import PlainDisplay, RichDisplay, time_left


def test_a_line_says_how_far_a_stage_is_and_how_long_it_will_take(capsys, monkeypatch):
    now = iter([100.0, 104.0, 110.0, 130.0])
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(now))
    display = PlainDisplay()

    display.stage("sft", "running")
    for step in (10, 30, 60, 110):
        display.progress("sft", step, 110, text="loss 0.5")

    # Nothing is said at 104: ten seconds must pass. At 110, 50 steps took 10 s and 50 are left.
    assert capsys.readouterr().err.splitlines() == [
        "sft: running",
        "sft: 10/110 loss 0.5",
        "sft: 60/110 loss 0.5 (10 s left)",
        "sft: 110/110 loss 0.5",
    ]


def test_the_pace_of_one_stage_is_not_that_of_the_next(capsys, monkeypatch):
    now = iter([100.0, 120.0, 200.0, 220.0])
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(now))
    display = PlainDisplay()

    display.progress("sft", 1, 9, text="")
    display.progress("sft", 3, 9, text="")
    display.stage("dpo", "running")
    display.progress("dpo", 1, 9, text="")
    display.progress("dpo", 2, 9, text="")

    assert capsys.readouterr().err.splitlines() == [
        "sft: 1/9",
        "sft: 3/9 (1 min 00 s left)",
        "dpo: running",
        "dpo: 1/9",
        # One step in 20 s, and seven to come.
        "dpo: 2/9 (2 min 20 s left)",
    ]


def test_time_left_is_unknown_before_a_step_was_timed_and_nothing_at_the_end():
    assert time_left(0.0, 0, 5) == ""
    assert time_left(8.0, 4, 0) == ""
    # 2 s a step.
    assert time_left(8.0, 4, 30) == "(1 min 00 s left)"


def test_a_bar_moves_and_closes(capsys):
    display = RichDisplay()

    display.stage("sft", "running")
    display.progress("sft", 1, 2, text="loss [0.5]")
    display.say("a line [above] the bar")
    display.stage("sft", "complete", "1.0 s")

    shown = capsys.readouterr().err
    assert "a line [above] the bar" in shown
    assert "complete" in shown
