"""Takes typed values out of a row; what is missing or of another type becomes a finding."""

from __future__ import annotations

from typing import Any

from reward.preferences.dialogue import kind_of, read_content, read_messages
from reward.preferences.notes import RowRejected
from reward.preferences.readers.format import Row


def text(row: Row, name: str) -> str:
    """Return a text field.

    Raises:
        RowRejected: missing, or not text.
    """
    if name not in row or row[name] is None:
        raise RowRejected("missing_field", name, f"the field {name!r} is missing")
    value = row[name]
    if not isinstance(value, str):
        raise RowRejected("wrong_type", name, f"text is expected in {name!r}, not {kind_of(value)}")
    return value


def text_or_messages(row: Row, name: str) -> str:
    """Return the text of a response given as text, as one message or as a list with one message.

    Raises:
        RowRejected: missing, or several messages.
    """
    value = row.get(name)
    if isinstance(value, dict) and ("role" in value or "from" in value):
        return read_messages(value, name)[0]["content"]
    if isinstance(value, list):
        messages = read_messages(value, name)
        if len(messages) != 1:
            raise RowRejected("wrong_type", name, f"one message is expected in {name!r}, not {len(messages)}")
        return messages[0]["content"]
    return text(row, name)


def number(row: Row, name: str, *, low: float = float("-inf"), high: float = float("inf")) -> float:
    """Return a number, also when it is written as text; it must lie between low and high.

    Raises:
        RowRejected: missing, not a number, or out of range.
    """
    value = optional_number(row, name)
    if value is None:
        raise RowRejected("missing_field", name, f"the field {name!r} is missing")
    if not low <= value <= high:
        raise RowRejected(
            "label_out_of_range", name, f"{value:g} in {name!r} is not between {low:g} and {high:g}"
        )
    return value


def optional_number(row: Row, name: str) -> float | None:
    """Return a finite number or None when the field is absent or empty.

    Raises:
        RowRejected: something else than a number.
    """
    value = row.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise RowRejected(
                "wrong_type", name, f"a number is expected in {name!r}, not {value!r}"
            ) from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RowRejected("wrong_type", name, f"a number is expected in {name!r}, not {kind_of(value)}")
    try:
        result = float(value)
    except OverflowError:
        result = float("inf")
    if result - result != 0.0:
        raise RowRejected("label_out_of_range", name, f"{value!r} in {name!r} is not a finite number")
    return result


def whole(row: Row, name: str, allowed: tuple[int, ...]) -> int:
    """Return a whole number out of the allowed ones.

    Raises:
        RowRejected: another value.
    """
    value = number(row, name)
    if value not in allowed:
        raise RowRejected("label_out_of_range", name, f"{value:g} in {name!r} is none of {list(allowed)}")
    return int(value)


def truth(row: Row, name: str) -> bool:
    """Return true or false, also when written as 0/1 or as text.

    Raises:
        RowRejected: anything else.
    """
    value = row.get(name)
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    spelled = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}
    if isinstance(value, str) and value.strip().lower() in spelled:
        return spelled[value.strip().lower()]
    if value is None:
        raise RowRejected("missing_field", name, f"the field {name!r} is missing")
    raise RowRejected("wrong_type", name, f"true or false is expected in {name!r}, not {value!r}")


def items(row: Row, name: str) -> list[Any]:
    """Return a list.

    Raises:
        RowRejected: missing, or not a list.
    """
    value = row.get(name)
    if value is None:
        raise RowRejected("missing_field", name, f"the field {name!r} is missing")
    if not isinstance(value, list):
        raise RowRejected("wrong_type", name, f"a list is expected in {name!r}, not {kind_of(value)}")
    return value


def record(value: Any, name: str) -> Row:
    """Return an object.

    Raises:
        RowRejected: not an object.
    """
    if not isinstance(value, dict):
        raise RowRejected("wrong_type", name, f"an object is expected in {name!r}, not {kind_of(value)}")
    return value


def optional_text(row: Row, name: str) -> str | None:
    """Return text, or a number as text; None when absent or empty."""
    value = row.get(name)
    if value is None or value == "":
        return None
    return value if isinstance(value, str) else str(value)


def content(value: Any, name: str) -> str:
    """Return message content as text."""
    return read_content(value, name)
