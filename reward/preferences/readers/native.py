"""The project's own comparison record, one JSON object a line."""

from __future__ import annotations

from typing import Any

from reward.preferences.dialogue import note_prompt_order, read_prompt
from reward.preferences.notes import RowNotes, RowRejected
from reward.preferences.readers import fields
from reward.preferences.readers.format import Format, Options, Row, has
from reward.preferences.records import (
    PreferenceRecord,
    Rating,
    Response,
    Vote,
    VoteKind,
    strict_vote,
    tie_vote,
)


def read(row: Row, notes: RowNotes, _: Options) -> list[PreferenceRecord]:
    """Read one comparison with its votes and ratings."""
    if "prompt" not in row:
        raise RowRejected("missing_field", "prompt", "the field 'prompt' is missing")
    prompt = note_prompt_order(read_prompt(row["prompt"], "prompt"), "prompt", notes)
    responses = tuple(
        _response(item, number, f"responses[{number}]")
        for number, item in enumerate(fields.items(row, "responses"))
    )
    ids = [response.id for response in responses]
    if len(set(ids)) < len(ids):
        raise RowRejected("rank_invalid", "responses", "two responses have one id")
    votes = tuple(
        _vote(fields.record(item, f"votes[{number}]"), ids, f"votes[{number}]")
        for number, item in enumerate(row.get("votes") or [])
    )
    ratings = tuple(
        _rating(fields.record(item, f"ratings[{number}]"), ids, f"ratings[{number}]")
        for number, item in enumerate(row.get("ratings") or [])
    )
    meta = row.get("meta") or {}
    gold = row.get("gold")
    if gold is not None:
        gold = tuple(fields.items(row, "gold"))
        _known(gold, ids, "gold")
    return [
        PreferenceRecord(
            prompt,
            responses,
            votes,
            ratings,
            id=str(row.get("id", "")),
            margin=fields.optional_number(row, "margin"),
            share=_share(row, "share"),
            weight=fields.optional_number(row, "weight"),
            gold=gold,
            meta=fields.record(meta, "meta"),
        )
    ]


def read_pair(row: Row, notes: RowNotes, _: Options) -> list[PreferenceRecord]:
    """Read a pair that was derived from votes: its soft label and weight count, not one vote."""
    prompt = note_prompt_order(read_prompt(row["prompt"], "prompt"), "prompt", notes)
    responses = tuple(Response(name, fields.text(row, name)) for name in ("chosen", "rejected"))
    share = _share(row, "label")
    even = share == 0.5 or fields.truth(row, "tie")
    vote = tie_vote(("chosen", "rejected")) if even else strict_vote("chosen", "rejected")
    margin, weight = (fields.optional_number(row, name) for name in ("margin", "weight"))
    return [PreferenceRecord(prompt, responses, (vote,), margin=margin, share=share, weight=weight)]


def _share(row: Row, name: str) -> float | None:
    share = fields.optional_number(row, name)
    return None if share is None else fields.number(row, name, low=0.0, high=1.0)


def read_samples(row: Row, notes: RowNotes, _: Options) -> list[PreferenceRecord]:
    """Read a prompt with completions that nobody has judged yet."""
    prompt = note_prompt_order(read_prompt(row.get("prompt"), "prompt"), "prompt", notes)
    if isinstance(row.get("by"), dict):
        named = {str(name): fields.record(item, f"by.{name}") for name, item in row["by"].items()}
        responses = [Response(name, fields.text(item, "text"), name) for name, item in named.items()]
    else:
        given = fields.items(row, "completions")
        responses = [_response(item, number, f"completions[{number}]") for number, item in enumerate(given)]
    return [PreferenceRecord(prompt, tuple(responses), id=str(row.get("id", "")))]


def _response(item: Any, number: int, field: str) -> Response:
    if isinstance(item, str):
        return Response(f"r{number}", item)
    item = fields.record(item, field)
    return Response(
        str(item.get("id", f"r{number}")),
        fields.text(item, "text"),
        fields.optional_text(item, "source"),
        fields.optional_text(item, "finish"),
    )


