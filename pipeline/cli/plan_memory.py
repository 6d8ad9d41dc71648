"""`triptych plan --gpu`: a row a stage, what fits, and the findings for what does not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.cli import tables
from pipeline.errors import ConfigError
from pipeline.inputs import RunFile
from pipeline.memory.card_size import CardSize, local_card
from pipeline.memory.hardware import find_card
from pipeline.memory.hardware_file import read_hardware
from pipeline.memory.planned import (
    MemoryRow,
    gib,
    hopeless_findings,
    memory_findings,
    memory_rows,
)
from pipeline.plan import Plan, make_plan
from pipeline.store import Store

NEEDS = ("stage", "base", "adapters", "grads", "optim", "peak of", "there", "needs", "low - high", "fits")
LARGEST = ("stage", "largest batch", "tokens", "largest length", "sampled at once")
_NEEDS_NOTE = "GiB, rows as long as max_length; low: half as long, high: a fragmented allocator."
_LARGEST_NOTE = "Each with every other setting as it is; the largest length with the smallest batch."


def card_of(text: str | None, hardware: Path | None) -> CardSize | None:
    """Return the card that --gpu names, of the shipped ones and those of a file, else this machine's.

    Raises:
        ConfigError: no card has that name, or the file is wrong.
    """
    known = read_hardware(hardware) if hardware is not None or text is not None else None
    return local_card() if text is None or known is None else find_card(text, known)


def show_memory(rows: Sequence[MemoryRow], card: CardSize) -> None:
    """Print what each stage needs of a card."""
    known = [row for row in rows if row.memory is not None]
    notes = [f"{row.stage}: no plan, {row.unknown_because}" for row in rows if row.memory is None]
    notes += [
        f"{row.stage}: tight, {gib(row.memory.total.high)} GiB in the high case"
        for row in rows
        if row.memory is not None and row.fits and row.memory.total.high > card.memory_bytes
    ]
    notes += [
        f"{row.stage}: up to {gib(row.memory.waiting)} GiB of the host's memory hold activations"
        for row in known
        if row.memory is not None and row.memory.waiting
    ]
    title = f"memory on {card.name}, {gib(card.memory_bytes)} GiB"
    tables.show(NEEDS, [_needs(row) for row in known], title=title, notes=[_NEEDS_NOTE, *notes])
    title = "what fits on this card"
    tables.show(LARGEST, [_largest(row) for row in known], title=title, notes=[_LARGEST_NOTE])


def refuse(plan: Plan, rows: list[MemoryRow], card: CardSize) -> None:
    """Raise what cannot fit.

    Raises:
        ConfigError: a finding for each stage that needs more than the card has.
    """
    findings = memory_findings(plan, rows, card)
    if findings:
        raise ConfigError.from_findings(findings)


def refuse_hopeless(run: RunFile, store: Store) -> None:
    """Stop a run on this machine's card that cannot fit, before a second of its time is spent.

    Raises:
        ConfigError: a finding for each stage that is to run and needs more than the card even with
            rows half as long as max_length.
    """
    card = local_card()
    if card is None:
        return
    plan = make_plan(run, store)
    if plan.wiring.findings:
        return
    findings = hopeless_findings(plan, memory_rows(plan, store, card), card)
    if findings:
        raise ConfigError.from_findings(findings)


def as_json(rows: Sequence[MemoryRow], card: CardSize) -> dict[str, Any]:
    """Return the rows as plain values, sizes in bytes."""
    return {"card": card.name, "memory_bytes": card.memory_bytes, "stages": [_plain(row) for row in rows]}


def plan_memory(plan: Plan, store: Store, card: CardSize | None) -> list[MemoryRow]:
    """Return the rows for a card; none without one."""
    return [] if card is None else memory_rows(plan, store, card)


def _needs(row: MemoryRow) -> list[str]:
    memory = row.memory
    if memory is None:
        return [row.stage]
    terms, total = memory.terms, memory.total
    fixed = [gib(terms[name].expected) for name in ("base", "adapters and heads", "gradients", "optimizer")]
    there = gib(terms[memory.phase].expected)
    span = f"{gib(total.low)} - {gib(total.high)}"
    return [row.stage, *fixed, memory.phase, there, gib(total.expected), span, "yes" if row.fits else "NO"]


def _largest(row: MemoryRow) -> list[Any]:
    found = row.fitting
    if found is None:
        return [row.stage]
    return [row.stage, found.batch, found.micro_batch_tokens, found.length, found.sampled]


def _plain(row: MemoryRow) -> dict[str, Any]:
    if row.memory is None:
        return {"stage": row.stage, "kind": row.kind, "unknown_because": row.unknown_because}
    memory, found = row.memory, row.fitting
    return {
        "stage": row.stage,
        "kind": row.kind,
        "fits": row.fits,
        "peak_of": memory.phase,
        "num_trained": memory.num_trained,
        "host_bytes": round(memory.waiting),
        "terms": {name: _case(value) for name, value in memory.terms.items()},
        "allocated": _case(memory.allocated),
        "total": _case(memory.total),
        "largest_batch": found.batch if found else None,
        "largest_micro_batch_tokens": found.micro_batch_tokens if found else None,
        "largest_length": found.length if found else None,
        "largest_generation_batch": found.sampled if found else None,
        "remedy": "" if row.fits or found is None else found.remedy,
    }


def _case(value: Any) -> dict[str, int]:
    return {"low": round(value.low), "expected": round(value.expected), "high": round(value.high)}
