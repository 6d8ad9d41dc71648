"""Memory of a check: texts are not kept, and what waits to be written waits in a file."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from reward.preferences import writers
from reward.preferences.inspection import inspect_file
from reward.preferences.source import open_source
from reward.preferences.writers import AcceptedWriter, RejectsWriter, RowSink
from tests.benchmarks.bench_data_check import Writer


def write_rows(path: Path, num_rows: int) -> float:
    """Write rows like those of hh-rlhf; every tenth has an empty response. Returns bytes a row."""
    lines = []
    for place, row in enumerate(Writer(7).rows(num_rows)):
        empty = {**row, "chosen": row["chosen"].rpartition("Assistant:")[0] + "Assistant: "}
        lines.append(json.dumps(empty if place % 10 == 9 else row) + "\n")
    path.write_text("".join(lines))
    return path.stat().st_size / num_rows


def peak_bytes(path: Path) -> int:
    folder = path.parent
    tracemalloc.start()
    sinks: list[RowSink] = [RejectsWriter(folder, path), AcceptedWriter(folder, path)]
    found = inspect_file(path, sinks=sinks)
    for sink in sinks:
        sink.close()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.tally.accepted + found.tally.rejected == found.tally.read
    return peak


def test_memory_grows_by_less_than_the_text_of_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("near", "writers"):
        monkeypatch.setattr(f"reward.preferences.{module}.MAX_MEMORY_BYTES", 1 << 16)
    short, long = tmp_path / "short.jsonl", tmp_path / "long.jsonl"
    write_rows(short, 500)
    row_bytes = write_rows(long, 1500)
    # The first check also imports modules and makes tables that stay.
    peak_bytes(short)

    growth = (peak_bytes(long) - peak_bytes(short)) / 1000

    # A row is about 1,500 bytes of text, 3,000 once parsed, and had 16 hash buckets of about 400 bytes.
    assert row_bytes > 1200
    assert growth < 1000, f"{growth:.0f} bytes a row"


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv"])
def test_rejects_that_waited_in_a_file_are_written_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    rows = [
        {"prompt": f"q {n}é\n", "chosen": f'a, "{n}"', "rejected": "" if n % 2 else "b"} for n in range(9)
    ]
    source = tmp_path / name
    writers.write_rows(source, rows)
    written = []

    for limit in (1 << 20, 8):
        monkeypatch.setattr(writers, "MAX_MEMORY_BYTES", limit)
        sink = RejectsWriter(tmp_path, source)
        for row in open_source(source).rows:
            sink(row)
        sink.close()
        written.append(sink.path.read_bytes())

    assert written[0] == written[1]
    assert [row.raw.value["prompt"] for row in open_source(tmp_path / sink.path.name).rows] == [
        f"q {n}é\n" for n in (1, 3, 5, 7)
    ]


def test_rows_of_the_benchmark_are_sound_and_as_long_as_the_real_ones() -> None:
    sizes = [len(row["chosen"]) for row in Writer(1).rows(2000)]
    again = [len(row["chosen"]) for row in Writer(1).rows(2000)]

    assert sizes == again
    # The public file has 700 characters a side in the mean.
    assert 600 < sum(sizes) / len(sizes) < 800
