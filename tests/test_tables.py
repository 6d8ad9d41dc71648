"""Tables on standard output: nothing is cut, whatever the width."""

from __future__ import annotations

import json

import pytest

from pipeline.cli.tables import show, show_artifact
from tests.fakes.engine import Engine

COLUMNS = ["model", *(f"column {i}" for i in range(9))]
ROW = ["sft", *(f"0.{i}00 [0.{i}00, 0.{i}99]" for i in range(9))]


def test_a_row_stays_on_one_line_in_a_file(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)

    show(COLUMNS, [ROW])

    line = next(line for line in capsys.readouterr().out.splitlines() if "sft" in line)
    assert all(cell in line for cell in ROW)


@pytest.mark.parametrize("width", ["60", "80", "120"])
def test_a_narrow_terminal_folds_cells_and_cuts_none(capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", width)

    show(COLUMNS, [ROW])

    shown = capsys.readouterr().out
    assert "…" not in shown
    assert sum(character == "9" for character in shown) == sum(cell.count("9") for cell in ROW)


def test_a_note_that_the_run_has_said_is_not_said_again(tmp_path, capsys):
    engine = Engine(tmp_path / "work")
    engine.run_here()
    record = engine.store.load(engine.stage_folders()["second"].name)
    path = engine.stage_folders()["second"] / "table" / "table.json"
    document = json.loads(path.read_text()) | {"notes": ["heard before", "new"]}
    path.chmod(0o644)
    path.write_text(json.dumps(document))

    show_artifact(engine.store, record, said=("heard before",))

    shown = capsys.readouterr().out
    assert "new" in shown
    assert "heard before" not in shown
