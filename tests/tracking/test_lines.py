"""metrics.jsonl is read as it grows, whatever happens to the file."""

from __future__ import annotations

import json
import math

import pytest

from pipeline.tracking.lines import MetricsTail, parse_line, read_lines, read_series


def text(step: int, **metrics: float | str) -> str:
    return json.dumps({"step": step, "time": 100.0 + step, "metrics": metrics}) + "\n"


def test_a_line_is_passed_on_only_when_it_is_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole, torn = text(1, loss=2.0), text(2, loss=1.0)
    path.write_text(whole + torn[:10])
    tail = MetricsTail(path)

    first = [line.step for line in tail.read()]
    with path.open("a") as file:
        file.write(torn[10:])

    assert first == [1]
    assert [line.step for line in tail.read()] == [2]
    assert list(tail.read()) == []


def test_a_tail_waits_for_its_file_and_reads_on_after_a_rename(tmp_path):
    path, published = tmp_path / "work.jsonl", tmp_path / "published.jsonl"
    tail = MetricsTail(path)
    assert list(tail.read()) == []

    path.write_text(text(1, loss=2.0))
    assert len(list(tail.read())) == 1
    with path.open("a") as file:
        file.write(text(2, loss=1.0))
    path.rename(published)

    assert [line.step for line in tail.read()] == [2]


def test_words_for_numbers_that_json_lacks_are_read_back():
    line = parse_line(text(3, kl="nan", up="inf", down="-inf", loss=1.5))

    assert line is not None
    assert math.isnan(line.metrics["kl"])
    assert (line.metrics["up"], line.metrics["down"], line.metrics["loss"]) == (math.inf, -math.inf, 1.5)


@pytest.mark.parametrize("broken", ["", "{", "[]", "{}", '{"step": 1}', '{"step": "x", "metrics": {}}', "7"])
def test_what_is_no_line_of_metrics_is_passed_over(broken):
    assert parse_line(broken) is None


def test_a_series_keeps_the_last_value_of_a_repeated_step_in_order(tmp_path):
    # A stage that was killed at step 3 goes on from its checkpoint at step 1.
    path = tmp_path / "metrics.jsonl"
    path.write_text(text(1, loss=9.0) + text(2, loss=8.0) + text(3, loss=7.0) + text(2, loss=6.0, kl=0.5))

    series = read_series(path)

    assert (series["loss"].steps, series["loss"].values) == ([1, 2, 3], [9.0, 6.0, 7.0])
    assert series["kl"].steps == [2]


def test_steps_rise_even_when_a_second_attempt_logged_at_other_steps(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(text(10, loss=3.0) + text(20, loss=2.0) + text(15, loss=2.5))

    assert read_series(path)["loss"].steps == [10, 15, 20]


def test_a_missing_file_has_no_lines(tmp_path):
    assert list(read_lines(tmp_path / "none.jsonl")) == []
