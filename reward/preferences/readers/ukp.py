"""UKPConvArg argument pairs with their crowd assignments."""

from __future__ import annotations

from typing import Any

from reward.preferences.notes import RowNotes, RowRejected
from reward.preferences.readers import fields
from reward.preferences.readers.build import comparison, unknown_choice, vote_of
from reward.preferences.readers.format import Format, Options, Row, has
from reward.preferences.records import PreferenceRecord, Vote

ELEMENT = "annotatedArgumentPair"
_OUTCOMES = {"a1": "first", "a2": "second", "equal": "tie"}


def read(row: Row, notes: RowNotes, _: Options) -> list[PreferenceRecord]:
    """Read two arguments on one side of a debate, and who found which more convincing."""
    texts = {name: fields.text(fields.record(row.get(name), name), "text") for name in ("arg1", "arg2")}
    stance = fields.optional_text(fields.record(row["arg1"], "arg1"), "stance") or ""
    debate = fields.record(row.get("debateMetaData"), "debateMetaData")
    prompt = "\n\n".join(part for part in (fields.text(debate, "title"), stance) if part)
    assignments = row.get("mTurkAssignments") or {}
    given: Any = assignments.get("mTurkAssignment", []) if isinstance(assignments, dict) else []
    listed = given if isinstance(given, list) else [given]
    votes = [_vote(fields.record(item, "mTurkAssignment")) for item in listed]
    return [comparison(prompt, texts, votes, notes, id=str(row.get("id", "")))]


def _vote(item: Row) -> Vote:
    value = fields.text(item, "value")
    if value not in _OUTCOMES:
        raise unknown_choice(value, "mTurkAssignment.value")
    if item.get("turkID") is None:
        raise RowRejected("missing_field", "turkID", "an assignment has no turkID")
    return vote_of(
        _OUTCOMES[value],
        "arg1",
        "arg2",
        annotator=str(item["turkID"]),
        batch=fields.optional_text(item, "hitID"),
        started_at=fields.optional_text(item, "assignmentAcceptTime"),
        submitted_at=fields.optional_text(item, "assignmentSubmitTime"),
        reason=fields.optional_text(item, "reason"),
    )


FORMATS = (
    Format(
        "ukp-xml",
        "UKPConvArg argument pairs",
        lambda row: has(row, "arg1", "arg2", "debateMetaData"),
        read,
        "a1 means that the first argument is more convincing, a2 the second, equal is a tie",
        specificity=4,
    ),
)
