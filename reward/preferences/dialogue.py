"""Turns and roles: cuts a dialogue at its last assistant turn, the same way on both sides."""

from __future__ import annotations

import re
from typing import Any

from reward.preferences.notes import RowNotes, RowRejected
from reward.preferences.records import Message, Prompt

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
}
_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_MARKED_START = re.compile(r"\s*(Human|Assistant):")


def has_turn_marks(text: str) -> bool:
    """True for a dialogue written in one string with `Human:` and `Assistant:` marks."""
    return bool(_MARKED_START.match(text)) and "Assistant:" in text


def parse_marked(text: str, field: str) -> list[Message]:
    """Cut a marked string into turns; the white space around a turn belongs to the marks.

    Raises:
        RowRejected: text stands before the first mark, or there is no mark.
    """
    body = text.lstrip()
    pieces = _TURN.split(body)
    if len(pieces) < 3:
        raise RowRejected("no_dialogue_marks", field, "no `Human:` or `Assistant:` turn mark is found")
    if pieces[0].strip():
        raise RowRejected(
            "role_order", field, f"text stands before the first turn: {pieces[0].strip()[:60]!r}"
        )
    roles, texts = pieces[1::2], pieces[2::2]
    return [
        {"role": ROLES[role.lower()], "content": content.strip()}
        for role, content in zip(roles, texts, strict=True)
    ]


def read_messages(value: Any, field: str) -> list[Message]:
    """Check a list of messages and bring the common spellings to role and content.

    Raises:
        RowRejected: not a list of messages with a known role and text.
    """
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise RowRejected("wrong_type", field, f"a list of messages is expected, not {kind_of(value)}")
    return [_message(item, f"{field}[{number}]") for number, item in enumerate(value)]


def _message(item: Any, field: str) -> Message:
    if not isinstance(item, dict):
        raise RowRejected("wrong_type", field, f"a message is expected, not {kind_of(item)}")
    role = item.get("role", item.get("from"))
    content = item.get("content", item.get("value"))
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise RowRejected("role_order", f"{field}.role", f"there is no role {role!r}")
    return {"role": ROLES[role.lower()], "content": read_content(content, f"{field}.content")}


def read_content(content: Any, field: str) -> str:
    """Return the text of a message; a list of text parts is joined.

    Raises:
        RowRejected: something else than text.
    """
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(_is_text_part(part) for part in content):
        return "".join(str(part.get("text", part.get("value", ""))) for part in content)
    raise RowRejected("wrong_type", field, f"text is expected, not {kind_of(content)}")


def _is_text_part(part: Any) -> bool:
    return (
        isinstance(part, dict)
        and part.get("type") == "text"
        and isinstance(part.get("text", part.get("value")), str)
    )


def read_prompt(value: Any, field: str) -> Prompt:
    """Return a prompt given as text, as a marked dialogue or as messages.

    Raises:
        RowRejected: neither text nor messages.
    """
    if isinstance(value, str):
        if has_turn_marks(value) and value.rstrip().endswith("Assistant:"):
            return parse_marked(value.rstrip().removesuffix("Assistant:").rstrip(), field)
        return value
    return read_messages(value, field)


def kind_of(value: Any) -> str:
    """Name a JSON value for a person."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "nothing"}
    return names.get(type(value), f"the number {value!r}")


def cut_sides(
    sides: dict[str, list[Message]], notes: RowNotes
) -> tuple[list[Message], dict[str, str]] | None:
    """Cut each dialogue at its last assistant turn; the rest must be one prompt.

    Two turns of one role in a row are merged and flagged when that is the only fault.

    Args:
        sides: field name -> whole dialogue.
        notes: receives every finding.

    Returns:
        The shared prompt and the response of each side, or None when the row is rejected.
    """
    cut: dict[str, tuple[list[Message], str]] = {}
    for field, messages in sides.items():
        _note_order(messages, field, notes)
        if not messages or messages[-1]["role"] != "assistant":
            last = messages[-1]["role"] if messages else "nothing"
            notes.reject("no_final_assistant", field, f"the last turn is of {last}, not of the assistant")
        else:
            cut[field] = (messages[:-1], messages[-1]["content"])
    if len(cut) < len(sides):
        return None
    fields = list(cut)
    prompt = cut[fields[0]][0]
    for field in fields[1:]:
        if cut[field][0] != prompt:
            notes.reject("prompt_mismatch", field, _first_difference(prompt, cut[field][0], fields[0]))
            return None
    responses = {field: text for field, (_, text) in cut.items()}
    if prompt and prompt[-1]["role"] == "assistant":
        begin = prompt[-1]["content"]
        responses = {field: _joined(begin, text) for field, text in responses.items()}
        prompt = prompt[:-1]
    return merge_repeats(prompt), responses


def merge_repeats(messages: list[Message]) -> list[Message]:
    """Join neighbouring turns of one role."""
    merged: list[Message] = []
    for message in messages:
        if merged and merged[-1]["role"] == message["role"]:
            merged[-1] = {
                "role": message["role"],
                "content": _joined(merged[-1]["content"], message["content"]),
            }
        else:
            merged.append(dict(message))
    return merged


def note_prompt_order(prompt: Prompt, field: str, notes: RowNotes) -> Prompt:
    """Check the roles of a prompt that a response follows; return it with repeated roles merged."""
    if isinstance(prompt, str):
        return prompt
    _note_order([*prompt, {"role": "assistant", "content": ""}], field, notes)
    return merge_repeats(prompt)


def _note_order(messages: list[Message], field: str, notes: RowNotes) -> None:
    """Flag repeated roles; reject every other departure from (system)? (user assistant)*."""
    roles = [message["role"] for message in messages]
    body = roles[1:] if roles[:1] == ["system"] else roles
    if "system" in body:
        notes.reject("role_order", field, f"a system turn stands at place {body.index('system') + 2}")
    elif body[:1] == ["assistant"] and len(body) > 1:
        notes.reject("role_order", field, "the dialogue begins with the assistant")
    else:
        repeats = [place for place in range(1, len(roles)) if roles[place] == roles[place - 1]]
        if repeats:
            text = f"turns {repeats[0]} and {repeats[0] + 1} are both of {roles[repeats[0]]}"
            notes.flag("role_order", field, text)


def _joined(first: str, second: str) -> str:
    return f"{first}\n\n{second}" if first and second else first or second


def _first_difference(one: list[Message], other: list[Message], name: str) -> str:
    for place, (left, right) in enumerate(zip(one, other, strict=False), start=1):
        if left != right:
            return f"the dialogue differs from {name} at turn {place}, before the last assistant turn"
    return f"the dialogue before the last assistant turn has {len(other)} turns, in {name} {len(one)}"
