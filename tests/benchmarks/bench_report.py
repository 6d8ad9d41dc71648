"""How long a large run's report takes to write and to open: 50 stages, 1,000,000 points.

python -m tests.benchmarks.bench_report
"""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from pipeline.report.page import render
from pipeline.report.view import StageView
from pipeline.tracking.lines import Series
from tests.browser import look_at
from tests.report.sample_run import demo

STAGES, METRICS, POINTS = 50, 10, 2000
LOADED = "console.warn('opened ' + performance.getEntriesByType('navigation')[0].loadEventEnd);"
LOADED += "document.body.replaceChildren()"
"A picture of the whole page would take longer than the page."


def main() -> None:
    """Write the page, open it in headless Chromium, and print size and times."""
    series = Series(list(range(POINTS)), [math.sin(i / 50) for i in range(POINTS)], [0.0] * POINTS)
    names = [f"family/metric_{number}" for number in range(METRICS)]
    stages = [
        StageView(f"s{number}", "ppo", "ran", key="a" * 64, series=dict.fromkeys(names, series))
        for number in range(STAGES)
    ]
    began = time.process_time()
    text = render(replace(demo(), stages=stages))
    written = time.process_time() - began
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        page.write_text(text, encoding="utf-8")
        seen = look_at(page, height=900, script=LOADED)
    opened = next(line for line in seen.console if "opened" in line).split()[-1]
    print(f"{STAGES} stages, {STAGES * METRICS * POINTS:,} points: {len(text.encode()) / 1e6:.2f} MB")
    print(f"  drawn as HTML in {written:.2f} s CPU")
    print(f"  loaded and drawn by Chromium {float(opened) / 1e3:.2f} s after navigation")


if __name__ == "__main__":
    main()
