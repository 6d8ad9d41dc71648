"""Physical forms: every row is found with its line, whatever the file's form; none is lost in silence."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
import zstandard

from pipeline.errors import DataError
from reward.preferences.lines import RawRow, TableForm, read_json, sniff_delimiter, text_rows
from reward.preferences.mapping import Mapping
from reward.preferences.pairs import load_pairs
from reward.preferences.source import raw_rows_of
from reward.preferences.textfile import data_suffix, inspect

ROWS = [
    {"prompt": f"question {n}?", "chosen": f"yes, {n}\nindeed", "rejected": f'"no", {n}'} for n in range(5)
]


def rows_of(path: Path, **mapping: Any) -> list[RawRow]:
    return list(raw_rows_of(path, Mapping(**mapping))[1])


def lines_of(path: Path) -> list[int]:
    return [row.line for row in rows_of(path)]


def as_csv(delimiter: str = ",") -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(ROWS[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return stream.getvalue()


JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)
FORMS: list[tuple[str, bytes, list[int]]] = [
    ("a.jsonl", JSONL.encode(), [1, 2, 3, 4, 5]),
    ("a.jsonl", JSONL.replace("\n", "\r\n").encode(), [1, 2, 3, 4, 5]),
    ("a.jsonl", JSONL.replace("\n", "\n\n").encode(), [1, 3, 5, 7, 9]),
    ("a.jsonl", JSONL.rstrip("\n").encode("utf-16"), [1, 2, 3, 4, 5]),
    ("a.jsonl", JSONL.encode("utf-32-be"), [1, 2, 3, 4, 5]),
    ("a.json", json.dumps(ROWS).encode(), [1] * 5),
    ("a.json", json.dumps(ROWS, indent=1).encode(), [2, 7, 12, 17, 22]),
    ("a.jsonl", json.dumps(ROWS, indent=1).encode(), [2, 7, 12, 17, 22]),
    ("a.json", JSONL.encode(), [1, 2, 3, 4, 5]),
    ("a.json", "\n".join(json.dumps(row, indent=1) for row in ROWS).encode(), [1, 6, 11, 16, 21]),
    ("a.csv", as_csv().encode(), [2, 4, 6, 8, 10]),
    ("a.csv", as_csv(";").encode("utf-8-sig"), [2, 4, 6, 8, 10]),
    ("result.csv", as_csv("\t").encode(), [2, 4, 6, 8, 10]),
    ("a.tsv", as_csv("\t").encode("utf-16"), [2, 4, 6, 8, 10]),
    ("a.csv", as_csv("|").replace("\r\n", "\n").encode("cp1252"), [2, 4, 6, 8, 10]),
    ("noname", JSONL.encode(), [1, 2, 3, 4, 5]),
]


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
@pytest.mark.parametrize(("name", "content", "lines"), FORMS)
def test_rows_are_read_with_their_first_lines(
    name: str, content: bytes, lines: list[int], packed: str, tmp_path: Path
) -> None:
    path = tmp_path / (name + packed)
    if packed == ".gz":
        content = gzip.compress(content)
    elif packed == ".zst":
        content = zstandard.ZstdCompressor().compress(content)
    path.write_bytes(content)

    rows = rows_of(path)

    texts = [{key: text.replace("\r\n", "\n") for key, text in row.value.items()} for row in rows]
    assert texts == ROWS
    assert [row.line for row in rows] == lines


def test_a_workbook_is_read_by_its_first_or_named_sheet(tmp_path: Path) -> None:
    from openpyxl import Workbook

    book = Workbook()
    book.active.title = "notes"
    book.active.append(["nothing here"])
    sheet = book.create_sheet("votes")
    sheet.append(list(ROWS[0]))
    for row in ROWS:
        sheet.append(list(row.values()))
    sheet.append([None, None, None])
    path = tmp_path / "a.xlsx"
    book.save(path)

    rows = rows_of(path, sheet="votes")

    assert [row.value for row in rows] == ROWS
    assert [row.line for row in rows] == [2, 3, 4, 5, 6]
    with pytest.raises(DataError, match="no sheet 'answers'"):
        rows_of(path, sheet="answers")


def test_a_boolean_or_date_in_a_text_column_is_rejected(tmp_path: Path) -> None:
    import datetime

    from openpyxl import Workbook

    book = Workbook()
    book.active.append(["prompt", "chosen", "rejected"])
    book.active.append(["Is it so?", True, "no"])
    book.active.append(["When?", datetime.date(2026, 1, 2), "no"])
    book.active.append(["How many?", 12, "none"])
    book.active.append(["Really?", "yes", "no"])
    path = tmp_path / "a.xlsx"
    book.save(path)

    found = load_pairs(path)

    assert [(reject.line, reject.check, reject.field) for reject in found.rejects] == [
        (line, "wrong_type", "chosen") for line in (2, 3, 4)
    ]
    assert [pair.line for pair in found.pairs] == [5]


def test_a_parquet_file_is_read(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)

    assert [row.value for row in rows_of(path)] == ROWS
    assert lines_of(path) == [1, 2, 3, 4, 5]


def test_a_cut_archive_says_where_it_ends_and_keeps_what_came_before(tmp_path: Path) -> None:
    rng = random.Random(0)
    text = "".join(
        json.dumps({"prompt": f"q {n}", "chosen": f"{rng.random()} yes", "rejected": f"{rng.random()} no"})
        + "\n"
        for n in range(2000)
    )
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(text.encode())[:-9_000])

    found = load_pairs(path)

    assert 100 < len(found.pairs) < 4000
    assert found.rejects[-1].check == "truncated_file"
    assert found.rejects[-1].line > found.pairs[-1].line
    assert found.report.read == found.report.accepted + found.report.rejected


def test_an_unclosed_quote_costs_one_record_and_not_the_file(tmp_path: Path) -> None:
    text = as_csv().replace('"yes, 1', '"yes "" 1" oops "', 1)
    path = tmp_path / "a.csv"
    path.write_text(text + 'question 9?,"never closed,no\r\nquestion 10?,yes 10,no 10\r\n', newline="")

    found = load_pairs(path)

    assert {"question 0?", "question 2?", "question 3?", "question 4?", "question 10?"} <= {
        pair.prompt for pair in found.pairs
    }
    assert {reject.check for reject in found.rejects} == {"parse_error"}


def test_a_row_with_too_many_cells_is_rejected_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,chosen,rejected\np,yes,no\np,yes, indeed,no\np2,yes,no\n")

    found = load_pairs(path)

    assert [(reject.line, reject.message) for reject in found.rejects] == [
        (3, "4 cells where the header names 3")
    ]
    assert [pair.line for pair in found.pairs] == [2, 4]


def test_a_table_without_header_has_numbered_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("p,yes,no\np2,yes,no\n")
    mapping = tmp_path / "map.yaml"
    mapping.write_text("header: false\nprompt: column_1\nchosen: column_2\nrejected: column_3\n")

    assert [pair.line for pair in load_pairs(path, mapping=mapping).pairs] == [1, 2]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,chosen,chosen\np,yes,no\n")

    with pytest.raises(DataError, match="two columns are called 'chosen'"):
        load_pairs(path)


def test_a_latin_1_file_is_decoded_and_nothing_is_dropped(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": f"Où est la clé numéro {n} ?",
            "chosen": "Près de l'évier, à côté du thé.",
            "rejected": "Là-bas.",
        }
        for n in range(40)
    ]
    path = tmp_path / "a.csv"
    with path.open("w", encoding="latin-1", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)

    assert [row.value for row in rows_of(path)] == rows
    assert not inspect(path).is_utf8


def test_a_line_may_hold_line_separators_of_other_scripts(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    row = {"prompt": "p\u2028q", "chosen": "yes\x85", "rejected": "no\u2029"}
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")

    assert [found.value for found in rows_of(path)] == [row]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"a": "x"}, {"a": "y"', ["ok", "parse_error", "truncated_file"]),
        ('[{"a": "x"} {"a": "y"}]', ["parse_error"]),
        ('[{"a": "x"}, {"a": oops}, {"a": "z"}]', ["ok", "parse_error", "ok"]),
        ('[{"a": "]}\\"[{"}, {"b": [1, {"c": 2}]}]', ["ok", "ok"]),
        ('[{"a": 1}] trailing', ["ok", "parse_error"]),
        ("[]", []),
        ('[{"a": "x"},]', ["ok"]),
    ],
)
def test_damage_in_an_array_stays_local(text: str, expected: list[str], tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)

    found = [row.problem.check if row.problem else "ok" for row in read_json(path, inspect(path))]

    assert found == expected


def test_an_array_that_crosses_read_blocks_is_cut_rightly(tmp_path: Path) -> None:
    rng = random.Random(3)
    rows = [{"n": n, "text": "".join(rng.choices('ab"\\{}[],\n', k=rng.randint(0, 9000)))} for n in range(80)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows))

    assert [row.value for row in read_json(path, inspect(path))] == rows


def test_an_empty_file_a_folder_and_a_binary_file_are_errors_with_a_place(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="holds no row"):
        load_pairs(tmp_path / "empty.jsonl")
    with pytest.raises(DataError, match="is a folder"):
        load_pairs(tmp_path)
    (tmp_path / "a.xlsx").write_bytes(b"not a workbook")
    with pytest.raises(DataError, match="not a workbook"):
        load_pairs(tmp_path / "a.xlsx")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(DataError, match="Parquet"):
        load_pairs(tmp_path / "a.parquet")


def test_the_suffix_before_a_packing_counts() -> None:
    assert data_suffix(Path("votes.JSONL.gz")) == ".jsonl"
    assert data_suffix(Path("votes.v2.csv.zst")) == ".csv"
    assert data_suffix(Path("votes")) == ""


def test_a_given_delimiter_wins(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a;b,c\n1;2,3\n")
    form = inspect(path)

    assert sniff_delimiter(path, form) in ",;"
    rows = list(text_rows(path, ".csv", TableForm(delimiter=";"))[1])
    assert rows[0].value == {"a": "1", "b,c": "2,3"}


def test_label_studio_and_argilla_samples_are_read() -> None:
    from tests.realdata import find_realdata

    expected = {
        ("labelstudio", "synthetic_export_JSON.json"): ("label-studio", 3),
        ("labelstudio", "synthetic_export_JSON_MIN.json"): ("label-studio-min", 6),
        ("labelstudio", "synthetic_export_CSV.csv"): ("label-studio-min", 6),
        ("argilla", "synthetic_flattened.json"): ("argilla-flat", 1),
        ("argilla", "synthetic_nested.json"): ("argilla", 1),
    }
    for parts, (name, num_rows) in expected.items():
        found = load_pairs(find_realdata("formats", *parts))

        assert (found.verdict.format.name, found.report.read, found.rejects) == (name, num_rows, [])
        if name.startswith("label"):
            # P1: left, right, tie and a cancelled one. P2: B over A, and C over A over B.
            assert [(tie.chosen, tie.votes) for tie in found.ties] == [("A", 3), ("A", 2)]
            assert {(p.chosen, p.rejected) for p in found.pairs} == {("C", "A"), ("C", "B")}
