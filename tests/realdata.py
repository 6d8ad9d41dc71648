"""Finds the real files that some tests read; they are not part of the project."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def find_realdata(*parts: str) -> Path:
    """Return a real file, or skip the test with a reason."""
    named = os.environ.get("TRIPTYCH_REALDATA")
    beside = Path(__file__).resolve().parents[1].parent / "shared" / "realdata"
    above = beside.parents[2] / "shared" / "realdata"
    for root in [Path(named)] if named else [beside, above]:
        if root.joinpath(*parts).exists():
            return root.joinpath(*parts)
    pytest.skip(f"real file {'/'.join(parts)} is not here; set TRIPTYCH_REALDATA to its folder")
