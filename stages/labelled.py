"""Single responses that people called good or bad, from any preference file. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import Finding
from reward.preferences.pairs import PairSet, load_pairs
from reward.preferences.records import Prompt


@dataclass(frozen=True, slots=True)
class Labelled:
    """A response and whether it is good."""

    prompt: Prompt
    response: str
    label: bool
    group: str
    "Name of the prompt: responses of one group stay on one side of a split."
    line: int


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """What a preference file says of single responses."""

    rows: list[Labelled]
    pairs: PairSet


def read_labelled(path: Path, *, mapping: Path | None = None) -> LabelledSet:
    """Read labelled responses, and pairs as two of them: chosen is good, rejected is bad.

    A response that several pairs of one prompt name keeps one row a label, so that a K-way ranking does
    not repeat it.

    Raises:
        DataError: the file cannot be read.
    """
    found = load_pairs(path, mapping=mapping)
    rows = [
        Labelled(pair.prompt, text, label, pair.group, pair.line)
        for pair in found.pairs
        for text, label in ((pair.chosen, True), (pair.rejected, False))
    ]
    for record in found.unpaired:
        for rating in record.ratings[:1]:
            worst, best = rating.scale
            good = (rating.value - worst) / (best - worst) > 0.5
            rows.append(Labelled(record.prompt, record.responses[0].text, good, record.group, record.line))
    return LabelledSet(list({(row.group, row.response, row.label): row for row in rows}.values()), found)


def labelled_findings(found: LabelledSet, *, max_rejected_share: float) -> list[Finding]:
    """Return a finding when a file gives too few labels, or sets too many rows aside."""
    path, read = str(found.pairs.path), found.pairs.report.read
    rejected = len(found.pairs.rejects)
    findings = []
    if rejected > max_rejected_share * read:
        message = f"{rejected} of {read} rows cannot be used, allowed {max_rejected_share:.1%}"
        hint = "triptych data check lists every row; mend them, or raise max_rejected_share"
        findings.append(Finding(message, path, hint, "too-many-rejected-rows"))
    if {row.label for row in found.rows} != {True, False}:
        message = "the file does not hold both good and bad responses"
        hint = "rows with prompt, completion and label, or pairs with chosen and rejected"
        findings.append(Finding(message, path, hint, "no-labels"))
    return findings
