"""Tasks as annotators see them, and the key that only the team lead keeps.

A task shows texts in a random order, without sources, under an opaque id. The key says what it was.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from reward.preferences.checks.structure import check_structure
from reward.preferences.exchange.assignment import Overlap, assign
from reward.preferences.notes import RowNotes
from reward.preferences.pairs import comparison_key
from reward.preferences.records import PreferenceRecord, Prompt, normalised, prompt_text
from reward.preferences.writers import record_to_json, write_text

KEY_SCHEMA = "triptych/annotation-key"
ORDINARY, PROBE, REPEAT = "ordinary", "probe", "repeat"


@dataclass(frozen=True, slots=True)
class Task:
    """One comparison for one person."""

    task_id: str
    cmp_id: str
    annotator: str
    kind: str
    "ordinary, probe (the right answer is known) or repeat (the same pair, the other way round)."
    prompt: str
    texts: tuple[str, ...]
    "In the order shown."
    order: tuple[str, ...]
    "Response ids in the order shown."


@dataclass(frozen=True, slots=True)
class Plan:
    """How to hand out comparisons."""

    overlap: Overlap
    probe_share: float = 0.05
    "Probes in each person's list, as a share of it."
    repeat_share: float = 0.02
    "Items that a person judges twice, the second time the other way round."
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Dropped:
    """A comparison that is not worth paying for."""

    cmp_id: str
    reason: str


def cmp_id_of(record: PreferenceRecord) -> str:
    """Return the opaque name of a comparison: it depends on prompt and texts only."""
    return "c" + comparison_key(record)[:20]


def usable(records: Sequence[PreferenceRecord]) -> tuple[list[PreferenceRecord], list[Dropped]]:
    """Drop comparisons with empty, equal or cut responses before anybody judges them."""
    kept: dict[str, PreferenceRecord] = {}
    dropped: list[Dropped] = []
    for record in records:
        name = cmp_id_of(record)
        notes = RowNotes()
        check_structure(replace(record, votes=()), notes)
        cut = [response.id for response in record.responses if response.finish == "length"]
        if notes.rejections:
            dropped.append(Dropped(name, notes.rejections[0].message))
        elif cut:
            dropped.append(Dropped(name, f"the response {cut[0]!r} was cut at its length limit"))
        elif len(record.responses) < 2:
            dropped.append(Dropped(name, "one response is no comparison"))
        elif name in kept:
            dropped.append(Dropped(name, "the same comparison stands in the file twice"))
        else:
            kept[name] = record
    return list(kept.values()), dropped


def make_tasks(
    records: Sequence[PreferenceRecord], probes: Sequence[PreferenceRecord], plan: Plan
) -> list[Task]:
    """Hand out comparisons to people, with probes and repeats, each list in its own order."""
    by_id = {cmp_id_of(record): record for record in records}
    assignment = assign(list(by_id), plan.overlap, seed=plan.seed)
    lists: dict[int, list[tuple[str, str]]] = {person: [] for person in range(plan.overlap.annotators)}
    for item, people in assignment.items():
        for person in people:
            lists[person].append((item, ORDINARY))
    probe_ids = {cmp_id_of(record): record for record in probes}
    tasks: list[Task] = []
    for person, items in lists.items():
        rng = _random(plan.seed, f"list {person}")
        repeats = rng.sample(items, min(len(items), round(plan.repeat_share * len(items))))
        num_probes = min(len(probe_ids), round(plan.probe_share * len(items)))
        chosen = rng.sample(sorted(probe_ids), num_probes)
        rng.shuffle(items)
        extra = [(item, REPEAT) for item, _ in repeats] + [(item, PROBE) for item in chosen]
        for entry in extra:
            # A repeat stands in the second half, well after its first showing.
            low = len(items) // 2 if entry[1] == REPEAT else 0
            items.insert(rng.randint(low, len(items)), entry)
        items = _repeats_last(items)
        tasks += [_task({**by_id, **probe_ids}[item], item, kind, person, plan.seed) for item, kind in items]
    return tasks


def _repeats_last(items: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Let the first showing of a repeated item come before its repeat."""
    first = {item: place for place, (item, kind) in enumerate(items) if kind == ORDINARY}
    for place, (item, kind) in enumerate(items):
        if kind == REPEAT and first[item] > place:
            items[place], items[first[item]] = items[first[item]], items[place]
    return items


def _task(record: PreferenceRecord, cmp_id: str, kind: str, person: int, seed: int) -> Task:
    ids = [response.id for response in record.responses]
    order = _random(seed, f"order {cmp_id} {person}").sample(ids, len(ids))
    if kind == REPEAT:
        order.reverse()
    named = hashlib.sha256(f"{seed}:{cmp_id}:{person}:{kind}".encode()).hexdigest()[:16]
    texts = tuple(record.text_of(name) for name in order)
    who = f"a{person + 1:02d}"
    return Task(f"t{named}", cmp_id, who, kind, shown_prompt(record.prompt), texts, tuple(order))


def shown_prompt(prompt: Prompt) -> str:
    """Return a prompt as an annotator reads it: one question as it is, a dialogue with its roles."""
    if isinstance(prompt, list) and len(prompt) == 1:
        return prompt[0]["content"]
    return prompt_text(prompt)


def text_digest(text: str) -> str:
    """Return a short digest of a text, blind to the blanks that tools change."""
    return hashlib.sha256(normalised(text).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _random(seed: int, purpose: str) -> random.Random:
    return random.Random(f"{seed}:{purpose}")


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """What a task was."""

    cmp_id: str
    annotator: str
    kind: str
    order: tuple[str, ...]
    prompt: str
    "Digest of the prompt as shown."
    texts: tuple[str, ...]
    "Digests of the texts in the order shown."


@dataclass(frozen=True, slots=True)
class Key:
    """The key of one export: tasks by id, and the comparisons themselves."""

    tasks: dict[str, KeyEntry]
    comparisons: dict[str, dict[str, Any]]
    "cmp_id -> comparison record as JSON values."


def make_key(tasks: Sequence[Task], records: Sequence[PreferenceRecord]) -> Key:
    """Return the key of tasks."""
    entries = {
        task.task_id: KeyEntry(
            task.cmp_id,
            task.annotator,
            task.kind,
            task.order,
            text_digest(task.prompt),
            tuple(text_digest(text) for text in task.texts),
        )
        for task in tasks
    }
    used = {task.cmp_id for task in tasks}
    comparisons = {
        cmp_id_of(record): {**record_to_json(record), "id": cmp_id_of(record)}
        for record in records
        if cmp_id_of(record) in used
    }
    return Key(entries, comparisons)


def write_key(key: Key, path: Path) -> None:
    """Write a key; it holds sources and right answers, so it is not for annotators."""
    content = {
        "schema": KEY_SCHEMA,
        "schema_version": 1,
        "tasks": {name: asdict(entry) for name, entry in key.tasks.items()},
        "comparisons": key.comparisons,
    }
    write_text(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def read_key(path: Path) -> Key:
    """Read a key.

    Raises:
        DataError: missing, or not a key.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
        if content["schema"] != KEY_SCHEMA:
            raise KeyError("schema")
        tasks = {
            name: KeyEntry(**{**entry, "order": tuple(entry["order"]), "texts": tuple(entry["texts"])})
            for name, entry in content["tasks"].items()
        }
        return Key(tasks, content["comparisons"])
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(f"the key cannot be read: {error}", where=str(path), code="bad-key") from error
