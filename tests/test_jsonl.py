"""metrics.jsonl: each step once, whatever was interrupted, and numbers that JSON lacks."""

from __future__ import annotations

import math
from pathlib import Path

from pipeline.tracking.jsonl import MetricsFile
from pipeline.tracking.lines import read_lines


def test_lines_read_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = MetricsFile(path)
    writer.log({"loss": 0.5, "ppo/kl": math.nan}, step=10, epoch=0.25)
    writer.log({"loss": math.inf}, step=20)

    # Not closed: a reader sees every line as soon as it is written.
    first, second = read_lines(path)
    writer.close()

    assert (first.step, first.epoch, first.metrics["loss"]) == (10, 0.25, 0.5)
    assert math.isnan(first.metrics["ppo/kl"])
    assert second.metrics["loss"] == math.inf


def test_steps_after_the_checkpoint_are_dropped_when_the_stage_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path)
    for step in (10, 20, 30):
        first.log({"loss": step}, step=step)
    first.close()
    with path.open("a") as stream:
        stream.write('{"step": 40, "metr')

    second = MetricsFile(path)
    second.log({"loss": 300.0}, step=30)
    second.log({"loss": 300.5}, step=30)
    second.close()

    assert [(line.step, line.metrics["loss"]) for line in read_lines(path)] == [
        (10, 10.0),
        (20, 20.0),
        (30, 300.0),
        (30, 300.5),
    ]


def test_progress_is_passed_on_and_never_stored(tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    writer = MetricsFile(tmp_path / "metrics.jsonl", lambda *report: told.append(report))

    writer.progress(1, 3, "loss 2.0")

    assert told == [(1, 3, "loss 2.0")]
    assert not (tmp_path / "metrics.jsonl").exists()
