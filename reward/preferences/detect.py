"""Says which format a file has, from its first rows, and how sure that is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.errors import DataError
from reward.preferences.catalogue import ALL, by_name
from reward.preferences.guess import propose_mapping, undeclared_scale
from reward.preferences.lines import RawRow
from reward.preferences.mapping import Mapping
from reward.preferences.readers.format import Format

SAMPLE_ROWS = 200
MIN_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Verdict:
    """The format that a file is read as."""

    format: Format
    confidence: float
    "Share of the sampled rows that have the fields of this format."
    declared: bool
    "True when a mapping file or the command line named it."

    def __str__(self) -> str:
        how = "as declared" if self.declared else f"{self.confidence:.0%} of the sampled rows"
        return f"read as {self.format.name} ({self.format.title}; {how}): {self.format.reads_as}"


def detect(rows: Sequence[RawRow], mapping: Mapping, *, where: str) -> Verdict:
    """Choose the format of the sampled rows.

    Raises:
        DataError: no format fits, or the one that fits needs a person to declare its direction.
    """
    objects = [row.value for row in rows if isinstance(row.value, dict)]
    named = mapping.format or ("table" if mapping.names_columns else None)
    if named is not None:
        form = by_name(named, where=where)
        share = sum(1 for value in objects if form.matches(value)) / max(len(objects), 1)
        return Verdict(form, share, True)
    counts: Counter[str] = Counter()
    for value in objects:
        fitting = [form for form in ALL if form.matches(value)]
        if fitting:
            counts[max(fitting, key=lambda form: form.specificity).name] += 1
    if not counts:
        raise _unknown(objects, where)
    name, count = counts.most_common(1)[0]
    form = by_name(name)
    share = count / max(len(rows), 1)
    if share < MIN_SHARE and sum(counts.values()) < MIN_SHARE * len(rows) and len(rows) > 3:
        raise _unknown(objects, where)
    if form.ask:
        raise DataError(
            f"this looks like {form.title}, and {form.ask}",
            where=where,
            hint=f"if that is what it is, give a mapping file with `format: {form.name}`",
            code="direction-undeclared",
        )
    return Verdict(form, share, False)


def _unknown(objects: Sequence[dict[str, object]], where: str) -> DataError:
    proposed = propose_mapping(objects)
    hint = "give a mapping file that names the fields (docs/preferences.md)"
    if proposed:
        task = "complete what is marked ???" if "???" in proposed else "look it over"
        hint = f"save this as map.yaml, {task}, and give --map map.yaml:\n{proposed.rstrip()}"
    column = undeclared_scale(objects)
    if column is not None and proposed:
        return DataError(
            f"nothing in the file says which side a large {column!r} prefers",
            where=where,
            hint=hint,
            code="direction-undeclared",
        )
    names = sorted({str(name) for value in objects[:20] for name in value})
    shown = ", ".join(names[:12]) or "no named fields"
    return DataError(
        f"no known format has these fields: {shown}", where=where, hint=hint, code="unknown-format"
    )
