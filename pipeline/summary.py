"""A finished or running run as one small JSON document with a versioned schema, for other dashboards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

from pipeline.canonical import finite
from pipeline.cost import price_of
from pipeline.report.view import RunView, StageView

SCHEMA = "triptych/run-summary"
SCHEMA_VERSION = 1
"Grows when a field changes its meaning or goes away; a new field alone leaves it."
SPEED = "tokens_per_second"


def summarise(
    run: RunView, *, price_per_hour: float | None = None, currency: str | None = None
) -> dict[str, Any]:
    """Return a run's summary; its fields are listed in docs/summary.md.

    Args:
        run: the run as the report sees it.
        price_per_hour: what the machine costs; None takes the run file's.
        currency: what that is in; None takes the run file's.
    """
    price = run.price_per_hour if price_per_hour is None else price_per_hour
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "name": run.name,
        "state": state_of(run),
        "updated": run.updated,
        "price_per_hour": price,
        "currency": currency or run.currency,
        "command_seconds": dict(run.times) or None,
        "totals": totals(run.stages, price),
        "stages": [_stage(stage, price) for stage in run.stages],
    }


def state_of(run: RunView) -> str:
    """Return the state of a run: the worst of its stages, or complete."""
    states = {stage.state for stage in run.stages}
    for state in ("running", "failed", "damaged", "interrupted", "blocked", "waiting"):
        if state in states:
            return state
    return "complete"


def totals(stages: Iterable[StageView], price_per_hour: float | None) -> dict[str, Any]:
    """Return sums over stages, and the largest peaks. `new_` leaves out what was reused."""
    stages = list(stages)
    seconds = sum(stage.seconds or 0.0 for stage in stages)
    fresh = sum(stage.seconds or 0.0 for stage in stages if stage.state != "reused")
    return {
        "seconds": round(seconds, 3),
        "new_seconds": round(fresh, 3),
        "seconds_by_part": _sums(stage.cost.parts for stage in stages if stage.cost),
        "tokens": sum(stage.cost.num_tokens or 0 for stage in stages if stage.cost),
        "peak_memory_bytes": _largest(stage.cost.peak_memory_bytes for stage in stages if stage.cost),
        "peak_gpu_memory_bytes": _largest(stage.cost.peak_gpu_memory_bytes for stage in stages if stage.cost),
        "price": _rounded(price_of(seconds, price_per_hour)),
        "new_price": _rounded(price_of(fresh, price_per_hour)),
    }


def speed_of(stage: StageView) -> float | None:
    """Return a stage's median speed in tokens a second, as logged; None when it logs none."""
    values = (
        [value for value in stage.series[SPEED].values if value == value] if SPEED in stage.series else []
    )
    return median(values) if values else None


def _stage(stage: StageView, price_per_hour: float | None) -> dict[str, Any]:
    cost = stage.cost
    speed = speed_of(stage)
    return {
        "name": stage.name,
        "kind": stage.kind,
        "state": stage.state,
        "key": stage.key or None,
        "parents": {item.role: item.producer for item in stage.inputs if item.producer},
        "seconds": stage.seconds,
        "seconds_by_part": (dict(cost.parts) or None) if cost else None,
        "tokens": cost.num_tokens if cost else None,
        "tokens_per_second": None if speed is None else round(speed, 3),
        "peak_memory_bytes": cost.peak_memory_bytes if cost else None,
        "peak_gpu_memory_bytes": cost.peak_gpu_memory_bytes if cost else None,
        "price": None if stage.seconds is None else _rounded(price_of(stage.seconds, price_per_hour)),
        "device": stage.environment.get("device"),
        "attempts": len(stage.attempts),
        "gate": {"bounds": dict(stage.gate_bounds), "closed": list(stage.gate_closed)},
        "alarms": [{"name": alarm.name, "step": alarm.step} for alarm in stage.alarms],
        "metrics": {name: finite(float(value)) for name, value in stage.metrics.items()},
        "notes": list(stage.notes),
        "message": stage.reason,
    }


def _sums(parts: Iterable[Mapping[str, float]]) -> dict[str, float] | None:
    """Return the sum of each part over stages; None when no stage knows its parts."""
    sums: dict[str, float] = {}
    for found in parts:
        for name, seconds in found.items():
            sums[name] = round(sums.get(name, 0.0) + seconds, 3)
    return sums or None


def _largest(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def _rounded(price: float | None) -> float | None:
    return None if price is None else round(price, 6)
