"""Stages say what became of every row of the preference files they read, and lineage shows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.main import main
from pipeline.contract import ArtifactKind, Checkpoint, RowCounts, StageContext, StageResult
from pipeline.lineage import lineage
from pipeline.record import RowsRecord
from pipeline.report.artifacts import read_data_report
from pipeline.store import Store
from stages import dpo, kto, prepare, reward
from stages.data_report import with_data_report
from tests.tiny import stage_context

RUN = """
name: team
stages:
  data: {kind: prepare, inputs: {preferences: votes.jsonl}}
  again: {kind: prepare, inputs: {preferences: data.preferences}, held_out_share: 0.5}
"""


def write_votes(path: Path) -> None:
    """Twenty rows; an empty response at 3 and 7, two equal responses at 11."""
    rows: list[dict[str, Any]] = [
        {"prompt": f"question {n}?", "chosen": f"good {n}.", "rejected": f"bad {n}."} for n in range(1, 21)
    ]
    rows[2]["chosen"] = rows[6]["rejected"] = " "
    rows[10]["rejected"] = rows[10]["chosen"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.chdir(tmp_path)
    write_votes(tmp_path / "votes.jsonl")
    (tmp_path / "run.yaml").write_text(RUN)
    assert main(["run", "run.yaml"]) == 0
    return Store(tmp_path / "store")


def test_lineage_shows_accepted_and_rejected_rows_under_each_preference_file(
    finished: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()

    assert main(["lineage", "team:again"]) == 0

    text = capsys.readouterr().out.splitlines()
    file = next(place for place, line in enumerate(text) if "preferences: votes.jsonl  sha256" in line)
    assert text[file + 1].strip() == (
        "rows: 20 read, 17 accepted, 3 rejected (2 empty_response, 1 identical_responses; lines 3, 7, 11)"
    )
    # What prepare wrote is sound: 17 comparisons less the held-out ones.
    assert any("rows: 14 read, 14 accepted, 0 rejected" in line for line in text)

    assert main(["lineage", "team:again", "--json"]) == 0
    below = json.loads(capsys.readouterr().out)[0]["inputs"][0]
    assert below["rows"]["read"] == below["rows"]["accepted"] == 14
    assert below["inputs"][0]["name"] == "votes.jsonl"
    assert below["inputs"][0]["rows"] == {
        "read": 20,
        "accepted": 17,
        "rejected": 3,
        "reasons": {"empty_response": 2, "identical_responses": 1},
        "first_lines": [3, 7, 11],
    }


def test_the_record_names_file_digest_and_rows_and_the_report_lists_the_rejected_ones(
    finished: Store,
) -> None:
    (tree,) = lineage(finished, "team", "data")
    assert tree.record is not None
    given = tree.record.inputs["preferences"]
    report_file = tree.record.outputs["data_report"]
    report = json.loads(
        (finished.stage_folder(tree.record.key) / report_file.path / "report.json").read_text()
    )

    assert given.source == report["file"] == "votes.jsonl"
    assert given.fingerprint == report["sha256"]
    assert given.rows is not None
    assert (given.rows.read, given.rows.rejected) == (report["rows"]["read"], report["rows"]["rejected"])
    assert [reject["line"] for reject in report["rejects"]] == [3, 7, 11]


def test_the_report_of_a_run_reads_what_the_stage_published(finished: Store) -> None:
    (tree,) = lineage(finished, "team", "data")
    assert tree.record is not None

    view = read_data_report(finished.stage_folder(tree.record.key) / "data_report", "data")

    assert view is not None
    assert view.file == "votes.jsonl"
    assert ("rows rejected", "3") in view.facts
    assert [place for place, _ in view.rejects] == ["line 3", "line 7", "line 11"]


@pytest.mark.parametrize("card", [reward, dpo, kto, prepare], ids=["reward", "dpo", "kto", "prepare"])
def test_every_stage_that_reads_preferences_declares_the_report(card: Any) -> None:
    assert card.SPEC.outputs["data_report"] is ArtifactKind.DATA_REPORT


@pytest.mark.parametrize("card", [reward, dpo], ids=["reward", "dpo"])
def test_a_pair_stage_reports_both_of_its_files(
    card: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"train_{card.SPEC.kind}"
    monkeypatch.setattr(f"stages.trainers.{card.SPEC.kind}.{name}", lambda _: StageResult({"x": tmp_path}))
    write_votes(tmp_path / "votes.jsonl")
    (tmp_path / "other.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    inputs = {
        role: Checkpoint(ArtifactKind.PREFERENCES, tmp_path / file, "0" * 64, source=f"some/{file}")
        for role, file in (("preferences", "votes.jsonl"), ("held_out", "other.jsonl"))
    }

    result = card.run(stage_context(tmp_path / "stage", card.SPEC.config_type(), inputs))

    assert sorted(path.name for path in result.outputs["data_report"].iterdir()) == [
        "held_out.json",
        "report.json",
    ]
    assert result.rows["held_out"] == RowCounts(1, 1, 0)
    assert (result.rows["preferences"].read, result.rows["preferences"].rejected) == (20, 3)
    assert result.outputs["x"] == tmp_path


def test_a_stage_that_fails_is_not_reported_as_a_success(tmp_path: Path) -> None:
    def fail(_: StageContext) -> StageResult:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        with_data_report(stage_context(tmp_path, prepare.PrepareConfig()), fail)


def test_counts_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(ValueError, match="3 accepted and 1 rejected are not 5 rows"):
        RowsRecord(read=5, accepted=3, rejected=1)
