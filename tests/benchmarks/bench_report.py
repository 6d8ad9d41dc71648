"""How long a large run's report takes to read, to write and to open: 50 stages, 1,000,000 points.

python -m tests.benchmarks.bench_report
"""

from __future__ import annotations

import argparse
import math
import random
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

from pipeline.report.page import render
from pipeline.report.view import InputView, StageView
from pipeline.tracking.jsonl import MetricsFile
from pipeline.tracking.lines import read_series
from tests.browser import look_at
from tests.report.sample_run import demo

STAGES, METRICS, POINTS = 50, 10, 2000
LOOK = """
const loaded = performance.getEntriesByType('navigation')[0].loadEventEnd;
const began = performance.now();
location.hash = '#curves';
const drawn = () => document.querySelectorAll('.plot svg').length;
new Promise((done) => {
  const wait = () => (drawn() || performance.now() - began > 20000 ? done() : requestAnimationFrame(wait));
  wait();
}).then(() => {
  console.warn(`opened ${loaded} ${performance.now() - began} ${drawn()}`);
  // A picture of the whole page would take longer than the page.
  document.body.replaceChildren();
})
"""


def main() -> None:
    """Write metrics and page, open it in headless Chromium several times, and print size and times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=5, help="how often the page is opened")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = [_write(Path(folder) / f"{number}.jsonl", number) for number in range(STAGES)]
        began = time.process_time()
        stages = [_stage(number, file) for number, file in enumerate(files)]
        was_read = time.process_time()
        text = render(replace(demo(), stages=stages))
        written = time.process_time()
        page = Path(folder) / "report.html"
        page.write_text(text, encoding="utf-8")
        opened, jumped, busy = zip(*(_open(page) for _ in range(args.times)), strict=True)
    print(f"{STAGES} stages, {STAGES * METRICS * POINTS:,} points: {len(text.encode()) / 1e6:.2f} MB")
    print(f"  metrics read in {was_read - began:.2f} s CPU, page written in {written - was_read:.2f} s CPU")
    print(f"  opened {args.times} times, seconds from navigation to the load event:")
    print(f"    median {median(opened):.2f}, slowest {max(opened):.2f}; main thread busy {median(busy):.2f}")
    print(f"    from a click on Curves to the first curve drawn: median {median(jumped):.2f}")


def _write(path: Path, number: int) -> Path:
    draw, log = random.Random(number), MetricsFile(path)
    for step in range(POINTS):
        wave = math.sin(step / 50)
        log.log({f"family/metric_{m}": wave + draw.gauss(0, 0.3) for m in range(METRICS)}, step=step)
    log.close()
    return path


def _stage(number: int, file: Path) -> StageView:
    before = f"s{number - 1}"
    inputs = [InputView("policy", "adapter", before, "5e" * 32, before)] if number else []
    series = read_series(file)
    return StageView(f"s{number}", "ppo", "ran", key="a" * 64, seconds=10.0, inputs=inputs, series=series)


def _open(page: Path) -> tuple[float, float, float]:
    seen = look_at(page, height=900, script=LOOK)
    opened, jumped, drawn = map(float, next(line for line in seen.console if "opened" in line).split()[1:])
    if not drawn:
        raise SystemExit("no curve was drawn")
    return opened / 1e3, jumped / 1e3, seen.busy_seconds


if __name__ == "__main__":
    main()
