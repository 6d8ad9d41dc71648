"""The comparison record: one prompt, its responses and what people said of them.

Everything is read into this form and written from it. Pairs are derived, never stored as the truth.
"""

from __future__ import annotations

import functools
import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

Message = dict[str, str]
Prompt = str | list[Message]


class VoteKind(StrEnum):
    """What one person said of one comparison."""

    STRICT = "strict"
    TIE = "tie"
    BOTH_BAD = "both_bad"
    SKIP = "skip"
    CANCELLED = "cancelled"

    @property
    def counts(self) -> bool:
        """True when the vote says something about the order of the responses."""
        return self in (VoteKind.STRICT, VoteKind.TIE, VoteKind.BOTH_BAD)


@dataclass(frozen=True, slots=True)
class Response:
    """One answer to the prompt."""

    id: str
    text: str
    source: str | None = None
    "Model, policy or person that wrote it."
    finish: str | None = None
    "Why generation ended, such as stop or length."


@dataclass(frozen=True, slots=True)
class Vote:
    """One judgement: groups of equally good responses, the best group first."""

    tiers: tuple[tuple[str, ...], ...]
    kind: VoteKind = VoteKind.STRICT
    annotator: str | None = None
    strength: float | None = None
    "How much better, in the units of the source; never negative."
    confidence: float | None = None
    shown_order: tuple[str, ...] | None = None
    "Response ids from first to last on the screen; None when it was not recorded."
    started_at: str | None = None
    submitted_at: str | None = None
    seconds: float | None = None
    reason: str | None = None
    is_gold_probe: bool = False
    guideline: str | None = None
    batch: str | None = None


@dataclass(frozen=True, slots=True)
class Rating:
    """One number that a person or a model gave to one response."""

    response: str
    value: float
    scale: tuple[float, float]
    "Worst and best value, in that order: the direction is part of the record."
    axis: str = "overall"
    annotator: str | None = None


@dataclass(frozen=True, slots=True)
class PreferenceRecord:
    """One comparison with all its votes, and the line it came from."""

    prompt: Prompt
    responses: tuple[Response, ...]
    votes: tuple[Vote, ...] = ()
    ratings: tuple[Rating, ...] = ()
    id: str = ""
    line: int = 0
    "1-based line (or sheet row) of the source; 0 when it was not read from a file."
    margin: float | None = None
    "Difference in reward that the source asks for between the first and the second response."
    share: float | None = None
    "P(the first of two responses is better) as the source states it; None takes it from the votes."
    weight: float | None = None
    "Weight in training as the source states it; None is 1 / number of the comparison's pairs."
    gold: tuple[str, ...] | None = None
    "Response ids in the order that a probe item must have; None for ordinary items."
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def group(self) -> str:
        """Name that all comparisons of this prompt share."""
        return prompt_group(self.prompt)

    def text_of(self, response_id: str) -> str:
        """Return the text of one response.

        Raises:
            KeyError: no response has that id.
        """
        for response in self.responses:
            if response.id == response_id:
                return response.text
        raise KeyError(response_id)


def strict_vote(better: str, worse: str, **details: Any) -> Vote:
    """Build the vote "better is better than worse"."""
    return Vote(((better,), (worse,)), VoteKind.STRICT, **details)


def tie_vote(ids: Sequence[str], *, kind: VoteKind = VoteKind.TIE, **details: Any) -> Vote:
    """Build a vote that puts all responses into one group."""
    return Vote((tuple(ids),), kind, **details)


def empty_vote(kind: VoteKind, **details: Any) -> Vote:
    """Build a skip or a cancelled vote, which orders nothing."""
    return Vote((), kind, **details)


def vote_from_scores(scores: Mapping[str, float], *, higher_is_better: bool, **details: Any) -> Vote:
    """Order responses by a number whose direction is known; equal numbers tie."""
    values = sorted(set(scores.values()), reverse=higher_is_better)
    tiers = tuple(tuple(rid for rid, value in scores.items() if value == level) for level in values)
    kind = VoteKind.STRICT if len(tiers) > 1 else VoteKind.TIE
    return Vote(tiers, kind, **details)


def prompt_text(prompt: Prompt) -> str:
    """Return a prompt as one string, for hashing, comparing and showing."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def prompt_words(prompt: Prompt) -> str:
    """Return only what was said in a prompt, without roles."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(message["content"] for message in prompt)


@functools.lru_cache(maxsize=32)
def normalised(text: str) -> str:
    """Return text in NFKC with runs of white space as one blank, for equality only.

    The last few texts are remembered: every check of a row asks for the same ones.
    """
    return " ".join((text if text.isascii() else unicodedata.normalize("NFKC", text)).split())


def digest(*parts: str) -> str:
    """Return 32 hex characters that name a sequence of normalised texts."""
    hashed = hashlib.blake2b(digest_size=16)
    for part in parts:
        raw = normalised(part).encode("utf-8", "surrogatepass")
        hashed.update(len(raw).to_bytes(8, "little"))
        hashed.update(raw)
    return hashed.hexdigest()


def prompt_group(prompt: Prompt) -> str:
    """Return the name that all comparisons of one prompt share."""
    return digest(prompt_text(prompt))
