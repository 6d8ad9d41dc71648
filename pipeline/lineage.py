"""Says what a result was made from, down to files, Hub commits and environments."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.errors import StoreError
from pipeline.manifest import RunManifest, read_manifest
from pipeline.record import InputRecord, RowsRecord, StageRecord
from pipeline.store import Store

_SHOWN_PACKAGES = ("torch", "transformers", "trl", "peft")


@dataclass(frozen=True, slots=True)
class Node:
    """One stage, or one input of the user, in the tree of what a result was made from."""

    role: str
    "As what the node above used it; empty for the stage that was asked for."
    name: str
    "Stage name, file name or Hub id with commit."
    fingerprint: str
    record: StageRecord | None = None
    missing: bool = False
    "True when a stage's record is not in this store."
    inputs: list[Node] = field(default_factory=list)
    rows: RowsRecord | None = None
    "What the stage above made of the rows of this file."

    def to_json(self) -> dict[str, Any]:
        """Return the tree as plain values."""
        document: dict[str, Any] = {"role": self.role, "name": self.name, "fingerprint": self.fingerprint}
        if self.record is not None:
            document |= {
                "key": self.record.key,
                "kind": self.record.kind,
                "version": self.record.recipe.get("version"),
                "settings": self.record.recipe.get("config"),
                "metrics": self.record.metrics,
                "notes": list(self.record.notes),
                "environment": self.record.environment.model_dump(mode="json"),
                "ended": self.record.ended,
            }
        if self.rows is not None:
            document["rows"] = self.rows.model_dump(mode="json")
        if self.missing:
            document["missing"] = True
        return {**document, "inputs": [node.to_json() for node in self.inputs]}


def lineage(store: Store, run: str, stage: str | None = None) -> list[Node]:
    """Return the tree of a stage, or one tree for each last stage of a run.

    Raises:
        StoreError: no such run or stage, or the stage has no result.
    """
    manifest = read_manifest(store, run)
    if stage is not None and stage not in manifest.stages:
        hint = f"one of {', '.join(manifest.order)}"
        raise StoreError(f"run {run!r} has no stage {stage!r}", hint=hint, code="unknown-stage")
    names = [stage] if stage is not None else _last_stages(manifest)
    nodes = []
    for name in names:
        key = manifest.stages[name].key
        if key is None or not store.has(key):
            if stage is not None:
                raise StoreError(f"stage {name!r} has no result yet", hint=f"triptych status {run}")
            continue
        nodes.append(_stage_node(store, key, role="", fingerprint=""))
    return nodes


def lines(node: Node, *, indent: str = "", told: set[str] | None = None) -> Iterator[str]:
    """Yield the tree as text, one line a node and one for each note; a stage is told in full once."""
    told = set() if told is None else told
    label = f"{node.role}: " if node.role else ""
    if node.record is None:
        state = "  (its record is not in this store)" if node.missing else ""
        yield f"{indent}{label}{node.name}  sha256 {node.fingerprint[:16]}{state}"
        yield from _rows_line(node, indent)
        return
    record, recipe = node.record, node.record.recipe
    if record.key in told:
        yield f"{indent}{label}{node.name}  (key {record.key[:12]}, as above)"
        yield from _rows_line(node, indent)
        return
    told.add(record.key)
    made = f"{record.kind} version {recipe.get('version')}, key {record.key[:12]}, {record.ended}"
    yield f"{indent}{label}{node.name}  ({made})"
    yield from _rows_line(node, indent)
    settings = ", ".join(f"{name}={value}" for name, value in recipe.get("config", {}).items())
    yield f"{indent}    settings: {settings or 'all default'}"
    yield f"{indent}    environment: {_environment(record)}"
    if record.environment.computing:
        facts = ", ".join(f"{name}: {value}" for name, value in record.environment.computing.items())
        yield f"{indent}    computed with {facts}"
    for note in record.notes:
        yield f"{indent}    note: {note}"
    for child in node.inputs:
        yield from lines(child, indent=indent + "  ", told=told)


def _rows_line(node: Node, indent: str) -> Iterator[str]:
    """Yield what became of a file's rows; nothing for what was not counted."""
    if node.rows is None:
        return
    rows = node.rows
    line = f"{indent}    rows: {rows.read:,} read, {rows.accepted:,} accepted, {rows.rejected:,} rejected"
    if rows.rejected:
        reasons = ", ".join(f"{count:,} {check}" for check, count in rows.reasons.items())
        more = ", ..." if rows.rejected > len(rows.first_lines) else ""
        line += f" ({reasons}; lines {', '.join(map(str, rows.first_lines))}{more})"
    yield line


def _stage_node(store: Store, key: str, *, role: str, fingerprint: str) -> Node:
    record = store.load(key)
    inputs = [_input_node(store, name, given) for name, given in record.inputs.items()]
    return Node(role, record.stage, fingerprint, record, inputs=inputs)


def _input_node(store: Store, role: str, given: InputRecord) -> Node:
    if given.producer_key is None:
        return Node(role, given.source, given.fingerprint, rows=given.rows)
    if not store.has(given.producer_key):
        return Node(role, given.producer or "", given.fingerprint, missing=True, rows=given.rows)
    found = _stage_node(store, given.producer_key, role=role, fingerprint=given.fingerprint)
    return replace(found, rows=given.rows)


def _last_stages(manifest: RunManifest) -> list[str]:
    used = {source.stage for status in manifest.stages.values() for source in status.inputs.values()}
    return [name for name in manifest.order if name not in used]


def _environment(record: StageRecord) -> str:
    packages = record.environment.packages
    shown = [f"{name} {packages[name]}" for name in _SHOWN_PACKAGES if name in packages]
    return ", ".join([f"python {record.environment.python}", *shown, record.environment.device])
