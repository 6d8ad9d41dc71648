"""metrics.jsonl: each step once, whatever was interrupted, and numbers that JSON lacks."""

from __future__ import annotations

import json
import math
import time
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


def test_each_line_is_json_whatever_stands_in_names_and_numbers(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = MetricsFile(path)
    # The two largest are finite and their sum is not.
    metrics = {'a "b" 100%s %d\n': 0.1 + 0.2, "ä/{}": 3, "high": 1.7e308, "higher": 1.7e308, "tiny": 5e-324}

    writer.log(metrics, step=1, epoch=2)
    writer.log(metrics, step=2)
    writer.log({}, step=3)
    writer.log({"low": -math.inf, "none": math.nan}, step=4)
    writer.close()

    lines = [json.loads(text) for text in path.read_bytes().split(b"\n")[:-1]]
    assert [line["metrics"] for line in lines] == [
        metrics,
        metrics,
        {},
        {"low": "-inf", "none": "nan"},
    ]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[0]["epoch"] == 2
    assert "epoch" not in lines[1]
    assert abs(lines[0]["time"] - time.time()) < 3600


def test_a_line_that_the_disk_takes_in_parts_is_whole(tmp_path: Path) -> None:
    class Sips:
        """A file that takes seven bytes at a time, as a nearly full disk may."""

        def __init__(self, path: Path) -> None:
            self.file = path.open("ab", buffering=0)

        def write(self, data: bytes) -> int:
            return self.file.write(data[:7])

        def close(self) -> None:
            self.file.close()

    path = tmp_path / "metrics.jsonl"
    writer = MetricsFile(path)
    writer.log({"loss": 0.5}, step=1)
    writer._stream = Sips(path)

    writer.log({"loss": 0.25, "ppo/kl": 1.5}, step=2)
    writer.close()

    assert [line.metrics for line in read_lines(path)] == [{"loss": 0.5}, {"loss": 0.25, "ppo/kl": 1.5}]


def test_progress_shows_the_telling_numbers_of_the_last_lines(tmp_path: Path) -> None:
    told: list[str] = []
    writer = MetricsFile(tmp_path / "metrics.jsonl", lambda step, total, text: told.append(text))

    writer.log({"loss": 0.43215, "rewards/accuracies": 0.8125, "learning_rate": 1e-4}, step=1)
    writer.log({"eval_loss": 0.5, "tokens_per_second": 8154.6, "loss": math.nan}, step=2)
    writer.progress(2, 2, "dpo")
    writer.progress(2, 2, "score 1.5")

    assert told == ["dpo, accuracy 0.812, eval loss 0.5, loss nan, 8155 tokens/s", "score 1.5"]


def test_progress_is_told_a_few_times_a_second_and_always_at_the_end(tmp_path: Path, monkeypatch) -> None:
    told: list[int] = []
    writer = MetricsFile(tmp_path / "metrics.jsonl", lambda step, total, text: told.append(step))
    now = iter([100.0, 100.1, 100.19, 100.21, 100.3, 100.31])
    monkeypatch.setattr("pipeline.tracking.jsonl.time.monotonic", lambda: next(now))

    for step in range(1, 7):
        writer.progress(step, 6)

    # The next report is due 0.2 s after the first, at 100.2; the last step is told whenever it comes.
    assert told == [1, 4, 6]
