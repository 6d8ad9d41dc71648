"""The memory of every stage of a plan: whose base it stands on, what it needs, what would fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from pipeline.config.strict import StrictModel
from pipeline.contract import StageCheck
from pipeline.errors import Finding, ModelError
from pipeline.inputs import BASE, FromStage, FromUser
from pipeline.memory.card_size import GIB, CardSize
from pipeline.memory.estimate import StageMemory, estimate
from pipeline.memory.families import read_shape, shape_of
from pipeline.memory.fit import Fitting, fitting
from pipeline.memory.shape import ModelShape
from pipeline.plan import Plan, PlannedStage
from pipeline.store import Store


@dataclass(frozen=True, slots=True)
class MemoryRow:
    """One stage on one card."""

    stage: str
    kind: str
    memory: StageMemory | None
    "None where it cannot be known."
    unknown_because: str = ""
    fitting: Fitting | None = None
    "The largest settings that fit."
    fits: bool = True


def memory_rows(plan: Plan, store: Store, card: CardSize) -> list[MemoryRow]:
    """Return what each stage needs of a card, or why it is not said. Reads config.json files only."""
    return [_row(plan, store, stage, card) for stage in plan.stages]


def memory_findings(plan: Plan, rows: list[MemoryRow], card: CardSize) -> list[Finding]:
    """Return a finding for every stage that cannot fit."""
    return [
        Finding(
            f"stage {row.stage!r} needs {gib(row.memory.total.expected)} GiB at its peak "
            f"({row.memory.phase}), and the card has {gib(card.memory_bytes)}",
            plan.run.where(f"stages.{row.stage}"),
            row.fitting.remedy if row.fitting else "",
            "too-large-for-card",
        )
        for row in rows
        if row.memory is not None and not row.fits
    ]


def hopeless_findings(plan: Plan, rows: list[MemoryRow], card: CardSize) -> list[Finding]:
    """Return a finding for every stage that is to run and fits not even in the low case."""
    to_run = {stage.name for stage in plan.to_run}
    rows = [row for row in rows if row.memory is not None and row.stage in to_run]
    return memory_findings(
        plan, [row for row in rows if row.memory and row.memory.total.low > card.memory_bytes], card
    )


def gib(size: float) -> str:
    """Write bytes as GiB."""
    return f"{size / GIB:.1f}"


def _row(plan: Plan, store: Store, stage: PlannedStage, card: CardSize) -> MemoryRow:
    spec, config = stage.wired.spec, stage.wired.config
    declare = spec.memory
    if declare is None:
        computes = "tuning" in type(config).model_fields
        because = f"{spec.kind} declares none" if computes else "it computes nothing on a card"
        return MemoryRow(stage.name, spec.kind, None, because)
    roles = tuple(stage.wired.inputs)
    try:
        shape = _shape(plan, store, stage)
    except ModelError as error:
        return MemoryRow(stage.name, spec.kind, None, str(error.findings[0].message))
    if shape is None:
        return MemoryRow(stage.name, spec.kind, None, "the base is not on this machine yet")

    accelerate = stage.wired.accelerate
    parts = accelerate.num_processes if accelerate.in_parts else 1

    def needs(changed: StrictModel) -> StageMemory:
        return estimate(replace(declare(StageCheck(stage.name, changed, {}, roles)), parts=parts), shape)

    memory = needs(config)
    found = fitting(needs, config, card.memory_bytes, max_positions=shape.max_positions)
    fits = memory.total.expected <= card.memory_bytes
    return MemoryRow(stage.name, spec.kind, memory, fitting=found, fits=fits)


def _shape(plan: Plan, store: Store, stage: PlannedStage) -> ModelShape | None:
    """Return the shape of the base that a stage stands on; None when nothing here knows it yet.

    Raises:
        ModelError: its config.json cannot be read, or its family is not known.
    """
    origin = stage.wired.inputs.get(BASE)
    if isinstance(origin, FromUser):
        path = origin.path or (origin.model.path if origin.model else None)
        return None if path is None else read_shape(path)
    if isinstance(origin, FromStage):
        parent = next(other for other in plan.stages if other.name == origin.stage)
        if parent.record is not None:
            return read_shape(store.checkpoint(parent.record, origin.output).path)
        return _shape(plan, store, parent)
    return _from_scratch(stage.wired.config)


def _from_scratch(config: StrictModel) -> ModelShape | None:
    architecture = getattr(config, "architecture", None)
    if not isinstance(architecture, Mapping):
        return None
    sizes = {"vocab_size": getattr(config, "vocab_size", 0), **architecture}
    return shape_of(sizes, where="architecture")


def term_names(rows: list[MemoryRow]) -> Iterator[str]:
    """Yield the terms that any stage has, in their order."""
    seen: dict[str, None] = {}
    for row in rows:
        seen.update(dict.fromkeys(row.memory.terms if row.memory else ()))
    yield from seen
