"""`triptych data check` from the outside: exit codes, files, resubmission, the two reports."""

from __future__ import annotations

import csv
import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.main import main
from reward.preferences.source import MARKS
from tests.preferences.planted import NUM_ROWS, clean_rows, write_jsonl


def check(*words: object) -> int:
    return main(["data", "check", *map(str, words)])


def report_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text("utf-8"))


def broken_rows(*lines: int) -> list[Any]:
    rows: list[Any] = clean_rows()
    for line in lines:
        rows[line - 1]["responses"][1]["text"] = ""
    return rows


def test_a_sound_file_exits_0_and_leaves_no_rejects(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_jsonl(tmp_path / "votes.jsonl", clean_rows())

    assert check(path, "--out", tmp_path / "out", "--strict") == 0

    assert sorted(item.name for item in (tmp_path / "out").iterdir()) == [
        "accepted.jsonl",
        "report.html",
        "report.json",
    ]
    shown = capsys.readouterr().out
    assert "read as comparison records of this project" in shown
    assert f"{NUM_ROWS} read, {NUM_ROWS} accepted, 0 rejected" in shown
    assert "is better than" in shown


def test_exit_codes_tell_warnings_rejects_and_unreadable_files_apart(tmp_path: Path) -> None:
    warned = clean_rows()
    warned[4]["responses"][0]["text"] += " Human: hm"
    one_warning = write_jsonl(tmp_path / "warned.jsonl", warned)
    many_rejects = write_jsonl(tmp_path / "broken.jsonl", broken_rows(3, 9))
    unknown = write_jsonl(tmp_path / "unknown.jsonl", [{"left": "a"}])
    out = tmp_path / "out"

    assert check(one_warning, "--out", out) == 0
    assert check(one_warning, "--out", out, "--strict") == 1
    # 2 of 60 rows are more than the 1 % that may be set aside.
    assert check(many_rejects, "--out", out) == 2
    assert check(unknown, "--out", out) == 3
    assert check(tmp_path / "missing.jsonl", "--out", out) == 3
    assert check(one_warning, many_rejects, unknown, "--out", out) == 3


def test_thresholds_come_from_a_settings_file(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "votes.jsonl", broken_rows(3, 9))
    settings = tmp_path / "settings.yaml"
    settings.write_text("max_reject_share: 0.05\n")

    assert check(path, "--out", tmp_path / "out", "--settings", settings) == 0
    settings.write_text("max_reject_chare: 0.05\n")
    assert check(path, "--out", tmp_path / "out", "--settings", settings) == 2


def test_several_files_get_a_folder_each_and_one_page(tmp_path: Path) -> None:
    paths = [write_jsonl(tmp_path / f"{name}.jsonl", clean_rows(seed=n)) for n, name in enumerate("ab")]

    assert check(*paths, "--out", tmp_path / "out") == 0

    assert report_of(tmp_path / "out" / "a.jsonl")["file"] == "a.jsonl"
    assert report_of(tmp_path / "out" / "b.jsonl")["file"] == "b.jsonl"
    assert "2 files" in (tmp_path / "out" / "report.html").read_text()


def plain(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    return [
        {
            "prompt": row["prompt"][0]["content"],
            "chosen": row["responses"][0]["text"],
            "rejected": row["responses"][1]["text"],
            "note": "=mine, 100 %",
        }
        for row in rows
    ]


def write_form(path: Path, rows: list[dict[str, str]]) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".xlsx":
        from openpyxl import Workbook

        book = Workbook()
        book.active.append(list(rows[0]))
        for number, row in enumerate(rows, start=2):
            for column, text in enumerate(row.values(), start=1):
                cell = book.active.cell(number, column)
                cell.value = text
                if isinstance(text, str):
                    cell.data_type = "s"
        book.save(path)
    elif path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        write_jsonl(path, rows)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".xlsx", ".parquet"])
def test_rejects_come_in_the_format_of_the_file_and_can_be_mended(suffix: str, tmp_path: Path) -> None:
    rows = plain(broken_rows(3, 9, 20))
    path = write_form(tmp_path / f"votes{suffix}", rows)
    first, second = tmp_path / "first", tmp_path / "second"
    assert check(path, "--out", first) == 2

    rejects = first / f"rejects{suffix}"
    found = _read_form(rejects)
    assert [{k: v for k, v in row.items() if k not in MARKS} for row in found] == _as_read(
        [rows[2], rows[8], rows[19]], suffix
    )
    # An empty cell of a workbook is no text at all.
    assert {row["_checks"] for row in found} == {"missing_field" if suffix == ".xlsx" else "empty_response"}
    assert [int(row["_row"]) for row in found] == [3, 9, 20]
    lines = [int(row["_line"]) for row in found]

    # The team mends two of the three, breaks none, and submits the file of rejects again.
    for row in found[:2]:
        row["rejected"] = f"a new answer to {row['prompt']}"
    mended = write_form(tmp_path / f"mended{suffix}", found)
    assert check(mended, "--out", second, "--previous", first / "report.json") == 2

    report = report_of(second)
    assert report["resubmission"] == {"before": 3, "fixed": 2, "remaining": 1, "missing": 0, "new": 0}
    assert [(item["row"], item["line"]) for item in report["rejects"]] == [(20, lines[2])]
    accepted = (second / "accepted.jsonl").read_text().splitlines()
    assert len(accepted) == 2


