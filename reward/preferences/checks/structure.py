"""What every record must satisfy before a pair may be made of it."""

from __future__ import annotations

import re

from reward.preferences.notes import RowNotes
from reward.preferences.records import PreferenceRecord, Prompt, VoteKind, normalised

SPECIAL_TOKENS = re.compile(
    r"<\|(?:im_start|im_end|endoftext|eot_id|start_header_id|end_header_id|begin_of_text|end_of_text"
    r"|system|user|assistant|end|eom_id|fim_prefix|fim_middle|fim_suffix|pad)\|>"
    r"|</?s>|<extra_id_\d+>|\[/?INST\]|<<SYS>>|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>"
)
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def check_structure(record: PreferenceRecord, notes: RowNotes) -> None:
    """Reject empty, identical and unsafe texts of one record."""
    if not record.responses:
        notes.reject("missing_field", "responses", "there is no response")
    for response in record.responses:
        if not response.text.strip():
            notes.reject("empty_response", response.id, f"the response {response.id!r} is empty")
        _check_text(response.text, response.id, notes)
    _check_prompt(record.prompt, notes)
    _check_identical(record, notes)


def _check_prompt(prompt: Prompt, notes: RowNotes) -> None:
    if isinstance(prompt, str):
        _check_text(prompt, "prompt", notes)
        return
    if not any(message["role"] == "user" for message in prompt):
        notes.reject("role_order", "prompt", "the prompt has no turn of the user")
    for number, message in enumerate(prompt):
        _check_text(message["content"], f"prompt[{number}]", notes)


def _check_text(text: str, field: str, notes: RowNotes) -> None:
    if not text.isascii() and (stray := _SURROGATE.search(text)):
        notes.reject(
            "lone_surrogate", field, f"half a character (\\u{ord(stray.group()):04x}) at {stray.start() + 1}"
        )
    if ("<" in text or "[" in text) and (special := SPECIAL_TOKENS.search(text)):
        notes.reject("special_token", field, f"the control token {special.group()} stands in the text")


def _check_identical(record: PreferenceRecord, notes: RowNotes) -> None:
    """Two equal responses are useless unless people said that they tie."""
    texts = [response.text for response in record.responses]
    if len(texts) < 2 or len({normalised(text) for text in texts}) == len(texts):
        return
    if record.votes and all(vote.kind is not VoteKind.STRICT for vote in record.votes):
        return
    seen: dict[str, str] = {}
    for response in record.responses:
        earlier = seen.setdefault(normalised(response.text), response.id)
        if earlier != response.id:
            message = f"the responses {earlier!r} and {response.id!r} are equal"
            notes.reject("identical_responses", response.id, message)
            return
