"""Prompt and demonstration files: what is read, what is set aside, and how it is said."""

from __future__ import annotations

import gzip
import json

import pytest

from pipeline.errors import DataError
from stages.data import Demonstration, read_demonstrations, read_prompts, write_rejects

USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "yo"}


def write(path, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        pytest.param({"prompt": "hi", "completion": "yo"}, "hi", id="text"),
        pytest.param({"prompt": "hi", "response": "yo"}, "hi", id="response"),
        pytest.param({"prompt": [USER], "completion": [ANSWER]}, [USER], id="messages"),
        pytest.param({"prompt": [USER], "completion": "yo"}, [USER], id="mixed"),
        pytest.param({"messages": [USER, ANSWER]}, [USER], id="conversation"),
    ],
)
def test_every_form_of_a_demonstration_is_read(tmp_path, row, prompt):
    rows, rejects = read_demonstrations(write(tmp_path / "a.jsonl", row))

    assert rows == [Demonstration(prompt, "yo", 1)]
    assert rejects == []


BAD_ROWS = {
    "parse_error": '{"prompt": "hi", ',
    "not_an_object": [1],
    "missing_prompt": {"completion": "yo"},
    "missing_response": {"prompt": "hi"},
    "empty_prompt": {"prompt": "  ", "completion": "yo"},
    "empty_response": {"prompt": "hi", "completion": " \n"},
    "two_responses": {"prompt": "hi", "completion": "yo", "response": "ya"},
    "wrong_type": {"prompt": 7, "completion": "yo"},
    "bad_role": {"messages": [{"role": "robot", "content": "hi"}, ANSWER]},
    "tool_calls": {"messages": [USER, {**ANSWER, "tool_calls": [{"name": "f"}]}]},
}


@pytest.mark.parametrize("check", BAD_ROWS)
def test_a_bad_row_is_set_aside_with_its_line_and_reason(tmp_path, check):
    good = {"prompt": "hi", "completion": "yo"}
    path = write(tmp_path / "a.jsonl", good, BAD_ROWS[check], good)

    rows, rejects = read_demonstrations(path)

    assert [row.line for row in rows] == [1, 3]
    assert [(row.line, row.check) for row in rejects] == [(2, check)]


@pytest.mark.parametrize(
    "row",
    [
        pytest.param({"messages": [ANSWER]}, id="answer without a question"),
        pytest.param({"messages": [USER, USER]}, id="no answer at the end"),
        pytest.param({"prompt": [USER, ANSWER], "completion": "yo"}, id="prompt ends with an answer"),
        pytest.param({"prompt": "hi", "completion": [USER]}, id="completion of a user"),
        pytest.param({"messages": []}, id="no messages"),
        pytest.param({"messages": [{"role": "user"}, ANSWER]}, id="no content"),
        pytest.param({"prompt": "hi", "completion": None}, id="null"),
    ],
)
def test_a_conversation_that_teaches_nothing_is_set_aside(tmp_path, row):
    good = {"prompt": "hi", "completion": "yo"}

    rows, rejects = read_demonstrations(write(tmp_path / "a.jsonl", row, good))

    assert len(rows) == len(rejects) == 1


def test_nothing_is_lost_every_line_is_a_row_or_a_reject(tmp_path):
    rows_in = [{"prompt": f"q{i}", "completion": "a"} for i in range(50)] + list(BAD_ROWS.values())

    rows, rejects = read_demonstrations(write(tmp_path / "a.jsonl", *rows_in))

    assert sorted([row.line for row in rows] + [row.line for row in rejects]) == list(range(1, 61))


def test_rejected_rows_are_written_as_json_lines_with_the_row_itself(tmp_path):
    _, rejects = read_demonstrations(
        write(tmp_path / "a.jsonl", {"prompt": "hi", "completion": "yo"}, "{broken")
    )

    written = write_rejects(rejects, tmp_path / "rejected_rows.jsonl").read_text().splitlines()

    row = json.loads(written[0])
    assert (row["line"], row["check"], row["row"]) == (2, "parse_error", "{broken")


def test_a_file_without_any_usable_row_is_an_error_that_shows_the_rows(tmp_path):
    path = write(tmp_path / "a.jsonl", *BAD_ROWS.values())

    with pytest.raises(DataError, match="no usable row") as caught:
        read_demonstrations(path)
    assert f"{path}:1" in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no\.jsonl") as caught:
        read_demonstrations(tmp_path / "no.jsonl")
    assert caught.value.findings[0].code == "missing-file"


def test_a_compressed_file_is_read(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"prompt": "hi", "completion": "yo"}\n'))

    assert read_demonstrations(path)[0] == [Demonstration("hi", "yo", 1)]


def test_prompts_keep_their_line_id_and_other_fields(tmp_path):
    rows = read_prompts(
        write(tmp_path / "p.jsonl", {"prompt": "hi", "topic": "x", "id": "a1"}, {"prompt": [USER]})
    )

    assert (rows[0].id, rows[0].prompt, rows[0].line, rows[0].meta) == ("a1", "hi", 1, {"topic": "x"})
    assert (rows[1].prompt, rows[1].line, rows[1].meta) == ([USER], 2, {})


def test_a_conversation_that_ends_in_an_answer_is_a_prompt_with_a_reference(tmp_path):
    (row,) = read_prompts(write(tmp_path / "p.jsonl", {"messages": [USER, ANSWER]}))

    assert row.prompt == [USER]
    assert row.meta == {"reference": "yo"}


def test_ids_are_unique_and_do_not_depend_on_the_place_in_the_file(tmp_path):
    first = read_prompts(write(tmp_path / "p.jsonl", {"prompt": "a"}, {"prompt": "b"}, {"prompt": "a"}))
    second = read_prompts(write(tmp_path / "q.jsonl", {"prompt": "b"}, {"prompt": "a"}))

    assert len({row.id for row in first}) == 3
    assert {row.id for row in second} <= {row.id for row in first}


def test_bad_prompts_are_all_named_at_once(tmp_path):
    path = write(tmp_path / "p.jsonl", {"prompt": "a"}, {"prompt": ""}, {"question": "b"})

    with pytest.raises(DataError) as caught:
        read_prompts(path)
    assert [finding.where for finding in caught.value.findings] == [f"{path}:2", f"{path}:3"]


def test_a_file_without_a_prompt_is_an_error(tmp_path):
    with pytest.raises(DataError, match="holds no prompt"):
        read_prompts(write(tmp_path / "p.jsonl"))