def _vote(item: Row, ids: list[str], field: str) -> Vote:
    tiers = tuple(tuple(_names(tier, f"{field}.tiers")) for tier in item.get("tiers") or [])
    placed = [name for tier in tiers for name in tier]
    _known(placed, ids, f"{field}.tiers")
    if len(set(placed)) < len(placed):
        raise RowRejected("rank_invalid", f"{field}.tiers", "a response stands in two places")
    named = item.get("kind") or ("strict" if len(tiers) > 1 else "tie")
    try:
        kind = VoteKind(named)
    except ValueError:
        known = ", ".join(VoteKind)
        raise RowRejected(
            "label_out_of_range", f"{field}.kind", f"there is no vote {named!r}; one of {known}"
        ) from None
    if kind is VoteKind.STRICT and len(tiers) < 2:
        raise RowRejected("rank_invalid", f"{field}.tiers", "a strict vote needs two tiers")
    if kind in (VoteKind.TIE, VoteKind.BOTH_BAD) and not tiers:
        tiers = (tuple(ids),)
    if kind in (VoteKind.TIE, VoteKind.BOTH_BAD) and len(tiers) > 1:
        raise RowRejected("rank_invalid", f"{field}.tiers", f"a {kind} vote has one tier, not {len(tiers)}")
    order = item.get("shown_order")
    if order is not None:
        _known(_names(order, f"{field}.shown_order"), ids, f"{field}.shown_order")
    return Vote(
        tiers,
        kind,
        annotator=fields.optional_text(item, "annotator"),
        strength=fields.optional_number(item, "strength"),
        confidence=fields.optional_number(item, "confidence"),
        shown_order=None if order is None else tuple(order),
        started_at=fields.optional_text(item, "started_at"),
        submitted_at=fields.optional_text(item, "submitted_at"),
        seconds=fields.optional_number(item, "seconds"),
        reason=fields.optional_text(item, "reason"),
        is_gold_probe=bool(item.get("is_gold_probe", False)),
        guideline=fields.optional_text(item, "guideline"),
        batch=fields.optional_text(item, "batch"),
    )


def _rating(item: Row, ids: list[str], field: str) -> Rating:
    response = fields.text(item, "response")
    _known([response], ids, f"{field}.response")
    scale = fields.items(item, "scale")
    if len(scale) != 2 or not all(isinstance(end, int | float) for end in scale) or scale[0] == scale[1]:
        raise RowRejected("direction_undeclared", f"{field}.scale", "a scale is [worst, best]")
    low, high = sorted(float(end) for end in scale)
    value = fields.number(item, "value", low=low, high=high)
    axis = fields.optional_text(item, "axis") or "overall"
    return Rating(
        response, value, (float(scale[0]), float(scale[1])), axis, fields.optional_text(item, "annotator")
    )


def _names(value: Any, field: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise RowRejected("wrong_type", field, "a list of response ids is expected")
    return value


def _known(names: list[str] | tuple[str, ...], ids: list[str], field: str) -> None:
    for name in names:
        if name not in ids:
            raise RowRejected("rank_invalid", field, f"there is no response {name!r}")


def _are_completions(row: Row) -> bool:
    return isinstance(row.get("completions"), list) and "labels" not in row


FORMATS = (
    Format(
        "comparison",
        "comparison records of this project",
        lambda row: (
            has(row, "prompt", "responses") and isinstance(row["responses"], list) and "fields" not in row
        ),
        read,
        "each vote's first tier is better than its later tiers",
        specificity=3,
    ),
    Format(
        "pairs",
        "pairs with soft labels, as triptych data pairs writes them",
        lambda row: has(row, "prompt", "chosen", "rejected", "label", "weight", "group", "tie"),
        read_pair,
        "label is the chance that chosen is better than rejected",
        specificity=3,
    ),
    Format(
        "samples",
        "prompts with completions to be judged",
        lambda row: "prompt" in row and (isinstance(row.get("by"), dict) or _are_completions(row)),
        read_samples,
        "nothing is judged yet",
        specificity=2,
    ),
)
