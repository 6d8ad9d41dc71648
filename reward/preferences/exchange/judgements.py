"""Reads judgements back: matched by task id, texts compared, order turned back, votes appended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from reward.preferences.exchange.sheets import CHOICES, unguarded
from reward.preferences.exchange.tasks import (
    PROBE,
    REPEAT,
    Key,
    KeyEntry,
    cmp_id_of,
    shown_prompt,
    text_digest,
)
from reward.preferences.mapping import Mapping
from reward.preferences.notes import RowNotes, RowRejected
from reward.preferences.pairs import with_votes_of
from reward.preferences.readers import fields, native
from reward.preferences.readers.build import vote_of
from reward.preferences.records import PreferenceRecord, Vote, VoteKind
from reward.preferences.source import open_source, raw_rows_of


@dataclass(frozen=True, slots=True)
class Refused:
    """A judgement that was not taken."""

    file: str
    line: int
    check: str
    message: str


@dataclass(slots=True)
class Imported:
    """Comparisons with their votes, and an account of every task."""

    records: list[PreferenceRecord]
    refused: list[Refused]
    votes: int = 0
    repeats: int = 0
    "Votes of somebody who judged the same comparison before; both are kept."
    kinds: dict[str, int] = field(default_factory=dict)
    open_tasks: tuple[str, ...] = ()
    "Task ids without a judgement."


@dataclass(frozen=True, slots=True)
class _Judgement:
    """One answer to one task, in the names of the task as it was shown."""

    line: int
    task_id: str
    prompt: str
    texts: tuple[str, ...]
    names: tuple[str, ...]
    "Names of the shown answers in the vote, in the order shown."
    vote: Vote


def import_judgements(
    files: Sequence[Path], key: Key, *, earlier: Sequence[PreferenceRecord] = ()
) -> Imported:
    """Read the results of annotation tools.

    Votes are only ever added. Somebody who judges a comparison twice keeps both votes.

    Args:
        files: exports of Label Studio or Argilla, or filled-in sheets.
        key: the key of the export that made the tasks.
        earlier: comparisons with votes from earlier rounds.

    Raises:
        DataError: a file cannot be read.
    """
    votes: dict[str, list[Vote]] = {}
    refused: list[Refused] = []
    done: set[str] = set()
    for path in files:
        for found in _judgements(path):
            if isinstance(found, Refused):
                refused.append(found)
                continue
            problem = _problem(found, key)
            if problem:
                refused.append(Refused(path.name, found.line, *problem))
                continue
            entry = key.tasks[found.task_id]
            done.add(found.task_id)
            votes.setdefault(entry.cmp_id, []).append(_turned_back(found, entry))
    records = [_comparison(key, cmp_id) for cmp_id in key.comparisons]
    merged = _append(records, votes, earlier)
    flat = [vote for found in votes.values() for vote in found]
    return Imported(
        merged,
        refused,
        len(flat),
        _count_repeats(merged),
        dict(Counter(str(vote.kind) for vote in flat)),
        tuple(sorted(set(key.tasks) - done)),
    )


def _judgements(path: Path) -> Iterable[_Judgement | Refused]:
    """Read a sheet of ours, or an export that a reader of the catalogue understands."""
    rows = raw_rows_of(path, Mapping())[1]
    first = next((raw for raw in rows if isinstance(raw.value, dict)), None)
    if first is not None and {"task_id", "response_a", "choice"} <= set(first.value):
        yield from _sheet_judgements(path)
        return
    for row in open_source(path).rows:
        for rejection in row.rejections:
            yield Refused(path.name, row.raw.line, rejection.check, rejection.message)
        for record in row.records:
            texts = tuple(response.text for response in record.responses)
            names = tuple(response.id for response in record.responses)
            task_id = str(record.meta.get("task_id") or record.id)
            for vote in record.votes:
                yield _Judgement(row.raw.line, task_id, shown_prompt(record.prompt), texts, names, vote)


def _sheet_judgements(path: Path) -> Iterable[_Judgement | Refused]:
    for raw in raw_rows_of(path, Mapping())[1]:
        try:
            if raw.problem is not None:
                raise RowRejected(raw.problem.check, raw.problem.field, raw.problem.message)
            found = _sheet_judgement(raw.line, raw.value)
        except RowRejected as rejected:
            yield Refused(path.name, raw.line, rejected.finding.check, rejected.finding.message)
            continue
        if found is not None:
            yield found


def _sheet_judgement(line: int, row: dict[str, Any]) -> _Judgement | None:
    """Read a filled-in row; an empty choice is a task that is still open."""
    said = (fields.optional_text(row, "choice") or "").strip().lower()
    if not said:
        return None
    if said not in CHOICES:
        known = ", ".join(CHOICES)
        raise RowRejected("label_out_of_range", "choice", f"the choice {said!r} is none of {known}")
    outcome = {"a": "first", "b": "second"}.get(said, said)
    vote = vote_of(
        outcome,
        "a",
        "b",
        confidence=fields.optional_number(row, "confidence"),
        reason=fields.optional_text(row, "reason"),
    )
    texts = tuple(unguarded(fields.text(row, name)) for name in ("response_a", "response_b"))
    prompt = unguarded(fields.text(row, "prompt"))
    return _Judgement(line, fields.text(row, "task_id").strip(), prompt, texts, ("a", "b"), vote)


def _problem(found: _Judgement, key: Key) -> tuple[str, str] | None:
    """Return why a judgement cannot be taken: unknown task, or texts that were edited."""
    entry = key.tasks.get(found.task_id)
    if entry is None:
        return "unknown_task", f"the key knows no task {found.task_id!r}"
    if text_digest(found.prompt) != entry.prompt:
        return "edited_prompt", f"the prompt of {found.task_id} is not the one that was sent out"
    if tuple(text_digest(text) for text in found.texts) != entry.texts:
        return "edited_response", f"a response of {found.task_id} is not the one that was sent out"
    return None


def _turned_back(found: _Judgement, entry: KeyEntry) -> Vote:
    """Name the responses as the comparison does, and keep the order in which they were shown."""
    names = dict(zip(found.names, entry.order, strict=True))
    tiers = tuple(tuple(names[name] for name in tier) for tier in found.vote.tiers)
    return replace(
        found.vote,
        tiers=tiers,
        shown_order=entry.order,
        annotator=found.vote.annotator or entry.annotator,
        is_gold_probe=found.vote.is_gold_probe or entry.kind == PROBE,
        batch=found.vote.batch or (REPEAT if entry.kind == REPEAT else None),
    )


def _comparison(key: Key, cmp_id: str) -> PreferenceRecord:
    """Return a comparison of the key.

    Raises:
        RowRejected: the key was edited by hand.
    """
    (record,) = native.read(dict(key.comparisons[cmp_id]), RowNotes(), {})
    return record


def _append(
    records: Sequence[PreferenceRecord],
    votes: dict[str, list[Vote]],
    earlier: Sequence[PreferenceRecord],
) -> list[PreferenceRecord]:
    merged = {cmp_id_of(record): replace(record, id=cmp_id_of(record)) for record in earlier}
    for record in records:
        judged = replace(record, votes=record.votes + tuple(votes.get(record.id, ())))
        before = merged.get(record.id)
        merged[record.id] = judged if before is None else with_votes_of(before, judged)
    return list(merged.values())


def _count_repeats(records: Iterable[PreferenceRecord]) -> int:
    repeats = 0
    for record in records:
        people = Counter(
            vote.annotator for vote in record.votes if vote.annotator and vote.kind is not VoteKind.CANCELLED
        )
        repeats += sum(count - 1 for count in people.values())
    return repeats