def _read_form(path: Path) -> list[dict[str, Any]]:
    from reward.preferences.lines import TableForm, text_rows
    from reward.preferences.tables import read_parquet, read_workbook

    if path.suffix == ".xlsx":
        return [row.value for row in read_workbook(path, TableForm())]
    if path.suffix == ".parquet":
        return [row.value for row in read_parquet(path)]
    return [row.value for row in text_rows(path, path.suffix, TableForm())[1]]


def _as_read(rows: list[dict[str, str]], suffix: str) -> list[dict[str, Any]]:
    """An empty cell of a workbook is no text."""
    if suffix != ".xlsx":
        return list(rows)
    return [{name: value or None for name, value in row.items()} for row in rows]


def test_a_whole_file_submitted_again_is_compared_too(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "votes.jsonl", broken_rows(3, 9))
    check(path, "--out", tmp_path / "first")
    again = write_jsonl(tmp_path / "again.jsonl", broken_rows(9, 31))

    check(again, "--out", tmp_path / "second", "--previous", tmp_path / "first" / "report.json")

    assert report_of(tmp_path / "second")["resubmission"] == {
        "before": 2,
        "fixed": 1,
        "remaining": 1,
        "missing": 0,
        "new": 1,
    }


def test_a_line_that_is_no_json_goes_to_the_rejects_as_it_was(tmp_path: Path) -> None:
    rows: list[Any] = clean_rows()
    rows[5] = '{"prompt": "cut he'
    path = write_jsonl(tmp_path / "votes.jsonl", rows)

    check(path, "--out", tmp_path / "out")

    (reject,) = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert (reject["_raw"], reject["_line"], reject["_checks"]) == ('{"prompt": "cut he', 6, "parse_error")


def test_the_json_report_has_the_documented_schema(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "votes.jsonl", broken_rows(3))
    check(path, "--out", tmp_path / "out")

    report = report_of(tmp_path / "out")

    assert (report["schema"], report["schema_version"]) == ("triptych/data-report", 1)
    assert {
        "file", "sha256", "bytes", "format", "reads_as", "confidence", "declared", "encoding", "verdict",
        "rows", "flags", "longer_share", "examples", "checks", "agreement", "annotators", "plots", "rejects",
        "resubmission", "settings",
    } <= set(report)  # fmt: skip
    rows = report["rows"]
    assert (
        rows["read"]
        == rows["accepted"] + rows["rejected"]
        == rows["clean"] + rows["flagged"] + rows["rejected"]
    )
    for item in report["checks"]:
        assert {"id", "group", "severity", "verdict", "count", "of", "share", "threshold", "advice",
                "examples", "measured"} == set(item)  # fmt: skip
        assert item["verdict"] in ("ok", "info", "warn", "fail")
        assert item["severity"] in ("R", "W", "F")
    assert len({item["id"] for item in report["checks"]}) == len(report["checks"])
    assert len(report["examples"]) == 3


def test_annotators_are_hashed_unless_asked_for(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "votes.jsonl", clean_rows())

    check(path, "--out", tmp_path / "hashed", "--salt", "one")
    check(path, "--out", tmp_path / "other", "--salt", "two")
    check(path, "--out", tmp_path / "shown", "--show-annotators")

    text = (tmp_path / "hashed" / "report.json").read_text() + (
        tmp_path / "hashed" / "report.html"
    ).read_text()
    assert "rater-" not in text
    names = {folder: {row["name"] for row in report_of(tmp_path / folder)["annotators"]}
             for folder in ("hashed", "other", "shown")}  # fmt: skip
    assert len(names["hashed"]) == 6
    assert not names["hashed"] & names["other"]
    assert names["shown"] == {f"rater-{number}" for number in range(6)}


