"""Flags on single texts: control characters, role marks, cut answers, personal data, toxic words."""

from __future__ import annotations

import re

from reward.preferences.checks.pii import find_pii
from reward.preferences.checks.settings import CheckSettings
from reward.preferences.language import language_of
from reward.preferences.notes import RowNotes
from reward.preferences.records import PreferenceRecord, prompt_words

CELL_LIMITS = {32_767: "a cell of Excel", 50_000: "a cell of Google Sheets"}
MIN_LANGUAGE_CHARS = 80
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u200b\u200c\u200e\u200f\u2060\ufeff\u202a-\u202e]")
_ROLE_MARK = re.compile(r"\b(?:Human|Assistant|User|System):")
_MOJIBAKE = re.compile(r"\ufffd|[ÃÂ][\x80-\xbf]|â€.|Ã[©¨¼¶¤±]")
_END = re.compile(r"[.!?…:;\"'”’)\]}>*`~。！？」』।۔]\s*\Z|\d\s*\Z")


def flag_texts(record: PreferenceRecord, notes: RowNotes, settings: CheckSettings) -> None:
    """Flag what is odd about the texts of one record."""
    asked = prompt_words(record.prompt)
    texts = {"prompt": asked, **{response.id: response.text for response in record.responses}}
    for field, text in texts.items():
        _flag_characters(text, field, notes)
        _flag_personal(text, field, notes, settings)
    for response in record.responses:
        _flag_response(response.text, response.id, response.finish, notes)
    _flag_near_identical(record, notes, settings.near_identical)
    _flag_language(record, asked, notes)
    _flag_words(texts, notes, settings.toxic_words)


def ends_openly(text: str) -> bool:
    """True when a text does not end like a finished sentence, list or code."""
    return _END.search(text[-8:]) is None


def _flag_characters(text: str, field: str, notes: RowNotes) -> None:
    if not text.isprintable():
        control = _CONTROL.search(text)
        if control:
            code = ord(control.group())
            notes.flag(
                "control_or_zero_width", field, f"invisible character U+{code:04X} at {control.start() + 1}"
            )
    if not text.isascii() and (broken := _MOJIBAKE.search(text)):
        notes.flag("mojibake", field, f"text decoded wrongly: {broken.group()!r} at {broken.start() + 1}")
    if ":" in text and (mark := _ROLE_MARK.search(text)):
        notes.flag(
            "role_token_in_text", field, f"{mark.group()!r} stands inside the text at {mark.start() + 1}"
        )


def _flag_personal(text: str, field: str, notes: RowNotes, settings: CheckSettings) -> None:
    kinds = sorted({found.kind for found in find_pii(text)})
    if not kinds:
        return
    message = f"looks like personal data: {', '.join(kinds)}"
    if settings.pii_rejects:
        notes.reject("pii", field, message)
    else:
        notes.flag("pii", field, message)


def _flag_response(text: str, field: str, finish: str | None, notes: RowNotes) -> None:
    if finish == "length":
        notes.flag("truncated", field, "generation ended at its length limit")
    elif len(text) in CELL_LIMITS:
        notes.flag("truncated", field, f"{len(text):,} characters, the limit of {CELL_LIMITS[len(text)]}")


def _flag_near_identical(record: PreferenceRecord, notes: RowNotes, limit: float) -> None:
    """Compare the words of neighbouring responses as bags; close in length first, for speed."""
    for first, second in zip(record.responses, record.responses[1:], strict=False):
        one, other = first.text.split(), second.text.split()
        if not one or not other or min(len(one), len(other)) < limit * max(len(one), len(other)):
            continue
        alike = _bag_similarity(one, other)
        if limit <= alike and first.text != second.text:
            notes.flag(
                "near_identical_responses", second.id, f"{alike:.0%} of the words are those of {first.id}"
            )


def _bag_similarity(one: list[str], other: list[str]) -> float:
    counts: dict[str, int] = {}
    for word in one:
        counts[word] = counts.get(word, 0) + 1
    common = 0
    for word in other:
        left = counts.get(word, 0)
        if left:
            counts[word] = left - 1
            common += 1
    return 2 * common / (len(one) + len(other))


def _flag_language(record: PreferenceRecord, asked: str, notes: RowNotes) -> None:
    if len(asked) < MIN_LANGUAGE_CHARS:
        return
    of_prompt = language_of(asked)
    if of_prompt is None:
        return
    for response in record.responses:
        if len(response.text) >= MIN_LANGUAGE_CHARS:
            found = language_of(response.text)
            if found is not None and found != of_prompt:
                notes.flag("language_mix", response.id, f"written in {found}, the prompt in {of_prompt}")


def _flag_words(texts: dict[str, str], notes: RowNotes, words: tuple[str, ...]) -> None:
    if not words:
        return
    wanted = set(words)
    for field, text in texts.items():
        found = wanted & set(re.findall(r"\w+", text.lower()))
        if found:
            notes.flag("toxicity", field, f"holds {len(found)} of the listed words")
