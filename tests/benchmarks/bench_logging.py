"""What a record of metrics costs beside the optimizer step that it describes, in CPU time.

python -m tests.benchmarks.bench_logging
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from pipeline.tracking.jsonl import MetricsFile
from tests.tiny import tiny_config

SIZES = (12, 30)
"As many metrics as DPO logs after a step, and as many as PPO logs after an iteration."


def main() -> None:
    """Time steps and records, interleaved in one process, and print the share of each size.

    A record is timed right after a step, which has filled the caches with other things: it then costs
    several times what it costs in a loop of its own. What the clock itself takes there is taken off.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(1)
    step = _step(args.batch, args.length)
    step()
    steps: list[float] = []
    records: dict[int, list[float]] = {size: [] for size in (0, *SIZES)}
    with tempfile.TemporaryDirectory() as folder:
        logs = {size: MetricsFile(Path(folder) / f"{size}.jsonl") for size in SIZES}
        for number in range(args.steps):
            for size, found in records.items():
                steps.append(_seconds(step))
                line = _record(number, size)
                found.append(_seconds(_writer(logs.get(size), line, number)))
        warm = {size: _warm(log, size) for size, log in logs.items()}
    whole, clock = median(steps), median(records[0])
    print(f"step of a two-layer model of width 32, {args.batch} rows of {args.length} tokens:")
    print(f"  optimizer step        {whole * 1e3:7.3f} ms CPU, median of {len(steps)}")
    for size in SIZES:
        cost = median(records[size]) - clock
        print(
            f"  record of {size:2} metrics  {cost * 1e3:7.3f} ms CPU after a step, {cost / whole:.2%} of it;"
            f" {cost / 0.01:.2%} of a step of 10 ms; {warm[size] * 1e6:.0f} us in a loop of its own"
        )


def _writer(log: MetricsFile | None, line: dict[str, float], step: int) -> Callable[[], None]:
    if log is None:
        return lambda: None
    return lambda: log.log(line, step=step, epoch=step / 10)


def _warm(log: MetricsFile, size: int, *, times: int = 1000) -> float:
    """Return the seconds of one record when nothing else runs between them."""
    began = time.thread_time()
    for number in range(times):
        log.log(_record(number, size), step=number)
    written = time.thread_time() - began
    began = time.thread_time()
    for number in range(times):
        _record(number, size)
    return (written - (time.thread_time() - began)) / times


def _step(rows: int, length: int) -> Callable[[], None]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(tiny_config())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    ids = torch.randint(5, 261, (rows, length))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()

    return step


def _record(step: int, size: int) -> dict[str, float]:
    return {f"family/metric_{number}": 1.0 / (step + number + 1) for number in range(size)}


def _seconds(call: Callable[[], None]) -> float:
    began = time.thread_time()
    call()
    return time.thread_time() - began


if __name__ == "__main__":
    main()
