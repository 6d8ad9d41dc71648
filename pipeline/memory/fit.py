"""The largest batch, length and tuning that a card holds, found by asking the plan again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from pipeline.config.run import TuningConfig
from pipeline.config.strict import StrictModel
from pipeline.memory.estimate import StageMemory

Needs = Callable[[StrictModel], StageMemory]
BATCH, LENGTH, ROWS = "per_device_train_batch_size", "max_length", "generation_batch_size"
_MOST_ROWS, _MOST_TOKENS, _LENGTH_STEP = 1024, 131_072, 64


@dataclass(frozen=True, slots=True)
class Fitting:
    """What fits, each with every other setting as it is unless it says so."""

    batch: int | None
    "Largest per_device_train_batch_size at this max_length; None when not even the smallest fits."
    length: int | None
    "Largest max_length with the smallest micro-batch; None when not even 64 tokens fit."
    micro_batch_tokens: int | None
    "Tokens of the largest batch."
    tuning: str
    "The least change of `tuning` with which the batch as it is fits; empty when none does or none is needed."
    sampled: int | None = None
    "Largest generation_batch_size, for a stage that samples."
    least: int = 1
    "Smallest per_device_train_batch_size that the stage can have."

    @property
    def remedy(self) -> str:
        """What to write in the run file so that the stage fits."""
        ways = [self.tuning] if self.tuning else []
        if self.batch:
            ways.append(f"{BATCH}: {self.batch}")
        elif self.length:
            ways.append(f"{BATCH}: {self.least} and {LENGTH}: {self.length}")
        if self.sampled:
            ways.append(f"{ROWS}: {self.sampled}")
        return "; or ".join(ways) or "a smaller base, or a larger card"


def fitting(needs: Needs, config: StrictModel, budget: int, *, max_positions: int | None) -> Fitting:
    """Search the largest settings whose expected peak is within a budget of bytes."""

    def fits(**changes: Any) -> bool:
        return needs(config.model_copy(update=changes)).total.expected <= budget

    fields = type(config).model_fields
    batch = length = sampled = tokens = None
    least = 1
    if BATCH in fields and LENGTH in fields:
        sizes = [rows for rows in range(1, _MOST_ROWS + 1) if _can_have(config, rows)] or [1]
        least = sizes[0]
        found = _largest(lambda n: fits(**{BATCH: sizes[n - 1]}), len(sizes))
        batch = None if found is None else sizes[found - 1]
        if batch is not None:
            tokens = batch * int(getattr(config, LENGTH))
        most = min(max_positions or _MOST_TOKENS, _MOST_TOKENS) // _LENGTH_STEP
        steps = _largest(lambda n: fits(**{BATCH: least, ROWS: 1, LENGTH: n * _LENGTH_STEP}), most)
        length = None if steps is None else steps * _LENGTH_STEP
    if ROWS in fields:
        most = int(getattr(config, "rollout_batch_size", _MOST_ROWS))
        sampled = _largest(lambda rows: fits(**{ROWS: rows}), most)
    tuning = "" if fits() else _least_change(fits, config)
    return Fitting(batch, length, tokens, tuning, sampled, least)


def _can_have(config: StrictModel, rows: int) -> bool:
    """Say whether the stage takes micro-batches of so many rows: groups must be whole, kto needs two."""
    try:
        type(config).model_validate({**dict(config), BATCH: rows})
    except ValidationError:
        return False
    return True


def _least_change(fits: Callable[..., bool], config: StrictModel) -> str:
    tuning = getattr(config, "tuning", None)
    if not isinstance(tuning, TuningConfig):
        own = "gradient_checkpointing"
        possible = own in type(config).model_fields and fits(**{own: True})
        return f"{own}: true" if possible else ""
    for changes in _CHANGES:
        if fits(tuning=tuning.model_copy(update=changes)):
            shown = ", ".join(f"{key}: {str(value).lower()}" for key, value in changes.items())
            return f"tuning: {{{shown}}}"
    return ""


_CHANGES: tuple[dict[str, Any], ...] = (
    {"gradient_checkpointing": True},
    {"gradient_checkpointing": True, "activation_offloading": True},
    {"method": "qlora"},
    {"method": "qlora", "gradient_checkpointing": True},
    {"method": "qlora", "gradient_checkpointing": True, "activation_offloading": True},
)
"Changes of the tuning, the least first."


def _largest(holds: Callable[[int], bool], most: int) -> int | None:
    """Return the largest number from 1 for which a falling condition holds, or None."""
    if not holds(1):
        return None
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low
