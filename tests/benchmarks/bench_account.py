"""How much of a run's wall time its own account of time explains, on the cut-down demo.

python -m tests.benchmarks.bench_account
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from pipeline.manifest import read_manifest
from pipeline.store import Store
from tests.chain import small_demo


def main() -> None:
    """Run the demo's stages, then run them again with nothing to do, and print both accounts."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for title in ("six stages made", "all of them reused"):
            began = time.monotonic()
            done = small_demo(folder=folder)
            wall = time.monotonic() - began
            if done.returncode:
                raise SystemExit(done.stdout + done.stderr)
            store = Store(folder / "store")
            manifest = read_manifest(store, "demo")
            _show(title, wall, manifest.times)
            if title.startswith("six"):
                records = [store.load(status.key) for status in manifest.stages.values() if status.key]
                _show_stages(wall, {record.stage: record.cost.parts for record in records if record.cost})


def _show(title: str, wall: float, times: dict[str, float]) -> None:
    known = sum(times.values())
    print(f"{title}: {wall:.2f} s of wall time, {known:.2f} s accounted for, {known / wall:.1%}")
    print("  " + ", ".join(f"{part} {seconds:.2f}" for part, seconds in sorted(times.items())))


def _show_stages(wall: float, parts: dict[str, dict[str, float]]) -> None:
    print(
        f"  stages alone: {sum(sum(found.values()) for found in parts.values()) / wall:.1%} of the wall time"
    )
    for stage, found in parts.items():
        line = ", ".join(f"{part} {seconds:.2f}" for part, seconds in sorted(found.items()))
        print(f"    {stage:10} {sum(found.values()):6.2f} s: {line}")


if __name__ == "__main__":
    main()
