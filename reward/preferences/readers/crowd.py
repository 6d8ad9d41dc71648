"""Batch files of crowd platforms: Mechanical Turk and Appen. The columns of the job itself are free."""

from __future__ import annotations

import re
from typing import Any

from reward.preferences.notes import RowNotes, RowRejected
from reward.preferences.readers import table
from reward.preferences.readers.build import outcome_of_word
from reward.preferences.readers.format import Format, Options, Row, has
from reward.preferences.records import PreferenceRecord

_PROMPT = re.compile(r"(?:Input\.)?(prompt|question|instruction|context|task)", re.IGNORECASE)
_RESPONSE = re.compile(
    r"(?:Input\.)?(?:response|answer|completion|output|text|option)[ _.]?([ab12])", re.IGNORECASE
)
_CHOICE = re.compile(
    r"(?:Answer\.)?(choice|preference|better|winner|preferred|answer|best)(?:\.label)?", re.IGNORECASE
)


def read_mturk(row: Row, notes: RowNotes, options: Options) -> list[PreferenceRecord]:
    """Read one assignment; work that the requester rejected is kept as a cancelled vote."""
    told = {
        **_guess(row),
        "annotator": "WorkerId",
        "status": "AssignmentStatus",
        "batch": "HITId",
        "started_at": "AcceptTime",
        "submitted_at": "SubmitTime",
        "seconds": "WorkTimeInSeconds" if "WorkTimeInSeconds" in row else None,
    }
    return table.read(row, notes, _merged(told, options))


def read_appen(row: Row, notes: RowNotes, options: Options) -> list[PreferenceRecord]:
    """Read one judgement of an Appen (CrowdFlower) report."""
    told = {
        **_guess(row),
        "annotator": "_worker_id",
        "started_at": "_started_at" if "_started_at" in row else None,
        "submitted_at": "_created_at",
    }
    return table.read(row, notes, _merged(told, options))


def _merged(told: dict[str, Any], options: Options) -> dict[str, Any]:
    return {**told, **{name: value for name, value in options.items() if value is not None}}


def _guess(row: Row) -> dict[str, Any]:
    """Find the columns of the job by name, and what its choices mean by the response names.

    Raises:
        RowRejected: a column is missing, or a choice does not name a response by its own name.
    """
    prompt = next((name for name in row if _PROMPT.fullmatch(name)), None)
    responses = {found.group(1).lower(): name for name in row if (found := _RESPONSE.fullmatch(name))}
    choice = next((name for name in row if _CHOICE.fullmatch(name)), None)
    if prompt is None or len(responses) < 2 or choice is None:
        return {}
    ids = sorted(responses)
    said = str(row[choice]).strip()
    outcome = outcome_of_word(
        said,
        (ids[0], f"response_{ids[0]}", f"response {ids[0]}", responses[ids[0]]),
        (ids[1], f"response_{ids[1]}", f"response {ids[1]}", responses[ids[1]]),
    )
    if outcome is None:
        raise RowRejected(
            "direction_undeclared", choice, f"nothing says what the choice {said!r} means; map `choice: ...`"
        )
    means = {"first": ids[0], "second": ids[1]}.get(outcome, outcome)
    return {"prompt": prompt, "responses": responses, "choice": {"column": choice, "values": {said: means}}}


FORMATS = (
    Format(
        "mturk",
        "Mechanical Turk batch results",
        lambda row: has(row, "HITId", "WorkerId", "AssignmentStatus"),
        read_mturk,
        "the choice names the better response",
        specificity=4,
    ),
    Format(
        "appen",
        "Appen (CrowdFlower) full report",
        lambda row: has(row, "_unit_id", "_worker_id"),
        read_appen,
        "the choice names the better response",
        specificity=4,
    ),
)
