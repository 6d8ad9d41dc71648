"""Turns a failed validation into findings a person can act on: place, value, remedy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pipeline.config.source import KeyPath, Source
from pipeline.config.suggest import Homes, choices, close, model_at
from pipeline.errors import Finding

MAX_SHOWN = 60

_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a whole number of usual size",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
}
_LIMITS = {
    "greater_than": ("gt", "greater than {}"),
    "greater_than_equal": ("ge", "at least {}"),
    "less_than": ("lt", "less than {}"),
    "less_than_equal": ("le", "at most {}"),
}


def shown(value: Any) -> str:
    """Return a value as YAML-like text of at most one short line."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def translate(
    error: ValidationError,
    *,
    model: type[BaseModel],
    values: Mapping[str, Any],
    prefix: KeyPath,
    source: Source,
    homes: Homes,
    entry_keys: tuple[str, ...] = (),
) -> dict[KeyPath, Finding]:
    """Return one finding for each key path that a validation refused.

    Args:
        error: what pydantic reported.
        model: the class that was validated.
        values: the mapping it was given.
        prefix: where that mapping stands in the run file.
        source: the file, for lines.
        homes: where known keys belong, for hints.
        entry_keys: keys that may stand beside the model's own.
    """
    found: dict[KeyPath, list[ErrorDetails]] = {}
    for problem in error.errors(include_url=False):
        found.setdefault(_real_path(problem, values), []).append(problem)
    findings: dict[KeyPath, Finding] = {}
    for path, details in found.items():
        full = (*prefix, *path)
        kind = details[0]["type"]
        if kind == "extra_forbidden":
            inner = model_at(model, path[:-1])
            allowed = [*(inner.model_fields if inner else ()), *(entry_keys if len(path) == 1 else ())]
            findings[full] = _unknown_key(full, allowed, source=source, homes=homes)
        elif kind == "missing":
            findings[full] = _missing_key(full, source=source)
        else:
            findings[full] = _wrong_value(details, _name(full), source.place(full).value)
    return findings


def number_given_as_boolean(
    config: BaseModel, values: Mapping[str, Any], *, prefix: KeyPath, source: Source
) -> dict[KeyPath, Finding]:
    """Report true and false where a number stands: Python would count them as 1 and 0."""
    found: dict[KeyPath, Finding] = {}
    for key, value in values.items():
        result = getattr(config, key, None)
        path = (*prefix, key)
        if isinstance(value, bool) and isinstance(result, (int, float)) and not isinstance(result, bool):
            message = f"{key} must be a number, got {shown(value)}"
            found[path] = Finding(message, source.place(path).value, code="wrong-type")
        elif isinstance(value, Mapping) and isinstance(result, BaseModel):
            found |= number_given_as_boolean(result, value, prefix=path, source=source)
    return found


def _real_path(details: ErrorDetails, values: Mapping[str, Any]) -> KeyPath:
    """Drop the parts of a location that name a union member instead of a key."""
    current: Any = values
    path: list[str | int] = []
    for part in details["loc"]:
        if (isinstance(current, Mapping) and part in current) or (
            isinstance(current, list) and isinstance(part, int) and part < len(current)
        ):
            current = current[part]  # type: ignore[index]
            path.append(part)
    if details["type"] == "missing":
        path.append(details["loc"][-1])
    return tuple(path)


def _name(path: KeyPath) -> str:
    """Return the last key, with the numbers behind it when it is an entry of a list."""
    parts = [str(path[-1])] if path else ["the file"]
    for part in reversed(path[:-1]):
        if not parts[0].isdigit():
            break
        parts.insert(0, str(part))
    return ".".join(parts)


def _unknown_key(path: KeyPath, allowed: Sequence[str], *, source: Source, homes: Homes) -> Finding:
    key, level = str(path[-1]), ".".join(map(str, path[:-1]))
    owner = f"in {level}" if level else "at the top level of a run file"
    hint = homes.hint(key, level=level, allowed=allowed)
    return Finding(f"there is no key {key!r} {owner}", source.place(path).key, hint, "unknown-key")


def _missing_key(path: KeyPath, *, source: Source) -> Finding:
    key, level = str(path[-1]), ".".join(map(str, path[:-1]))
    owner = level or "a run file"
    return Finding(f"{owner} needs the key {key!r}", source.place(path).key, f"{key}: ...", "missing-key")


def _wrong_value(details: list[ErrorDetails], name: str, where: str) -> Finding:
    value = shown(details[0]["input"])
    wanted: list[str] = []
    hint, code = "", "wrong-type"
    for item in details:
        kind, context = item["type"], item.get("ctx", {})
        if kind in _LIMITS:
            limit, words = _LIMITS[kind]
            wanted.append(words.format(context[limit]))
            code = "out-of-range"
        elif kind in ("literal_error", "enum"):
            words = context["expected"]
            allowed = words.replace(" or ", ", ").replace("'", "").split(", ")
            wanted.append(choices(allowed) if len(allowed) == 1 else f"one of {choices(allowed)}")
            hint = hint or _choice_hint(name, item["input"], allowed)
            code = "bad-choice"
        elif kind == "string_pattern_mismatch":
            wanted.append(f"text that matches {context['pattern']}")
            code = "bad-value"
        elif kind == "too_short":
            wanted.append("at least one entry" if context["min_length"] == 1 else item["msg"])
            code = "bad-value"
        elif kind in _EXPECTED:
            wanted.append(_EXPECTED[kind])
            if kind == "string_type" and isinstance(item["input"], (int, float)):
                hint = f'{name}: "{value}"'
        else:
            message = item["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
            return Finding(f"{name}: {message}", where, code="bad-value")
    return Finding(f"{name} must be {' or '.join(dict.fromkeys(wanted))}, got {value}", where, hint, code)


def _choice_hint(name: str, given: Any, allowed: list[str]) -> str:
    similar = close(str(given), allowed)
    return f"{name}: {similar}" if similar else ""
