"""Checks one preference file from end to end in a single pass, without holding its text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from reward.preferences.annotators import AnnotatorRow, annotator_rows
from reward.preferences.checks.bias import RefusalCounter, bias_results
from reward.preferences.checks.consistency import consistency_results
from reward.preferences.checks.leakage import Evaluation, PromptSets, leakage_results, near_prompts
from reward.preferences.checks.pii import mask_pii
from reward.preferences.checks.rephrased import CharGrams
from reward.preferences.checks.result import CheckResult, Example, Verdict
from reward.preferences.checks.rows import EXCERPT_CHARS, RowTally, excerpt
from reward.preferences.checks.settings import CheckSettings
from reward.preferences.checks.text import ends_openly, flag_texts
from reward.preferences.checks.tokens import TokenIds, check_tokens
from reward.preferences.detect import Verdict as FormatVerdict
from reward.preferences.ledger import Ledger, Votes
from reward.preferences.mapping import Mapping
from reward.preferences.notes import RowNotes
from reward.preferences.pairs import pairs_of
from reward.preferences.records import PreferenceRecord, digest, prompt_text, prompt_words
from reward.preferences.source import ReadRow, open_source
from reward.preferences.textfile import TextForm

NUM_RENDERED = 3
RENDERED_CHARS = 240
MASKED_CHARS = 2000
"Characters of a text in which personal data is looked for before it is shown in part."


@dataclass(frozen=True, slots=True)
class Rendered:
    """One row as it was understood, for a person to confirm."""

    line: int
    prompt: str
    better: str
    worse: str


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """Where a row was set aside, and the first reason."""

    row: int
    "1-based place in the file, or in the file that was checked first."
    line: int
    check: str
    field: str
    message: str
    digest: str
    "Name of the row's text, to find it again in the next submission."


@dataclass(slots=True)
class Inspection:
    """Everything that was found in one file."""

    path: Path
    format: FormatVerdict
    text_form: TextForm | None
    settings: CheckSettings
    tally: RowTally
    ledger: Ledger
    votes: Votes
    checks: list[CheckResult]
    annotators: list[AnnotatorRow]
    rendered: list[Rendered]
    rejects: list[RejectedRow]
    mended_rows: set[int] = field(default_factory=set)
    "Earlier numbers of accepted rows, when the file is a mended file of rejects."

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of all checks."""
        return max((check.verdict for check in self.checks), default=Verdict.OK)


def inspect_file(
    path: Path,
    *,
    mapping: Mapping | None = None,
    settings: CheckSettings | None = None,
    against: Sequence[Path] = (),
    token_ids: TokenIds | None = None,
    sinks: Iterable[Callable[[ReadRow], None]] = (),
) -> Inspection:
    """Read a file row by row and run every check.

    Args:
        path: the preference file.
        mapping: how to read it; None detects.
        settings: thresholds.
        against: evaluation files whose prompts must not occur.
        token_ids: ids of a prompt and a response; used when settings.max_length is set.
        sinks: called with each row, such as writers of rejects.

    Raises:
        DataError: the file cannot be read at all, or its direction is not declared.
    """
    settings = settings or CheckSettings()
    source = open_source(path, mapping)
    state = _State(settings, token_ids, [Evaluation(other) for other in against])
    receivers = tuple(sinks)
    for row in source.rows:
        checked = state.take(row)
        for receive in receivers:
            receive(checked)
    votes = state.ledger.votes()
    people = annotator_rows(state.ledger, votes, settings)
    checks = [
        state.tally.reject_rate(),
        *state.tally.results(),
        *_file_form(source.text_form, path),
        state.open_ends(),
        *consistency_results(state.ledger, votes, settings),
        near_prompts(state.prompts, settings),
        *bias_results(state.ledger, votes, settings),
        state.refusals.result(settings),
        *_annotator_results(people, settings),
    ]
    for evaluation in state.evaluations:
        checks += leakage_results(state.prompts, evaluation, settings)
    return Inspection(
        path,
        source.verdict,
        source.text_form,
        settings,
        state.tally,
        state.ledger,
        votes,
        checks,
        people,
        state.rendered,
        state.rejects,
        state.mended_rows,
    )


