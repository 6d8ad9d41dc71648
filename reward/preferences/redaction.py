"""Takes people out of what is handed on: personal data masked, names of annotators hashed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from reward.preferences.checks.pii import mask_pii
from reward.preferences.records import PreferenceRecord, Rating, Vote
from reward.preferences.report import hashed_name
from reward.preferences.steps import masked

Judgement = TypeVar("Judgement", Vote, Rating)
DIGESTS = ("sha256", "digest")
"Fields of a report that hold digests: their digits are nobody's number."


def redact(record: PreferenceRecord, *, salt: str) -> PreferenceRecord:
    """Return a comparison without personal data, and with hashed names in place of annotators."""
    record = masked(record)
    votes = tuple(_hashed(vote, salt) for vote in record.votes)
    ratings = tuple(_hashed(rating, salt) for rating in record.ratings)
    return replace(record, votes=votes, ratings=ratings, meta=redact_values(dict(record.meta)))


def redact_values(value: Any) -> Any:
    """Return JSON values with personal data masked in every text and every name of a field."""
    if isinstance(value, str):
        return mask_pii(value)
    if isinstance(value, dict):
        return {
            mask_pii(name): item if name in DIGESTS else redact_values(item) for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redact_values(item) for item in value]
    return value


def _hashed(judgement: Judgement, salt: str) -> Judgement:
    if judgement.annotator is None:
        return judgement
    return replace(judgement, annotator=hashed_name(judgement.annotator, salt))
