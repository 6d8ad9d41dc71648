"""What a stage took of the machine: memory and tokens, measured by its child; and its price."""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from pipeline.config.strict import StrictModel
from pipeline.tracking.lines import parse_line

TOKENS = "num_tokens"
"Metric that counts the tokens computed so far; it goes on after a resume."
SECONDS_PER_HOUR = 3600.0
DEFAULT_CURRENCY = "USD"


class CostRecord(StrictModel):
    """What the attempt that finished a stage needed. Time stands in the record's `seconds`."""

    peak_memory_bytes: int = Field(ge=0)
    "Most memory that the child held at once: resident set, libraries included."
    peak_gpu_memory_bytes: int | None = None
    "Most bytes that PyTorch held allocated on the GPU; None without one."
    num_tokens: int | None = None
    "Tokens computed over all attempts, prompts included and padding not; None when they are not counted."
    parts: dict[str, float] = Field(default_factory=dict)
    """Seconds by part, which add up to the stage's: `earlier` attempts; `start`, in which the process
    begins, imports and ends; `work`, the stage itself, loading included; `seal`, in which what it wrote
    is hashed and flushed. Empty in records of older versions."""


def measure(metrics: Path, parts: Mapping[str, float]) -> CostRecord:
    """Measure this process at the end of its stage, whose parts took so many seconds."""
    tokens = last_value(metrics, TOKENS)
    return CostRecord(
        peak_memory_bytes=peak_memory_bytes(),
        peak_gpu_memory_bytes=_peak_gpu_memory_bytes(),
        num_tokens=None if tokens is None else round(tokens),
        parts={name: round(seconds, 3) for name, seconds in parts.items()},
    )


def with_attempts(cost: CostRecord, *, earlier: float, last: float | None) -> CostRecord:
    """Return a cost whose parts add up to all attempts.

    Args:
        cost: as the child measured it.
        earlier: seconds of the attempts before.
        last: seconds of the one that finished; None when nobody lived to see its end.
    """
    if not cost.parts:
        return cost
    inside = sum(cost.parts.values())
    start = 0.0 if last is None else max(0.0, last - inside)
    before = {"earlier": round(earlier, 3)} if earlier else {}
    return cost.model_copy(update={"parts": {**before, "start": round(start, 3), **cost.parts}})


def price_of(seconds: float, price_per_hour: float | None) -> float | None:
    """Return what a time on the machine costs; None without a price."""
    return None if price_per_hour is None else seconds / SECONDS_PER_HOUR * price_per_hour


def process_age_seconds(stat: Path = Path("/proc/self/stat")) -> float:
    """Return how long ago this process began; 0 where the system does not say."""
    try:
        # The second field, the name in brackets, may hold anything; the start is the 20th behind it.
        ticks = int(stat.read_text().rpartition(")")[2].split()[19])
        uptime = float(stat.parents[1].joinpath("uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0.0
    return max(0.0, uptime - ticks / os.sysconf("SC_CLK_TCK"))


def peak_memory_bytes(status: Path = Path("/proc/self/status")) -> int:
    """Return the most memory that this process held at once.

    Linux keeps getrusage's number across exec, so a small child of a large process would report its
    parent's; VmHWM is the process's own.
    """
    try:
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def last_value(metrics: Path, name: str) -> float | None:
    """Return the last finite value of a metric; only lines that name it are parsed."""
    if not metrics.is_file():
        return None
    word, found = json.dumps(name).encode(), None
    with metrics.open("rb") as stream:
        for text in stream:
            if word in text:
                found = text
    line = parse_line(found) if found else None
    value = line.metrics.get(name) if line else None
    return value if value is not None and abs(value) < float("inf") else None


def _peak_gpu_memory_bytes() -> int | None:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return sum(int(torch.cuda.max_memory_allocated(number)) for number in range(torch.cuda.device_count()))
