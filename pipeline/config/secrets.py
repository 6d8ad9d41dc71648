"""Keeps passwords and tokens out of run files, since every run file is recorded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pipeline.config.source import KeyPath, Source
from pipeline.errors import Finding

_SECRET_KEY = re.compile(r"(^|_)(token|secret|passw(or)?d|api_?key|credentials?)s?($|_)", re.IGNORECASE)
_TEXT_TOKEN = re.compile(r"^(pad|eos|bos|unk|stop|mask|sep|cls|end)_token", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"\b(hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{20,})\b|://[^/@\s]+:[^/@\s]+@")
_FROM_ENVIRONMENT = re.compile(r"env:[A-Za-z_][A-Za-z0-9_]*")


def findings(source: Source) -> Iterator[tuple[KeyPath, Finding]]:
    """Yield a finding for every value that looks like a secret; the value is never shown."""
    for path, value in _strings(source.values, ()):
        key = str(path[-1])
        if _FROM_ENVIRONMENT.fullmatch(value):
            continue
        named = _SECRET_KEY.search(key) and not _TEXT_TOKEN.match(key)
        if named or _SECRET_VALUE.search(value):
            variable = re.sub(r"\W", "_", key).upper()
            yield (
                path,
                Finding(
                    f"{key!r} holds what looks like a secret; run files are recorded, so it is not read",
                    source.place(path).value,
                    f"{key}: env:{variable}",
                    "secret",
                ),
            )


def _strings(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(value, str) and path:
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _strings(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _strings(item, (*path, index))
