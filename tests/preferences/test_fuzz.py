"""Mutated files: every row is accounted for, and nothing but a DataError comes out."""

from __future__ import annotations

import copy
import csv
import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import DataError
from reward.preferences.inspection import inspect_file
from reward.preferences.pairs import load_pairs
from tests.preferences.test_readers import PAIRED, UNPAIRED

SEEDS = [json.dumps(row).encode() for rows in [*PAIRED.values(), *UNPAIRED.values()] for row in rows]
JUNK = [
    b"",
    b"\x00",
    b"\xff",
    b'"',
    b"\\",
    b"{",
    b"[",
    b"]}",
    b"\n",
    b"\r\n",
    b"null",
    b"1e999",
    b"\xef\xbb\xbf",
]
JUNK += [
    "\ud83d".encode("utf-8", "surrogatepass"),
    "é".encode("latin-1"),
    b"NaN",
    b"<|im_end|>",
    b",",
    b"true",
]
VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    1e308,
    "",
    " ",
    "tie",
    [],
    {},
    [[]],
    [{}],
    {"role": "user"},
    ["x"],
    10**400,
]


def rows_of(rng: random.Random) -> list[bytes]:
    name = rng.choice(list(PAIRED) + list(UNPAIRED))
    rows = {**PAIRED, **UNPAIRED}[name] * rng.randint(1, 3)
    return [json.dumps(_mutate_value(rng, json.loads(json.dumps(row)))).encode() for row in rows]


def _mutate_value(rng: random.Random, row: Any) -> Any:
    """Put an odd value, drop or rename a field somewhere in a row."""
    for _ in range(rng.randint(0, 2)):
        place = row
        while isinstance(place, dict | list) and place:
            key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
            deeper = place[key]
            if isinstance(deeper, dict | list) and deeper and rng.random() < 0.6:
                place = deeper
                continue
            if rng.random() < 0.2:
                del place[key]
            elif isinstance(place, dict) and rng.random() < 0.1:
                place[f"{key}x"] = place.pop(key)
            else:
                # A copy: a later mutation may reach into it, and must not put a value inside itself.
                place[key] = copy.deepcopy(rng.choice(VALUES))
            break
    return row


def _mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    for _ in range(rng.randint(0, 3)):
        place = rng.randrange(len(data) + 1)
        cut = place + rng.randint(0, 4)
        data = data[:place] + rng.choice(JUNK) + data[cut:]
    return data[: rng.randint(0, len(data))] if rng.random() < 0.1 else data


def _as_jsonl(rng: random.Random, rows: list[bytes]) -> tuple[str, bytes]:
    return "x.jsonl", rng.choice([b"\n", b"\r\n", b"\n\n"]).join(rows)


def _as_array(rng: random.Random, rows: list[bytes]) -> tuple[str, bytes]:
    return "x.json", b"[" + rng.choice([b",", b",\n"]).join(rows) + b"]"


def _as_table(rng: random.Random, rows: list[bytes]) -> tuple[str, bytes]:
    values = [value for row in rows if isinstance(value := json.loads(row), dict)]
    names = list(dict.fromkeys(name for value in values for name in value)) or ["prompt"]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, delimiter=rng.choice(",;\t"))
    writer.writeheader()
    for value in values:
        cells = {k: json.dumps(v) if isinstance(v, dict | list) else v for k, v in value.items()}
        writer.writerow(cells)
    return rng.choice(["x.csv", "x.tsv"]), stream.getvalue().encode("utf-8", "surrogatepass")


FORMS: list[Callable[[random.Random, list[bytes]], tuple[str, bytes]]] = [_as_jsonl, _as_array, _as_table]


def run(seed: int, folder: Path) -> str:
    """Read one mutated file; return what came of it."""
    rng = random.Random(seed)
    name, data = rng.choice(FORMS)(rng, rows_of(rng))
    data = _mutate_bytes(rng, data)
    if rng.random() < 0.1:
        name, data = name + ".gz", gzip.compress(data)
        data = data[: rng.randint(0, len(data))] if rng.random() < 0.5 else data
    path = folder / name
    path.write_bytes(data)
    try:
        found = load_pairs(path)
        inspected = inspect_file(path)
    except DataError:
        return "refused"
    finally:
        path.unlink()
    report = found.report
    assert report.read == report.accepted + report.rejected
    assert report.rejected == len(found.rejects)
    assert inspected.tally.read == report.read
    assert inspected.tally.rejected >= report.rejected
    assert all(0.5 < pair.label <= 1 and pair.chosen.strip() for pair in found.pairs)
    return "rejected rows" if report.rejected else "sound"


def test_mutated_files_never_break_the_reader(tmp_path: Path) -> None:
    outcomes = [run(seed, tmp_path) for seed in range(600)]

    # The mutations reach all three outcomes, so none of them is what always happens.
    assert {outcome for outcome in outcomes if outcomes.count(outcome) > 20} == {
        "refused",
        "rejected rows",
        "sound",
    }


@pytest.mark.slow
def test_ten_thousand_mutated_files_never_break_the_reader(tmp_path: Path) -> None:
    for seed in range(1000, 11_000):
        run(seed, tmp_path)
