"""How much memory a card has: as a person writes it, or as nvidia-smi reports it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass

from pipeline.errors import UserError

GIB = 2**30
_UNITS = {"": GIB, "g": GIB, "gib": GIB, "gb": 10**9, "mib": 2**20, "mb": 10**6, "m": 2**20}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)
_ASK_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class CardSize:
    """A card's memory and what it is called."""

    name: str
    memory_bytes: int


def parse_size(text: str) -> CardSize:
    """Read a size such as 24GiB, 24GB or 24 (GiB).

    Raises:
        UserError: it is neither.
    """
    match = _SIZE.fullmatch(text)
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None or float(match[1]) <= 0:
        raise UserError(f"{text!r} is not the size of a card", hint="--gpu 24GiB", code="bad-gpu")
    return CardSize(text.strip(), int(float(match[1]) * unit))


def local_card() -> CardSize | None:
    """Return the card that stages will run on, as nvidia-smi reports it; None without one."""
    program, visible = shutil.which("nvidia-smi"), os.environ.get("CUDA_VISIBLE_DEVICES")
    if program is None or visible in ("", "-1"):
        return None
    first = ["-i", visible.split(",")[0]] if visible else []
    command = [program, *first, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_ASK_SECONDS, check=True)
        name, _, mebibytes = answer.stdout.splitlines()[0].rpartition(",")
        return CardSize(name.strip(), int(mebibytes) * 2**20)
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return None


def num_cards() -> int:
    """Return how many cards a run can see; 0 without any, or where nvidia-smi does not say."""
    program, visible = shutil.which("nvidia-smi"), os.environ.get("CUDA_VISIBLE_DEVICES")
    if program is None or visible in ("", "-1"):
        return 0
    try:
        answer = subprocess.run(
            [program, "-L"], capture_output=True, text=True, timeout=_ASK_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return 0
    there = sum(line.startswith("GPU ") for line in answer.stdout.splitlines())
    return min(there, len(visible.split(","))) if visible else there
