"""Argilla records, nested and flattened. Only submitted responses count as votes."""

from __future__ import annotations

from typing import Any

from reward.preferences.dialogue import read_prompt
from reward.preferences.notes import RowNotes, RowRejected
from reward.preferences.readers import fields
from reward.preferences.readers.build import comparison, outcome_of_word, vote_of
from reward.preferences.readers.format import Format, Options, Row, has
from reward.preferences.records import PreferenceRecord, Vote, VoteKind, empty_vote

PROMPTS = ("prompt", "instruction", "question", "input")
_NOT_SUBMITTED = {"draft": VoteKind.SKIP, "pending": VoteKind.SKIP, "discarded": VoteKind.CANCELLED}
_FLAT = (".responses", ".responses.users", ".responses.status")


def read_nested(row: Row, notes: RowNotes, _: Options) -> list[PreferenceRecord]:
    """Read a record with fields and responses; its form does not carry whether a response was submitted."""
    given = fields.record(row.get("fields"), "fields")
    answers: dict[str, list[Row]] = {}
    for question, items in fields.record(row.get("responses") or {}, "responses").items():
        answers[question] = [
            {
                "value": item.get("value"),
                "user": fields.optional_text(item, "user_id"),
                "status": item.get("status", "submitted"),
            }
            for item in (fields.record(entry, f"responses.{question}") for entry in items or [])
        ]
        if any("status" not in item for item in items or []):
            message = "nested records do not say which responses are drafts; export flattened records"
            notes.flag("status_unknown", f"responses.{question}", message)
    meta = row.get("metadata") if isinstance(row.get("metadata"), dict) else {}
    return [_record(given, answers, str(row.get("id", "")), meta or {}, notes)]


def read_flat(row: Row, notes: RowNotes, _: Options) -> list[PreferenceRecord]:
    """Read a record whose answers, users and states stand in parallel lists."""
    answers: dict[str, list[Row]] = {}
    for name in row:
        if not name.endswith(".responses"):
            continue
        question = name.removesuffix(".responses")
        lists = [row.get(question + part) or [] for part in _FLAT]
        if len({len(part) for part in lists}) > 1:
            raise RowRejected("missing_field", name, "answers, users and states are not of one length")
        answers[question] = [
            {"value": value, "user": str(user), "status": status}
            for value, user, status in zip(*lists, strict=True)
        ]
    given = {name: value for name, value in row.items() if isinstance(value, str) and "." not in name}
    meta: Row = {name: row[name] for name in ("source", "cmp_id", "task_id") if name in row}
    return [_record(given, answers, str(row.get("id", "")), meta, notes)]


def _record(
    given: Row, answers: dict[str, list[Row]], name: str, meta: Row, notes: RowNotes
) -> PreferenceRecord:
    asked = next((field for field in PROMPTS if field in given), None)
    if asked is None:
        raise RowRejected("missing_field", "prompt", "there is no field prompt, instruction or question")
    responses = sorted(field for field in given if field.startswith(("response", "completion", "answer")))
    if len(responses) < 2:
        raise RowRejected("missing_field", "response_1", "there are no two fields called response...")
    question = _preference_question(answers, responses)
    strengths = _strengths(answers, question)
    votes = [
        _vote(item, responses, strengths.get(item["user"]), f"responses.{question}")
        for item in answers.get(question or "", [])
    ]
    texts = {field: fields.text(given, field) for field in responses}
    prompt = read_prompt(given[asked], asked)
    return comparison(prompt, texts, votes, notes, id=name, meta=meta)


def _preference_question(answers: dict[str, list[Row]], responses: list[str]) -> str | None:
    """Return the question whose answers name responses."""
    for question, items in answers.items():
        for item in items:
            value = item["value"]
            named = _ranked_names(value) if isinstance(value, list) else None
            if named and set(named) <= set(responses):
                return question
            if isinstance(value, str) and outcome_of_word(value, responses[:1], responses[1:2]):
                return question
    return "preference" if "preference" in answers else None


def _strengths(answers: dict[str, list[Row]], question: str | None) -> dict[str, float]:
    """Collect the numbers that people gave beside their preference, called margin or strength."""
    found: dict[str, float] = {}
    for name, items in answers.items():
        if name != question and name in ("margin", "strength"):
            for item in items:
                if item["status"] == "submitted" and isinstance(item["value"], int | float):
                    found[item["user"]] = abs(float(item["value"]))
    return found


def _vote(item: Row, responses: list[str], strength: float | None, field: str) -> Vote:
    details: dict[str, Any] = {"annotator": item["user"], "strength": strength}
    if item["status"] != "submitted":
        return empty_vote(_NOT_SUBMITTED.get(str(item["status"]), VoteKind.SKIP), **details)
    value = item["value"]
    if isinstance(value, str):
        outcome = outcome_of_word(value, responses[:1], responses[1:2])
        if outcome is None:
            raise RowRejected("label_out_of_range", field, f"the answer {value!r} names no response")
        return vote_of(outcome, *responses[:2], **details)
    tiers = _tiers(value, responses, field)
    return Vote(tiers, VoteKind.STRICT if len(tiers) > 1 else VoteKind.TIE, **details)


def _tiers(value: Any, responses: list[str], field: str) -> tuple[tuple[str, ...], ...]:
    """Turn `[name, name]` or `[{rank, value}]` into tiers; equal ranks tie."""
    names = _ranked_names(value) if isinstance(value, list) else None
    if not names:
        raise RowRejected("wrong_type", field, "a ranking is expected")
    if len(set(names)) < len(names) or not set(names) <= set(responses):
        raise RowRejected("rank_invalid", field, f"the ranking {names} does not name each response once")
    if isinstance(value[0], str):
        return tuple((name,) for name in names)
    ranks = {name: fields.number(entry, "rank", low=1) for name, entry in zip(names, value, strict=True)}
    return tuple(tuple(name for name in names if ranks[name] == rank) for rank in sorted(set(ranks.values())))


def _ranked_names(value: list[Any]) -> list[str] | None:
    if all(isinstance(entry, str) for entry in value):
        return list(value)
    if all(isinstance(entry, dict) and "rank" in entry and "value" in entry for entry in value):
        return [str(entry["value"]) for entry in value]
    return None


FORMATS = (
    Format(
        "argilla",
        "Argilla records",
        lambda row: has(row, "fields", "responses") and isinstance(row["fields"], dict),
        read_nested,
        "the first response of a ranking is the best",
        specificity=4,
    ),
    Format(
        "argilla-flat",
        "Argilla records, flattened",
        lambda row: any(name.endswith(".responses.users") for name in row),
        read_flat,
        "the first response of a ranking is the best; drafts and discarded answers do not count",
        specificity=4,
    ),
)
