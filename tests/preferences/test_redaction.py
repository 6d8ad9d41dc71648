"""With --redact nothing that is handed on names anybody; the rejects stay as they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.main import main
from reward.preferences.report import hashed_name
from reward.preferences.writers import read_records

SECRETS = (
    *("ann@example.org", "ben@example.org", "model-by-cid@example.org"),
    *("+1 (555) 010-0199", "eve@example.org", "sam@example.org"),
)


def row(number: int) -> dict[str, Any]:
    return {
        "id": f"c{number}",
        "prompt": f"question {number}: write to ann@example.org please",
        "responses": [
            {"id": "r0", "text": "x" * 230 + " call +1 (555) 010-0199", "source": "model-by-cid@example.org"},
            {"id": "r1", "text": f"no. {number}", "source": "other"},
        ],
        "votes": [
            {
                "annotator": f"{name}@example.org",
                "tiers": [["r0"], ["r1"]],
                "reason": "ask eve@example.org",
                "shown_order": ["r0", "r1"],
            }
            for name in ("ben", "sam")
        ],
        "meta": {"note": "from eve@example.org"},
    }


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rows = [row(number) for number in range(30)]
    rows[4]["responses"][1]["text"] = ""
    path = tmp_path / "votes.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in rows))
    return path


def test_nothing_but_the_rejects_names_anybody(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    main(["data", "check", str(file), "--redact", "--salt", "s", "--out", str(out)])

    written = {path.name: path.read_text() for path in out.iterdir()}
    assert set(written) == {"accepted.jsonl", "rejects.jsonl", "report.html", "report.json"}
    for name in ("accepted.jsonl", "report.html", "report.json"):
        assert not [secret for secret in SECRETS if secret in written[name]], name
        assert "example.org" not in written[name]
    rejected = json.loads(written["rejects.jsonl"])
    assert rejected["prompt"] == row(4)["prompt"]
    assert rejected["votes"][0]["annotator"] == "ben@example.org"


def test_votes_can_still_be_told_apart_by_person(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    main(["data", "check", str(file), "--redact", "--salt", "s", "--out", str(out)])

    records, _ = read_records(out / "accepted.jsonl")

    assert {vote.annotator for record in records for vote in record.votes} == {
        hashed_name(f"{name}@example.org", "s") for name in ("ben", "sam")
    }
    assert len(records) == 29


def test_an_e_mail_at_the_edge_of_what_is_shown_is_masked_without_redact_too(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    # The texts are cut at 240 and at 160 characters: in the middle of the address.
    rows = [
        {
            "prompt": f"ann@example.org {'q' * 150}",
            "chosen": f"{'y ' * 116}ann@example.org",
            "rejected": f"no {n}",
        }
        for n in range(3)
    ]
    path.write_text("".join(json.dumps(item) + "\n" for item in rows))

    main(["data", "check", str(path), "--out", str(tmp_path / "out")])

    shown = json.loads((tmp_path / "out" / "report.json").read_text())["examples"][0]
    assert "ann@" not in shown["better"]
    assert "example.org" not in shown["prompt"]


def test_hiding_and_showing_names_at_once_is_refused(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(file), "--redact", "--show-annotators"]) == 2

    assert "--redact hides the names that --show-annotators shows" in capsys.readouterr().err
