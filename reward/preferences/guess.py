"""Proposes a mapping for a table with free column names. It proposes; it never reads by its own guess."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from reward.preferences.readers.build import outcome_of_word

_WORDS = {
    "prompt": ("prompt", "question", "instruction", "context", "query", "task", "post", "input"),
    "annotator": ("annotator", "worker", "rater", "labeler", "labeller", "judge", "user", "evaluator"),
    "seconds": ("seconds", "duration", "time_spent", "lead_time"),
    "id": ("id", "uuid", "task_id", "item_id"),
}
_RESPONSE = re.compile(
    r"(?i)(?:response|answer|completion|output|text|option|reply|model|candidate|summary)[ _.-]?([a-d]|\d)"
)
_CHOICE = (
    "choice",
    "winner",
    "preference",
    "preferred",
    "better",
    "label",
    "labels",
    "vote",
    "best",
    "verdict",
)
_NUMBERED = ("preference_strength", "rank", "labels", "label", "score", "preference", "strength")
MAX_CHOICES = 12


def propose_mapping(rows: Sequence[dict[str, Any]]) -> str | None:
    """Return the text of a mapping file to complete, or None when no two responses can be made out.

    What a person must decide, above all the direction of a number, stands there as `???`.
    """
    names = [str(name) for name in rows[0]] if rows else []
    responses = {match.group(1).lower(): name for name in names if (match := _RESPONSE.fullmatch(name))}
    if len(responses) < 2:
        return None
    lines = [f"prompt: {_find(names, 'prompt') or '???'}", "responses:"]
    lines += [f"  {rid!r}: {name}" for rid, name in sorted(responses.items())]
    lines += _choice_lines(rows, names, sorted(responses.items()))
    for key in ("annotator", "seconds"):
        found = _find([name for name in names if name not in responses.values()], key)
        lines += [f"{key}: {found}"] if found else []
    return "\n".join(lines) + "\n"


def undeclared_scale(rows: Sequence[dict[str, Any]]) -> str | None:
    """Return the column whose numbers have no direction, such as rank or preference_strength."""
    for name in rows[0] if rows else ():
        plain = str(name).lower()
        if plain in _NUMBERED and all(_is_number(row.get(name)) for row in rows[:20]):
            return str(name)
    return None


def _choice_lines(
    rows: Sequence[dict[str, Any]], names: list[str], responses: list[tuple[str, str]]
) -> list[str]:
    column = next((name for name in names if name.lower() in _CHOICE), None)
    if column is None:
        return ["choice:", "  column: ???", "  values: {???: ???}"]
    said = sorted({str(row.get(column)) for row in rows})
    if len(said) > MAX_CHOICES or all(_is_number(row.get(column)) for row in rows):
        numbers = [float(row[column]) for row in rows if _is_number(row.get(column))]
        low, high = (f"{min(numbers):g}", f"{max(numbers):g}") if numbers else ("???", "???")
        return ["scale:", f"  column: {column}", f"  low: {low}", f"  high: {high}", "  high_prefers: ???"]
    (first, first_name), (second, second_name) = responses[:2]
    means = {"first": first, "second": second}
    lines = ["choice:", f"  column: {column}", "  values:"]
    for word in said:
        outcome = outcome_of_word(word, (first, first_name), (second, second_name))
        lines.append(f"    {word!r}: {means.get(outcome or '', outcome) or '???'}")
    return lines


def _find(names: list[str], key: str) -> str | None:
    for word in _WORDS[key]:
        for name in names:
            if name.lower() == word or word in re.split(r"[ _.-]", name.lower()):
                return name
    return None


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or value is None:
        return False
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True
