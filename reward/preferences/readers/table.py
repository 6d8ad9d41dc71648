"""Tables with columns of any name, read as a mapping file says. Crowd platforms' batch files too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reward.preferences.dialogue import read_prompt
from reward.preferences.notes import RowNotes, RowRejected
from reward.preferences.readers import fields
from reward.preferences.readers.build import comparison, unpaired, vote_of
from reward.preferences.readers.format import Format, Options, Row
from reward.preferences.readers.trl import pair_record
from reward.preferences.records import PreferenceRecord, Prompt, Rating, Vote, VoteKind, vote_from_scores

DROPPED_STATES = ("rejected", "returned", "abandoned")


def read(row: Row, notes: RowNotes, options: Options) -> list[PreferenceRecord]:
    """Read one row of a table by the columns that the mapping names."""
    prompt = _prompt(row, options)
    name = fields.optional_text(row, options["id"]) if options.get("id") else None
    if options.get("chosen"):
        texts = [fields.text_or_messages(row, options[side]) for side in ("chosen", "rejected")]
        margin = fields.optional_number(row, options["margin"]) if options.get("margin") else None
        return [pair_record(prompt, texts[0], texts[1], margin=margin, id=name or "")]
    if options.get("completion"):
        good = fields.truth(row, options["label"])
        text = fields.text_or_messages(row, options["completion"])
        return [unpaired(prompt, text, good, notes, id=name or "", annotator=_person(row, options))]
    if not options.get("responses"):
        message = "the columns of this file are free: a mapping file must name those of the responses"
        raise RowRejected("missing_field", "responses", message)
    texts_by_id = {rid: fields.text_or_messages(row, column) for rid, column in options["responses"].items()}
    votes = _votes(row, list(texts_by_id), options)
    gold = _gold(row, list(texts_by_id), options)
    ratings = _ratings(row, options)
    return [comparison(prompt, texts_by_id, votes, notes, id=name or "", gold=gold, ratings=ratings)]


def _prompt(row: Row, options: Options) -> Prompt:
    column = options.get("prompt")
    if column is None:
        return ""
    if row.get(column) is None:
        raise RowRejected("missing_field", column, f"the field {column!r} is missing")
    return read_prompt(row[column], column)


def _person(row: Row, options: Options) -> str | None:
    return fields.optional_text(row, options["annotator"]) if options.get("annotator") else None


def _votes(row: Row, ids: list[str], options: Options) -> list[Vote]:
    details = _details(row, ids, options)
    state = fields.optional_text(row, options["status"]) if options.get("status") else None
    if state is not None and state.strip().lower() in DROPPED_STATES:
        return [vote_of("cancelled", ids[0], ids[1], **details)]
    if options.get("choice"):
        return [_choice_vote(row, ids, options["choice"], details)]
    if options.get("scale"):
        return [_scale_vote(row, ids, options["scale"], details)]
    for kind, lower_first in (("scores", False), ("ranks", True)):
        if options.get(kind):
            return _number_votes(row, options[kind], details, lower_first=lower_first)
    return []


def _details(row: Row, ids: list[str], options: Options) -> dict[str, Any]:
    details: dict[str, Any] = {"annotator": _person(row, options)}
    for name in ("started_at", "submitted_at", "reason", "guideline", "batch"):
        if options.get(name):
            details[name] = fields.optional_text(row, options[name])
    for name in ("seconds", "strength", "confidence"):
        if options.get(name):
            details[name] = fields.optional_number(row, options[name])
    if options.get("shown_first"):
        first = fields.text(row, options["shown_first"])
        if first not in ids:
            raise RowRejected("rank_invalid", options["shown_first"], f"there is no response {first!r}")
        details["shown_order"] = (first, *(rid for rid in ids if rid != first))
    return details


def _choice_vote(row: Row, ids: list[str], choice: Mapping[str, Any], details: dict[str, Any]) -> Vote:
    column = choice["column"]
    said = row.get(column)
    said = "" if said is None else str(said).strip()
    means = choice["values"].get(said)
    if means is None:
        known = ", ".join(repr(value) for value in choice["values"])
        raise RowRejected("label_out_of_range", column, f"the choice {said!r} is none of {known}")
    if means in set(VoteKind) - {VoteKind.STRICT}:
        return vote_of(means, ids[0], ids[1], **details)
    others = tuple(rid for rid in ids if rid != means)
    return Vote(((means,), others), VoteKind.STRICT, **details)


def _scale_vote(row: Row, ids: list[str], scale: Mapping[str, Any], details: dict[str, Any]) -> Vote:
    value = fields.number(row, scale["column"], low=scale["low"], high=scale["high"])
    distance = value - scale["middle"]
    if abs(distance) <= scale["tie_within"]:
        return vote_of("tie", ids[0], ids[1], **details)
    positive = scale["high_prefers"]
    other = next(rid for rid in ids if rid != positive)
    better, worse = (positive, other) if distance > 0 else (other, positive)
    details.setdefault("strength", abs(distance))
    return vote_of("first", better, worse, **details)


def _number_votes(
    row: Row, numbers: Mapping[str, Any], details: dict[str, Any], *, lower_first: bool
) -> list[Vote]:
    found = {
        rid: value
        for rid, column in numbers["columns"].items()
        if (value := fields.optional_number(row, column)) is not None
    }
    if len(found) < 2:
        return []
    higher = numbers["best"] == "highest" if lower_first else numbers["higher_is_better"]
    return [vote_from_scores(found, higher_is_better=higher, **details)]


def _ratings(row: Row, options: Options) -> tuple[Rating, ...]:
    scores = options.get("scores")
    if not scores or scores.get("low") is None or scores.get("high") is None:
        return ()
    ends = (scores["low"], scores["high"])
    worst_best = ends if scores["higher_is_better"] else (ends[1], ends[0])
    person = _person(row, options)
    return tuple(
        Rating(rid, fields.number(row, column, low=ends[0], high=ends[1]), worst_best, annotator=person)
        for rid, column in scores["columns"].items()
        if row.get(column) not in (None, "")
    )


def _gold(row: Row, ids: list[str], options: Options) -> tuple[str, ...] | None:
    best = fields.optional_text(row, options["gold"]) if options.get("gold") else None
    if best is None:
        return None
    if best not in ids:
        raise RowRejected("rank_invalid", options["gold"], f"there is no response {best!r}")
    return (best, *(rid for rid in ids if rid != best))


FORMATS = (
    Format(
        "table",
        "a table whose columns the mapping file names",
        lambda row: False,
        read,
        "as the mapping file says",
        specificity=0,
    ),
)
