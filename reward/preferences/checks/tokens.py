"""Checks that need the tokenizer: too long, and equal once cut to the longest length."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from reward.preferences.notes import RowNotes
from reward.preferences.records import PreferenceRecord, Prompt

TokenIds = Callable[[Prompt, str], tuple[Sequence[int], Sequence[int]]]
"Returns the ids of a prompt and of a response to it."


def check_tokens(record: PreferenceRecord, notes: RowNotes, token_ids: TokenIds, max_length: int) -> None:
    """Reject comparisons that do not fit, or whose responses are equal within max_length tokens."""
    cut: dict[tuple[int, ...], str] = {}
    for response in record.responses:
        asked, answered = token_ids(record.prompt, response.text)
        total = len(asked) + len(answered)
        if total > max_length:
            notes.reject("too_long", response.id, f"{total} tokens, more than {max_length}")
        kept = tuple(answered[: max(0, max_length - len(asked))])
        earlier = cut.setdefault(kept, response.id)
        if earlier != response.id:
            message = f"equal to {earlier!r} within {max_length} tokens"
            notes.reject("identical_after_truncation", response.id, message)
