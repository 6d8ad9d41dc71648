"""What a stage took of the machine: memory and tokens, measured by its child; and its price."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

from pydantic import Field

from pipeline.config.strict import StrictModel
from pipeline.tracking.lines import parse_line

TOKENS = "num_tokens"
"Metric that counts the tokens computed so far; it goes on after a resume."
SECONDS_PER_HOUR = 3600.0


class CostRecord(StrictModel):
    """What the attempt that finished a stage needed. Time stands in the record's `seconds`."""

    peak_memory_bytes: int = Field(ge=0)
    "Most memory that the child held at once: resident set, libraries included."
    peak_gpu_memory_bytes: int | None = None
    "Most bytes that PyTorch held allocated on the GPU; None without one."
    num_tokens: int | None = None
    "Tokens computed over all attempts, prompts included and padding not; None when they are not counted."


def measure(metrics: Path) -> CostRecord:
    """Measure this process at the end of its stage."""
    tokens = last_value(metrics, TOKENS)
    return CostRecord(
        peak_memory_bytes=peak_memory_bytes(),
        peak_gpu_memory_bytes=_peak_gpu_memory_bytes(),
        num_tokens=None if tokens is None else round(tokens),
    )


def price_of(seconds: float, price_per_hour: float | None) -> float | None:
    """Return what a time on the machine costs; None without a price."""
    return None if price_per_hour is None else seconds / SECONDS_PER_HOUR * price_per_hour


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