class _State:
    """What one pass gathers."""

    def __init__(
        self, settings: CheckSettings, token_ids: TokenIds | None, evaluations: list[Evaluation]
    ) -> None:
        self.settings, self.token_ids, self.evaluations = settings, token_ids, evaluations
        self.prompts = PromptSets()
        self.tally = RowTally(settings)
        self.ledger = Ledger()
        self.refusals = RefusalCounter()
        self.rendered: list[Rendered] = []
        self.rejects: list[RejectedRow] = []
        self.mended_rows: set[int] = set()
        self.num_open = self.num_responses = 0

    def take(self, row: ReadRow) -> ReadRow:
        """Check one row, count it, and enter its records."""
        row = self._with_text_checks(row)
        self.tally.see(row)
        number, line = row.raw.earlier or (row.raw.number, row.raw.line)
        if not row.accepted:
            first = row.rejections[0]
            name = digest(row.raw.text)
            self.rejects.append(
                RejectedRow(number, line, first.check, first.field, excerpt(first.message), name)
            )
            return row
        if row.raw.earlier is not None:
            self.mended_rows.add(number)
        for record in row.records:
            self._enter(record)
        return row

    def _with_text_checks(self, row: ReadRow) -> ReadRow:
        if not row.accepted:
            return row
        notes = RowNotes(list(row.rejections), list(row.flags))
        for record in row.records:
            flag_texts(record, notes, self.settings)
            if self.token_ids is not None and self.settings.max_length is not None:
                check_tokens(record, notes, self.token_ids, self.settings.max_length)
        records = () if notes.rejections else row.records
        return ReadRow(row.raw, records, tuple(notes.rejections), tuple(notes.flags))

    def _enter(self, record: PreferenceRecord) -> None:
        group = record.group
        self.ledger.add(record, group=group)
        if self.prompts.see(record.prompt, record.line, group=group) and self.evaluations:
            grams = CharGrams.of(prompt_words(record.prompt))
            for evaluation in self.evaluations:
                evaluation.see(len(self.prompts.lines) - 1, grams)
        for response in record.responses:
            self.num_responses += 1
            self.num_open += ends_openly(response.text)
        for pair in pairs_of(record, group=group):
            if pair.label > 0.5:
                self.refusals.see(pair.chosen, pair.rejected)
                if len(self.rendered) < NUM_RENDERED and (
                    not self.rendered or self.rendered[-1].line != pair.line
                ):
                    asked = mask_pii(prompt_text(pair.prompt)[-MASKED_CHARS:])[-EXCERPT_CHARS:]
                    self.rendered.append(
                        Rendered(pair.line, asked, _short(pair.chosen), _short(pair.rejected))
                    )

    def open_ends(self) -> CheckResult:
        """Say how many responses stop without an end mark; a rate, not a fault of a row."""
        return CheckResult(
            "open_end",
            "structure",
            "F",
            Verdict.INFO,
            self.num_open,
            self.num_responses,
            "information",
            "A high share means that responses were cut: raise the limit of new tokens.",
        )


def _short(text: str) -> str:
    """Return the beginning of a text; personal data is masked before the cut could hide what it is."""
    masked = mask_pii(text[:MASKED_CHARS])
    return masked if len(masked) <= RENDERED_CHARS else masked[:RENDERED_CHARS] + "..."


def _file_form(form: TextForm | None, path: Path) -> list[CheckResult]:
    """Report marks of the file as a whole: byte order mark, encoding, line ends."""
    said: dict[str, tuple[bool, str]] = {
        "bom": (form is not None and form.bom, "a byte order mark was taken off"),
        "file_encoding": (
            form is not None and not form.is_utf8,
            f"decoded as {form.encoding if form else ''}",
        ),
        "mixed_newlines": (form is not None and form.mixed_newlines, "some lines end in CR LF, some in LF"),
    }
    return [
        CheckResult(
            name,
            "structure",
            "F",
            Verdict.WARN if found else Verdict.OK,
            int(found),
            1,
            "any",
            "Nothing is lost; save as UTF-8 with one kind of line end to be read alike everywhere.",
            (Example(1, path.name, text),) if found else (),
        )
        for name, (found, text) in said.items()
    ]


def _annotator_results(people: Sequence[AnnotatorRow], settings: CheckSettings) -> list[CheckResult]:
    """Turn the flags of people into one result a flag."""
    from reward.preferences.annotators import FLAGS

    results = []
    for flag, meaning in FLAGS.items():
        found = [person for person in people if flag in person.flags]
        results.append(
            CheckResult(
                flag,
                "annotators",
                "W",
                Verdict.WARN if found else (Verdict.OK if people else Verdict.INFO),
                len(found),
                len(people),
                "see the annotator table",
                f"Talk to the people named: each {meaning}."
                if people
                else "Not measurable: the file does not name annotators.",
                (),
                {"people": len(people)},
            )
        )
    return results
