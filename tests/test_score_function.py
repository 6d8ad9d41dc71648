"""Scoring functions written by the user."""

from __future__ import annotations

import hashlib

import pytest

from pipeline.contract import ArtifactKind, Checkpoint
from pipeline.errors import DataError
from stages.runtime.score_function import load_score_function


def function_file(folder, text):
    path = folder / "gold.py"
    path.write_text(text, encoding="utf-8")
    return Checkpoint(ArtifactKind.FUNCTION, path, hashlib.sha256(text.encode()).hexdigest())


def test_the_function_sees_prompt_response_and_row(tmp_path):
    source = function_file(
        tmp_path, "def score(prompt, response, row):\n    return len(prompt) + len(response) + row['bonus']\n"
    )

    score = load_score_function(source)

    assert score("ab", "cde", {"bonus": 10}) == 15.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("def other(): pass", "defines no function score", id="other name"),
        pytest.param("def score(:", "cannot be run: SyntaxError", id="syntax"),
        pytest.param("import no_such_module_here", "cannot be run: ModuleNotFoundError", id="import"),
    ],
)
def test_a_file_without_a_usable_function_is_refused(tmp_path, text, message):
    source = function_file(tmp_path, text)

    with pytest.raises(DataError, match=message):
        load_score_function(source)


def test_a_missing_file_is_refused(tmp_path):
    source = Checkpoint(ArtifactKind.FUNCTION, tmp_path / "none.py", "0")

    with pytest.raises(DataError, match="not a Python file"):
        load_score_function(source)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param("return float('nan')", "gave nan", id="nan"),
        pytest.param("return 'good'", "gave 'good'", id="text"),
        pytest.param("return 1 / 0", "raised ZeroDivisionError", id="raises"),
        pytest.param("import sys; sys.exit(0)", "raised SystemExit", id="leaves"),
        pytest.param("return score(prompt, response, row)", "raised RecursionError", id="never ends"),
        pytest.param("return 10.0**39", "gave 1e\\+39", id="too large for a float32"),
        pytest.param("return 10**400", "gave 1000", id="too large for a float"),
        pytest.param("return None", "gave None", id="nothing"),
        pytest.param("return [1.0]", r"gave \[1.0\]", id="a list"),
        pytest.param("return 1j", "gave 1j", id="complex"),
        pytest.param("raise ValueError('x' * 9999)", "ValueError: x{50}", id="a long message"),
    ],
)
def test_a_score_that_is_not_a_finite_number_names_the_file(tmp_path, body, message):
    score = load_score_function(function_file(tmp_path, f"def score(prompt, response, row):\n    {body}\n"))

    with pytest.raises(DataError, match=message) as caught:
        score("p", "r", {})

    (finding,) = caught.value.findings
    assert finding.where.endswith("gold.py")
    assert len(finding.message) < 300


def test_what_a_function_does_to_its_arguments_stays_with_it(tmp_path):
    body = "    prompt[0]['content'] = 'changed'\n    row['tags'].append(1)\n    return 0.0\n"
    score = load_score_function(function_file(tmp_path, f"def score(prompt, response, row):\n{body}"))
    prompt, row = [{"role": "user", "content": "asked"}], {"tags": []}

    score(prompt, "r", row)

    assert prompt[0]["content"] == "asked"
    assert row == {"tags": []}


def test_a_file_that_leaves_while_it_is_loaded_is_refused(tmp_path):
    source = function_file(tmp_path, "raise SystemExit(3)\ndef score(p, r, row): return 1.0\n")

    with pytest.raises(DataError, match="cannot be run: SystemExit"):
        load_score_function(source)
