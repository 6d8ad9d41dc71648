"""Builds comparison records out of what a reader found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from reward.preferences.dialogue import note_prompt_order
from reward.preferences.notes import RowNotes, RowRejected
from reward.preferences.records import (
    PreferenceRecord,
    Prompt,
    Rating,
    Response,
    Vote,
    VoteKind,
    empty_vote,
    strict_vote,
    tie_vote,
    vote_from_scores,
)

TIE_WORDS = {"tie", "equal", "same", "draw", "both", "both_good", "both good", "no_preference", "even"}
BOTH_BAD_WORDS = {"both_bad", "both bad", "tie (bothbad)", "bothbad", "neither", "none"}
SKIP_WORDS = {"skip", "skipped", "unsure", "unclear", ""}


def comparison(
    prompt: Prompt,
    texts: Mapping[str, str],
    votes: Iterable[Vote],
    notes: RowNotes,
    *,
    sources: Mapping[str, str | None] | None = None,
    **details: Any,
) -> PreferenceRecord:
    """Build a record whose responses are named as the source names them."""
    named = sources or {}
    responses = tuple(Response(name, text, named.get(name)) for name, text in texts.items())
    checked = note_prompt_order(prompt, "prompt", notes)
    return PreferenceRecord(checked, responses, tuple(votes), **details)


def vote_of(outcome: str, first: str, second: str, **details: Any) -> Vote:
    """Turn first, second, tie, both_bad or skip into a vote.

    Raises:
        ValueError: another word.
    """
    if outcome == "first":
        return strict_vote(first, second, **details)
    if outcome == "second":
        return strict_vote(second, first, **details)
    if outcome in ("tie", "both_bad"):
        return tie_vote((first, second), kind=VoteKind(outcome), **details)
    if outcome in ("skip", "cancelled"):
        return empty_vote(VoteKind(outcome), **details)
    raise ValueError(f"no outcome {outcome!r}")


def outcome_of_sign(value: float, *, positive: str) -> str:
    """Return the outcome of a signed preference; zero is a tie.

    Args:
        value: signed preference.
        positive: `first` or `second`, the side that a positive value prefers.
    """
    if value == 0:
        return "tie"
    other = {"first": "second", "second": "first"}[positive]
    return positive if value > 0 else other


def outcome_of_word(word: str, first: Iterable[str], second: Iterable[str]) -> str | None:
    """Return the outcome that a word names, or None when it names none."""
    lowered = word.strip().lower()
    if lowered in {name.lower() for name in first}:
        return "first"
    if lowered in {name.lower() for name in second}:
        return "second"
    if lowered in BOTH_BAD_WORDS:
        return "both_bad"
    if lowered in TIE_WORDS:
        return "tie"
    return "skip" if lowered in SKIP_WORDS else None


def unknown_choice(value: Any, field: str) -> RowRejected:
    """Return the rejection of an answer that names no side."""
    return RowRejected("label_out_of_range", field, f"the choice {value!r} in {field!r} names no side")


def ranked_vote(ranks: Mapping[str, float], **details: Any) -> Vote | None:
    """Order responses by rank, the lowest best; None when fewer than two have one."""
    return None if len(ranks) < 2 else vote_from_scores(ranks, higher_is_better=False, **details)


def unpaired(prompt: Prompt, text: str, good: bool, notes: RowNotes, **details: Any) -> PreferenceRecord:
    """Build the record of one response that is good or not."""
    checked = note_prompt_order(prompt, "prompt", notes)
    rating = Rating("r0", float(good), (0.0, 1.0), annotator=details.pop("annotator", None))
    return PreferenceRecord(checked, (Response("r0", text),), ratings=(rating,), **details)
