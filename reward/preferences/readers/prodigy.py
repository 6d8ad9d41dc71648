"""Prodigy choice tasks."""

from __future__ import annotations

from reward.preferences.notes import RowNotes, RowRejected
from reward.preferences.readers import fields
from reward.preferences.readers.build import comparison
from reward.preferences.readers.format import Format, Options, Row, has
from reward.preferences.records import PreferenceRecord, Vote, VoteKind, empty_vote, tie_vote


def read(row: Row, notes: RowNotes, _: Options) -> list[PreferenceRecord]:
    """Read the accepted options as better than the others; ignore is a skip, reject is cancelled."""
    texts: dict[str, str] = {}
    for number, option in enumerate(fields.items(row, "options")):
        option = fields.record(option, f"options[{number}]")
        texts[str(option.get("id", number))] = fields.text(option, "text")
    if len(texts) < len(row["options"]):
        raise RowRejected("rank_invalid", "options", "two options have one id")
    person = fields.optional_text(row, "_annotator_id") or fields.optional_text(row, "_session_id")
    answer = fields.text(row, "answer")
    accepted = [str(name) for name in row.get("accept") or []]
    for name in accepted:
        if name not in texts:
            raise RowRejected("rank_invalid", "accept", f"there is no option {name!r}")
    if answer not in ("accept", "reject", "ignore"):
        raise RowRejected("label_out_of_range", "answer", f"there is no answer {answer!r}")
    vote = _vote(answer, accepted, list(texts), person)
    return [comparison(fields.text(row, "text"), texts, [vote], notes, id=str(row.get("_task_hash", "")))]


def _vote(answer: str, accepted: list[str], names: list[str], person: str | None) -> Vote:
    if answer == "reject":
        return empty_vote(VoteKind.CANCELLED, annotator=person)
    if answer == "ignore" or not accepted:
        return empty_vote(VoteKind.SKIP, annotator=person)
    others = tuple(name for name in names if name not in accepted)
    if not others:
        return tie_vote(names, annotator=person)
    return Vote((tuple(accepted), others), VoteKind.STRICT, annotator=person)


FORMATS = (
    Format(
        "prodigy",
        "Prodigy choice tasks",
        lambda row: has(row, "text", "options", "answer") and ("_task_hash" in row or "accept" in row),
        read,
        "an accepted option is better than the others",
        specificity=4,
    ),
)
