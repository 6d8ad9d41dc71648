"""The tables of docs/metrics.md: which metrics a stage may log."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tests.readme_tree import ROOT

COMMON = "Every stage that trains"


def patterns(kind: str) -> list[re.Pattern[str]]:
    """Return what the page lists for a stage kind, as patterns: MODEL and `...` stand for anything."""
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    found = []
    for section in text.split("\n## ")[1:]:
        heading, _, body = section.partition("\n")
        if heading != COMMON and kind not in re.split(r", | and ", heading):
            continue
        for row in body.splitlines():
            if not row.startswith("| `"):
                continue
            names = re.findall(r"`([^`]+)`", row.split("|")[1])
            if row.rstrip(" |").endswith("interval"):
                names += [name.replace("/", f"{side}/") for name in names for side in ("_low", "_high")]
            found += [_pattern(name) for name in names]
    return found


def undocumented(kind: str, names: Iterable[str]) -> list[str]:
    """Return the metrics that the page does not list for a stage kind."""
    known = patterns(kind)
    return sorted(name for name in names if not any(pattern.fullmatch(name) for pattern in known))


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace("MODEL", r"[^/]+").replace(re.escape("..."), r".+"))
