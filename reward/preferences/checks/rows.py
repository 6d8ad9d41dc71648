"""What each check of single rows means, and how often it found something."""

from __future__ import annotations

from dataclasses import dataclass, field

from reward.preferences.checks.pii import mask_pii
from reward.preferences.checks.result import CheckResult, Example, Verdict
from reward.preferences.checks.settings import CheckSettings
from reward.preferences.notes import RowFinding
from reward.preferences.source import ReadRow

EXCERPT_CHARS = 160
# check -> (group, severity, advice).
MEANINGS: dict[str, tuple[str, str, str]] = {
    "parse_error": (
        "structure",
        "R",
        "Export the file again, or mend the line: it is not what its suffix says.",
    ),
    "truncated_file": ("structure", "R", "Copy the file again: it ends in the middle."),
    "encoding_not_utf8": ("structure", "R", "Save the file as UTF-8."),
    "lone_surrogate": ("structure", "R", "Export the text again: half a character is missing."),
    "missing_field": ("structure", "R", "Fill the field, or name the right one in a mapping file."),
    "wrong_type": (
        "structure",
        "R",
        "Write text where text belongs; in a workbook, format the column as text.",
    ),
    "empty_response": ("structure", "R", "Sample the response again, or drop the comparison."),
    "identical_responses": ("structure", "R", "Two equal responses teach nothing; sample one of them again."),
    "identical_after_truncation": ("structure", "R", "Raise --max-length, or shorten the prompts."),
    "too_long": ("structure", "R", "Raise --max-length, or leave these comparisons out."),
    "prompt_mismatch": (
        "structure",
        "R",
        "Both responses must answer the same dialogue: export them together.",
    ),
    "role_order": (
        "structure",
        "R",
        "Turns must alternate: user, assistant, user ...; repeated roles are merged.",
    ),
    "no_final_assistant": ("structure", "R", "The dialogue must end with the response that was judged."),
    "no_dialogue_marks": ("structure", "R", "Give a prompt field: nobody can say where the response begins."),
    "special_token": ("structure", "R", "Take the control tokens out: a model would read them as commands."),
    "label_out_of_range": ("structure", "R", "The value is not in the documented range; check the export."),
    "direction_undeclared": ("structure", "R", "Say in a mapping file what the value means."),
    "rank_invalid": ("consistency", "R", "A ranking names each response once."),
    "control_or_zero_width": (
        "structure",
        "W",
        "Remove invisible characters: `triptych data prepare --clean`.",
    ),
    "mojibake": ("structure", "W", "The text was decoded wrongly once; export it as UTF-8."),
    "role_token_in_text": ("structure", "W", "A turn may have been pasted into another one; look at it."),
    "truncated": ("structure", "W", "Let the model finish: raise the limit, or drop cut responses."),
    "near_identical_responses": ("structure", "W", "Hardly a choice: sample at a higher temperature."),
    "status_unknown": (
        "structure",
        "W",
        "Export with the status of each response, so that drafts do not count.",
    ),
    "no_comparison": ("structure", "W", "The row is sound but holds nothing to compare."),
    "pii": ("content", "W", "Mask personal data: `triptych data prepare --mask-pii`."),
    "language_mix": ("content", "W", "The response is in another language than the prompt."),
    "toxicity": ("content", "W", "Holds listed words; fine in harmlessness data, odd elsewhere."),
}


@dataclass(slots=True)
class RowTally:
    """Counts rows and findings; accepted + rejected = read, and clean + flagged = accepted."""

    settings: CheckSettings
    read: int = 0
    rejected: int = 0
    flagged: int = 0
    rejections: dict[str, int] = field(default_factory=dict)
    flags: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[Example]] = field(default_factory=dict)

    @property
    def accepted(self) -> int:
        """Rows that were not set aside."""
        return self.read - self.rejected

    def see(self, row: ReadRow) -> None:
        """Count one row; a check counts once a row, however many fields it finds."""
        self.read += 1
        if row.rejections:
            self.rejected += 1
            self._count(row.raw.line, row.rejections, self.rejections)
        elif row.flags:
            self.flagged += 1
        self._count(row.raw.line, row.flags, self.flags)

    def _count(self, line: int, findings: tuple[RowFinding, ...], counts: dict[str, int]) -> None:
        seen: set[str] = set()
        for item in findings:
            if item.check in seen:
                continue
            seen.add(item.check)
            counts[item.check] = counts.get(item.check, 0) + 1
            kept = self.examples.setdefault(item.check, [])
            if len(kept) < self.settings.num_examples:
                kept.append(Example(line, item.field, excerpt(item.message)))

    def results(self) -> list[CheckResult]:
        """Return a result for every row check, found or not."""
        named = {
            **MEANINGS,
            **{name: ("structure", "R", "") for name in self.rejections if name not in MEANINGS},
        }
        return [self._result(name, *meaning) for name, meaning in named.items()]

    def _result(self, name: str, group: str, severity: str, advice: str) -> CheckResult:
        rejected, flagged = self.rejections.get(name, 0), self.flags.get(name, 0)
        verdict = Verdict.WARN if rejected or flagged else Verdict.OK
        threshold = "any"
        if name in ("parse_error", "truncated_file"):
            limit = self.settings.max_parse_error_share
            threshold = f"fail above {limit:.0%} of the rows"
            if (name == "truncated_file" and rejected) or rejected > limit * self.read:
                verdict = Verdict.FAIL
        elif name == "language_mix":
            threshold = f"warn above {self.settings.language_share:.0%} of the rows"
            if flagged and flagged <= self.settings.language_share * self.read:
                verdict = Verdict.INFO
        return CheckResult(
            name,
            group,
            severity,
            verdict,
            rejected + flagged,
            self.read,
            threshold,
            advice,
            tuple(self.examples.get(name, ())),
            {"rejected": rejected, "flagged": flagged},
        )

    def reject_rate(self) -> CheckResult:
        """Return the verdict on the share of rows that were set aside."""
        limit = self.settings.max_reject_share
        too_many = self.rejected > limit * self.read
        verdict = Verdict.FAIL if too_many else (Verdict.WARN if self.rejected else Verdict.OK)
        return CheckResult(
            "rows_rejected",
            "structure",
            "F",
            verdict,
            self.rejected,
            self.read,
            f"fail above {limit:.1%} of the rows",
            "Mend the rows in the file of rejects and check that file again.",
        )


def excerpt(text: str) -> str:
    """Return a short piece of a text with personal data masked."""
    masked = mask_pii(text)
    return masked if len(masked) <= EXCERPT_CHARS else masked[: EXCERPT_CHARS - 3] + "..."
