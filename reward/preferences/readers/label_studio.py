"""Label Studio exports: JSON, JSON_MIN and CSV, with pairwise, choices and ranker answers.

Cancelled annotations and annotations without an answer are kept as votes that order nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from reward.preferences.notes import RowNotes, RowRejected
from reward.preferences.readers import fields
from reward.preferences.readers.build import comparison, outcome_of_word, unknown_choice, vote_of
from reward.preferences.readers.format import Format, Options, Row, has
from reward.preferences.records import PreferenceRecord, Vote, VoteKind, empty_vote

PROMPTS = ("prompt", "task", "question", "instruction", "query")
ANSWERS: tuple[tuple[str, str], ...] = (
    ("answer1", "answer2"),
    ("text1", "text2"),
    ("pairText1", "pairText2"),
    ("response1", "response2"),
    ("response_1", "response_2"),
    ("response_a", "response_b"),
    ("left", "right"),
)
BUCKETS = ("best", "great", "good", "ok", "okay", "fair", "neutral", "poor", "bad", "worst")
UNPLACED = "_"
_ROW_FIELDS = {"id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time"}


def read_export(row: Row, notes: RowNotes, options: Options) -> list[PreferenceRecord]:
    """Read a task of the JSON export with all its annotations."""
    data = fields.record(row.get("data"), "data")
    annotations = [fields.record(item, "annotations") for item in fields.items(row, "annotations")]
    judged = [_annotation(item, data, options) for item in annotations]
    return _records(data, judged, str(row.get("id", "")), notes)


def read_minimal(row: Row, notes: RowNotes, options: Options) -> list[PreferenceRecord]:
    """Read one annotation of the JSON_MIN, CSV or TSV export."""
    data = {name: _cell(value) for name, value in row.items()}
    name = str(row.get("id", ""))
    if data.get("annotation_id") in (None, ""):
        return _records(data, [], name, notes)
    answers = _minimal_answers(data)
    details = {
        "annotator": _person(data.get("annotator")),
        "seconds": fields.optional_number(data, "lead_time"),
        "submitted_at": fields.optional_text(data, "created_at"),
    }
    return _records(data, [_vote(answers, data, options, details)], name, notes)


def _annotation(item: Row, data: Row, options: Options) -> Vote:
    details = {
        "annotator": _person(item.get("completed_by")),
        "seconds": fields.optional_number(item, "lead_time"),
        "submitted_at": fields.optional_text(item, "created_at"),
        "is_gold_probe": bool(item.get("ground_truth")),
    }
    if item.get("was_cancelled"):
        return empty_vote(VoteKind.CANCELLED, **details)
    answers: list[tuple[str, str, Any]] = []
    for result in item.get("result") or []:
        result = fields.record(result, "annotations.result")
        value = fields.record(result.get("value"), "annotations.result.value")
        answers.append((str(result.get("type", "")), str(result.get("from_name", "")), value))
    return _vote(answers, data, options, details)


def _minimal_answers(data: Row) -> list[tuple[str, str, Any]]:
    """Tell the answers of a flat row from its data by their shape."""
    answers: list[tuple[str, str, Any]] = []
    for name, value in data.items():
        first = value[0] if isinstance(value, list) and value else None
        if isinstance(first, dict):
            for kind, mark in (("pairwise", "selected"), ("ranker", "ranker"), ("rating", "rating")):
                if mark in first:
                    answers.append((kind, name, first))
        elif isinstance(value, str) and name not in _ROW_FIELDS and _is_choice_field(name, value):
            answers.append(("choices", name, {"choices": [value]}))
        elif isinstance(value, dict) and isinstance(value.get("choices"), list):
            answers.append(("choices", name, value))
        elif isinstance(value, str) and name in ("why", "reason", "comment") and value:
            answers.append(("textarea", name, {"text": [value]}))
    return answers


def _is_choice_field(name: str, value: str) -> bool:
    given = {*PROMPTS, *(answer for names in ANSWERS for answer in names)}
    return bool(value) and name not in given and outcome_of_word(value, ("left",), ("right",)) is not None


def _vote(answers: Iterable[tuple[str, str, Any]], data: Row, options: Options, details: Row) -> Vote:
    """Turn the answers of one person into one vote.

    Raises:
        RowRejected: two answers contradict each other, or name no side.
    """
    outcomes: list[Vote] = []
    extra: dict[str, Any] = dict(details)
    for kind, name, value in answers:
        if kind == "rating" and "conf" in name.lower():
            extra["confidence"] = fields.optional_number(value, "rating")
        elif kind == "textarea" and value.get("text"):
            texts = value["text"]
            extra["reason"] = texts if isinstance(texts, str) else "\n".join(map(str, texts))
    for kind, name, value in answers:
        if kind == "pairwise":
            outcomes.append(_side(str(value.get("selected", "")), name, data, extra))
        elif kind == "choices":
            for choice in value.get("choices") or []:
                outcomes.append(_side(str(choice), name, data, extra))
        elif kind == "ranker":
            outcomes.append(_ranking(value.get("ranker"), data, options, extra))
    if not outcomes:
        return empty_vote(VoteKind.SKIP, **extra)
    if len({vote.tiers for vote in outcomes}) > 1 or len({vote.kind for vote in outcomes}) > 1:
        said = " and ".join(vote.kind for vote in outcomes)
        raise RowRejected("label_out_of_range", "annotations", f"one annotation says {said} at once")
    return outcomes[0]


def _side(word: str, field: str, data: Row, details: Row) -> Vote:
    names = _answer_names(data)
    if names is None:
        raise RowRejected("missing_field", "answer1", "the task has no two answers to choose between")
    outcome = outcome_of_word(word, ("left", names[0]), ("right", names[1]))
    if outcome is None:
        raise unknown_choice(word, field)
    return vote_of(outcome, *names, **{**details, "shown_order": names})


def _ranking(ranker: Any, data: Row, options: Options, details: Row) -> Vote:
    ranker = fields.record(ranker, "ranker")
    buckets = {name: value for name, value in ranker.items() if name != UNPLACED}
    known = [str(item.get("id")) for item in data.get("items") or [] if isinstance(item, dict)]
    placed = [name for bucket in buckets.values() for name in bucket]
    for name in placed:
        if name not in known or placed.count(name) > 1:
            raise RowRejected("rank_invalid", "ranker", f"{name!r} is no item of the task, or stands twice")
    if len(buckets) == 1:
        tiers: tuple[tuple[str, ...], ...] = tuple((name,) for name in placed)
    else:
        order = list(options.get("buckets") or BUCKETS)
        unknown = [name for name in buckets if name not in order]
        if unknown:
            raise RowRejected(
                "direction_undeclared",
                "ranker",
                f"nothing says where the bucket {unknown[0]!r} stands; map `buckets: [best, ..., worst]`",
            )
        tiers = tuple(tuple(buckets[name]) for name in order if buckets.get(name))
    if len(placed) < 2:
        return empty_vote(VoteKind.SKIP, **details)
    return Vote(tiers, VoteKind.STRICT if len(tiers) > 1 else VoteKind.TIE, **details)


def _records(data: Row, votes: list[Vote], name: str, notes: RowNotes) -> list[PreferenceRecord]:
    """Build a record of the two answers and, when items were ranked, one of the items."""
    prompt = next((data[field] for field in PROMPTS if isinstance(data.get(field), str)), None)
    if prompt is None:
        raise RowRejected("missing_field", "prompt", "the task has no prompt")
    answers = _answer_names(data)
    by_subject: dict[str, list[Vote]] = {"answers": [], "items": [], "nothing": []}
    for vote in votes:
        by_subject[_subject(vote, answers)].append(vote)
    meta = {key: data[key] for key in ("cmp_id", "task_id") if key in data}
    found: list[PreferenceRecord] = []
    idle = by_subject["nothing"]
    if by_subject["items"]:
        texts = {str(item["id"]): str(item.get("body", item.get("title", ""))) for item in data["items"]}
        here = by_subject["items"] + ([] if by_subject["answers"] else idle)
        found.append(comparison(prompt, texts, here, notes, id=name, meta=meta))
    if answers and (by_subject["answers"] or not by_subject["items"]):
        texts = {field: fields.text(data, field) for field in answers}
        found.append(comparison(prompt, texts, by_subject["answers"] + idle, notes, id=name, meta=meta))
    if not found:
        raise RowRejected("missing_field", "answer1", "the task has no answers")
    return found


def _subject(vote: Vote, answers: tuple[str, str] | None) -> str:
    """Return what a vote is about: the two answers, the ranked items, or nothing."""
    named = {name for tier in vote.tiers for name in tier}
    if not named:
        return "nothing"
    return "answers" if answers and named <= set(answers) else "items"


def _answer_names(data: Row) -> tuple[str, str] | None:
    return next((names for names in ANSWERS if has(data, *names)), None)


def _person(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("id", value.get("email"))
    return None if value in (None, "") else str(value)


def _cell(value: Any) -> Any:
    """Parse a CSV cell that holds a JSON list or object."""
    if isinstance(value, str) and value[:1] in "[{" and value:
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value


FORMATS = (
    Format(
        "label-studio",
        "Label Studio JSON export",
        lambda row: has(row, "data", "annotations") and isinstance(row["data"], dict),
        read_export,
        "left is the first answer, right the second; a ranker's first item is the best",
        specificity=4,
    ),
    Format(
        "label-studio-min",
        "Label Studio JSON_MIN, CSV or TSV export",
        lambda row: "annotation_id" in row and "annotator" in row and "lead_time" in row,
        read_minimal,
        "left is the first answer, right the second; a ranker's first item is the best",
        specificity=4,
    ),
)
