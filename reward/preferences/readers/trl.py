"""TRL's preference and unpaired rows, with text or messages, and hh-rlhf's dialogue strings.

A row without a prompt field is cut at the last assistant turn, never at a common prefix of characters.
"""

from __future__ import annotations

from typing import Any

from reward.preferences.dialogue import (
    cut_sides,
    has_turn_marks,
    note_prompt_order,
    parse_marked,
    read_messages,
    read_prompt,
)
from reward.preferences.notes import RowNotes, RowRejected
from reward.preferences.readers import fields
from reward.preferences.readers.format import Format, Options, Row, has
from reward.preferences.records import Message, PreferenceRecord, Prompt, Rating, Response, strict_vote

CHOSEN, REJECTED = "chosen", "rejected"


def pair_record(
    prompt: Prompt, chosen: str, rejected: str, *, margin: float | None = None, **details: Any
) -> PreferenceRecord:
    """Build the record of a row that names a better and a worse response."""
    sources = details.pop("sources", (None, None))
    return PreferenceRecord(
        prompt,
        (Response(CHOSEN, chosen, sources[0]), Response(REJECTED, rejected, sources[1])),
        (strict_vote(CHOSEN, REJECTED),),
        margin=margin,
        **details,
    )


def read_implicit(row: Row, notes: RowNotes, options: Options) -> list[PreferenceRecord]:
    """Read a row whose two sides hold the whole dialogue."""
    margin = fields.optional_number(row, "margin")
    if options.get("no_prompt"):
        return [pair_record("", fields.text(row, CHOSEN), fields.text(row, REJECTED), margin=margin)]
    sides = {name: _dialogue(row, name) for name in (CHOSEN, REJECTED)}
    cut = cut_sides(sides, notes)
    if cut is None:
        return []
    prompt, responses = cut
    return [pair_record(prompt, responses[CHOSEN], responses[REJECTED], margin=margin)]


def _dialogue(row: Row, name: str) -> list[Message]:
    if isinstance(row.get(name), list):
        return read_messages(row[name], name)
    value = fields.text(row, name)
    if not has_turn_marks(value):
        raise RowRejected(
            "no_dialogue_marks",
            name,
            "there is no prompt field and no turn mark to cut at; add a prompt, or map `no_prompt: true`",
        )
    return parse_marked(value, name)


def read_explicit(row: Row, notes: RowNotes, _: Options) -> list[PreferenceRecord]:
    """Read a row with a prompt field; a side that repeats the prompt as messages is cut."""
    if row.get("prompt") is None:
        raise RowRejected("missing_field", "prompt", "the field 'prompt' is missing")
    prompt = read_prompt(row["prompt"], "prompt")
    margin = fields.optional_number(row, "margin")
    whole = {name: _whole_dialogue(prompt, row.get(name), name) for name in (CHOSEN, REJECTED)}
    if all(messages is not None for messages in whole.values()):
        cut = cut_sides({name: messages or [] for name, messages in whole.items()}, notes)
        if cut is None:
            return []
        return [pair_record(cut[0], cut[1][CHOSEN], cut[1][REJECTED], margin=margin)]
    chosen, rejected = (fields.text_or_messages(row, name) for name in (CHOSEN, REJECTED))
    return [pair_record(note_prompt_order(prompt, "prompt", notes), chosen, rejected, margin=margin)]


def _whole_dialogue(prompt: Prompt, side: Any, name: str) -> list[Message] | None:
    """Return prompt and response as one dialogue when the side is given as messages, else None."""
    if not isinstance(side, list):
        return None
    messages = read_messages(side, name)
    if isinstance(prompt, str):
        starts = [place for place, message in enumerate(messages) if message["content"] == prompt]
        repeats = any(messages[place]["role"] == "user" for place in starts[:1])
        return messages if repeats else [{"role": "user", "content": prompt}, *messages]
    return messages if messages[: len(prompt)] == prompt else [*prompt, *messages]


def read_unpaired(row: Row, notes: RowNotes, _: Options) -> list[PreferenceRecord]:
    """Read a prompt, one completion and whether it is good."""
    prompt = note_prompt_order(read_prompt(row.get("prompt"), "prompt"), "prompt", notes)
    completion = fields.text_or_messages(row, "completion")
    good = fields.truth(row, "label")
    rating = Rating("r0", float(good), (0.0, 1.0))
    return [PreferenceRecord(prompt, (Response("r0", completion),), ratings=(rating,))]


def _is_pair(row: Row) -> bool:
    return has(row, CHOSEN, REJECTED)


FORMATS = (
    Format(
        "trl",
        "prompt, chosen, rejected (TRL preference rows)",
        lambda row: _is_pair(row) and "prompt" in row,
        read_explicit,
        "chosen is better than rejected",
    ),
    Format(
        "trl-implicit",
        "chosen and rejected that hold the whole dialogue (TRL without a prompt field)",
        lambda row: _is_pair(row) and "prompt" not in row and not _marked(row),
        read_implicit,
        "chosen is better than rejected; the prompt is all before the last assistant turn",
    ),
    Format(
        "hh-rlhf",
        "hh-rlhf dialogue strings with Human: and Assistant: marks",
        lambda row: _is_pair(row) and "prompt" not in row and _marked(row),
        read_implicit,
        "chosen is better than rejected; the prompt is all before the last assistant turn",
        specificity=2,
    ),
    Format(
        "trl-unpaired",
        "prompt, completion and a true or false label (TRL unpaired rows, KTO)",
        lambda row: has(row, "prompt", "completion", "label"),
        read_unpaired,
        "label true is a good completion",
        specificity=2,
    ),
)


def _marked(row: Row) -> bool:
    return any(isinstance(row[name], str) and has_turn_marks(row[name]) for name in (CHOSEN, REJECTED))
