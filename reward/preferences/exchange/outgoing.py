"""Writes an export: one file a person in the tool's form, and the key beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from reward.preferences.exchange import argilla, label_studio, sheets
from reward.preferences.exchange.assignment import MIN_SHARED, assign, least_shared
from reward.preferences.exchange.tasks import (
    Dropped,
    Plan,
    Task,
    cmp_id_of,
    make_key,
    make_tasks,
    usable,
    write_key,
)
from reward.preferences.records import PreferenceRecord
from reward.preferences.writers import write_text

Tool = Literal["labelstudio", "argilla", "csv", "xlsx"]
KEY_NAME = "key.json"


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    files: tuple[Path, ...]
    key: Path
    tasks: int
    dropped: tuple[Dropped, ...]
    least_shared: int
    "Smallest number of comparisons that two people share."
    notes: tuple[str, ...] = ()


def export(
    records: Sequence[PreferenceRecord],
    folder: Path,
    *,
    tool: Tool,
    plan: Plan,
    probes: Sequence[PreferenceRecord] = (),
) -> Exported:
    """Write tasks for every person into a folder; the same input and seed give the same bytes.

    Raises:
        DataError: the tool cannot show these comparisons.
    """
    kept, dropped = usable(records)
    known = {cmp_id_of(record) for record in probes}
    kept = [record for record in kept if cmp_id_of(record) not in known]
    tasks = make_tasks(kept, probes, plan)
    folder.mkdir(parents=True, exist_ok=True)
    people = sorted({task.annotator for task in tasks})
    files = [
        _WRITERS[tool]([task for task in tasks if task.annotator == person], folder, person)
        for person in people
    ]
    files += _companions(tasks, folder, tool, plan.overlap.per_item)
    write_key(make_key(tasks, [*kept, *probes]), folder / KEY_NAME)
    shared = least_shared(
        assign([cmp_id_of(record) for record in kept], plan.overlap, seed=plan.seed), plan.overlap.annotators
    )
    return Exported(
        tuple(files),
        folder / KEY_NAME,
        len(tasks),
        tuple(dropped),
        shared,
        tuple(_notes(shared, plan, probes)),
    )


def _notes(shared: int, plan: Plan, probes: Sequence[PreferenceRecord]) -> list[str]:
    notes = []
    if plan.overlap.annotators > 1 and shared < MIN_SHARED:
        notes.append(
            f"two people share only {shared} comparisons; agreement of people needs {MIN_SHARED}: "
            "raise --overlap-share"
        )
    if not probes:
        notes.append("no probes: give comparisons with a known answer with --probes")
    return notes


def _companions(tasks: Sequence[Task], folder: Path, tool: Tool, per_item: int) -> list[Path]:
    if tool == "labelstudio":
        path = folder / "label_config.xml"
        write_text(path, label_studio.label_config(tasks))
        return [path]
    if tool == "argilla":
        path = folder / "settings.json"
        write_text(path, json.dumps(argilla.settings(tasks, per_item), indent=1) + "\n")
        return [path]
    return []


def _write_json(rows: list[dict[str, Any]], path: Path) -> Path:
    write_text(path, json.dumps(rows, ensure_ascii=False, indent=1) + "\n")
    return path


def _labelstudio(tasks: Sequence[Task], folder: Path, person: str) -> Path:
    return _write_json(label_studio.task_rows(tasks), folder / f"tasks-{person}.json")


def _argilla(tasks: Sequence[Task], folder: Path, person: str) -> Path:
    return _write_json(argilla.record_rows(tasks), folder / f"records-{person}.json")


def _csv(tasks: Sequence[Task], folder: Path, person: str) -> Path:
    path = folder / f"tasks-{person}.csv"
    sheets.write_csv(tasks, path)
    return path


def _xlsx(tasks: Sequence[Task], folder: Path, person: str) -> Path:
    path = folder / f"tasks-{person}.xlsx"
    sheets.write_xlsx(tasks, path)
    return path


_WRITERS: dict[Tool, Callable[[Sequence[Task], Path, str], Path]] = {
    "labelstudio": _labelstudio,
    "argilla": _argilla,
    "csv": _csv,
    "xlsx": _xlsx,
}
