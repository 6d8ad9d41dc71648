"""All formats that can be read, by name."""

from __future__ import annotations

import difflib

from pipeline.errors import DataError
from reward.preferences.readers import (
    argilla,
    crowd,
    judged,
    label_studio,
    native,
    prodigy,
    ranked,
    rated,
    rewardbench,
    table,
    trainers,
    trl,
    ukp,
)
from reward.preferences.readers.format import Format

ALL: tuple[Format, ...] = (
    *native.FORMATS,
    *trl.FORMATS,
    *rewardbench.FORMATS,
    *rated.FORMATS,
    *ranked.FORMATS,
    *judged.FORMATS,
    *trainers.FORMATS,
    *label_studio.FORMATS,
    *argilla.FORMATS,
    *prodigy.FORMATS,
    *crowd.FORMATS,
    *ukp.FORMATS,
    *table.FORMATS,
)


def by_name(name: str, *, where: str = "") -> Format:
    """Return a format by its name.

    Raises:
        DataError: no such format; the message names the closest one.
    """
    for form in ALL:
        if form.name == name:
            return form
    names = [form.name for form in ALL]
    close = difflib.get_close_matches(name, names, n=1) or [
        known for known in names if known.startswith(name)
    ]
    hint = f"format: {close[0]}" if close else f"one of {', '.join(names)}"
    raise DataError(f"there is no format {name!r}", where=where, hint=hint, code="unknown-format")