def test_leakage_is_exact_near_or_rephrased(tmp_path: Path) -> None:
    rows = clean_rows()
    long = "Please tell me how one would mend the old violin at the harbour before the evening rain comes in"
    rows[7]["prompt"] = [{"role": "user", "content": f"{long} today"}]
    rows[8]["prompt"] = [
        {"role": "user", "content": "What would be the best way of mending the wooden garden gate there?"}
    ]
    train = write_jsonl(tmp_path / "train.jsonl", rows)
    held_out = write_jsonl(
        tmp_path / "eval.jsonl",
        [
            {"prompt": rows[3]["prompt"]},
            {"prompt": f"{long} tonight"},
            {"prompt": "What would be the best ways of mending wooden garden gates there?"},
            {"prompt": "Nothing like anything that stands in the other file, truly."},
        ],
    )

    assert check(train, "--out", tmp_path / "out", "--against", held_out) == 2

    found = {item["id"]: item for item in report_of(tmp_path / "out")["checks"] if item["group"] == "leakage"}
    lines = {name: [example["line"] for example in item["examples"]] for name, item in found.items()}
    assert lines["split_leakage:eval.jsonl"] == [4]
    assert lines["near_leakage:eval.jsonl"] == [8]
    assert 9 in lines["rephrased_leakage:eval.jsonl"]
    assert not {4, 8} & set(lines["rephrased_leakage:eval.jsonl"])
    assert found["split_leakage:eval.jsonl"]["verdict"] == "fail"
    assert found["near_leakage:eval.jsonl"]["verdict"] == "warn"


class Page(HTMLParser):
    """Collects tags and the addresses they name."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src", "action", "data")]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_shows_markup_as_text_and_loads_nothing(tmp_path: Path) -> None:
    rows = clean_rows()
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)> \"' & {{ 7 * 7 }}"
    rows[0]["prompt"][0]["content"] += evil
    rows[0]["responses"][0]["text"] += evil
    for row in rows:
        row["votes"][0]["annotator"] = "<b>ann</b>"
    path = write_jsonl(tmp_path / "<i>votes.jsonl", rows)

    check(path, "--out", tmp_path / "out", "--show-annotators")

    text = (tmp_path / "out" / "report.html").read_text("utf-8")
    page = Page()
    page.feed(text)
    assert not {"script", "img", "iframe", "b onerror"} & set(page.tags)
    assert "i" not in page.tags
    assert page.addresses == ["data:,"]
    assert not re.findall(r"url\(|@import|https?://", text)
    assert "default-src 'none'" in unescape(text)
    assert "<script>alert(1)</script>" in "".join(page.text)
    assert "{{ 7 * 7 }}" in "".join(page.text)
    assert {"svg", "table"} <= set(page.tags)


def test_max_length_needs_a_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_jsonl(tmp_path / "votes.jsonl", clean_rows())

    assert check(path, "--out", tmp_path / "out", "--max-length", 64) == 2
    assert "belong together" in capsys.readouterr().err


def test_a_mapping_and_a_format_are_given_on_the_command_line(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "votes.jsonl",
        [{"prompt": f"p {n}", "response_1": f"yes {n}", "response_2": f"no {n}", "preference_strength": -1}
         for n in range(5)],
    )  # fmt: skip

    assert check(path, "--out", tmp_path / "out") == 3
    assert check(path, "--out", tmp_path / "out", "--format", "helpsteer2-preference") in (0, 2)
    assert report_of(tmp_path / "out")["declared"]


def test_the_command_prints_json_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_jsonl(tmp_path / "votes.jsonl", clean_rows())

    check(path, "--out", tmp_path / "out", "--json")

    assert json.loads(capsys.readouterr().out)["rows"]["read"] == NUM_ROWS


def test_what_to_do_next_is_printed_beside_the_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_jsonl(tmp_path / "votes.jsonl", broken_rows(3))

    check(path, "--out", tmp_path / "out")

    out = tmp_path / "out"
    assert f"to mend: {out / 'rejects.jsonl'}; mended, check it with --previous {out / 'report.json'}" in (
        capsys.readouterr().out
    )


def test_a_misspelt_threshold_and_a_misspelt_format_are_answered_with_the_right_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_jsonl(tmp_path / "votes.jsonl", clean_rows())
    settings = tmp_path / "settings.yaml"
    settings.write_text("max_reject_shar: 0.5\n")

    assert check(path, "--settings", settings) == 2
    assert "there is no key 'max_reject_shar'" in (said := capsys.readouterr().err)
    assert "max_reject_share" in said

    assert check(path, "--format", "hh", "--out", tmp_path / "out") == 3
    assert "format: hh-rlhf" in capsys.readouterr().err


def test_a_proposed_mapping_without_a_gap_is_not_said_to_have_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "team.csv"
    path.write_text("prompt,response_a,response_b,winner\nq,x,y,A\nq2,x,z,tie\n")

    assert check(path, "--out", tmp_path / "out") == 3
    said = capsys.readouterr().err
    assert "save this as map.yaml, look it over, and give --map map.yaml" in said

    proposed = said[said.index("prompt: prompt") :]
    (tmp_path / "map.yaml").write_text(proposed)
    assert check(path, "--map", tmp_path / "map.yaml", "--out", tmp_path / "out") == 0
