"""What a record of metrics costs beside the optimizer step that it describes, in CPU time.

python -m tests.benchmarks.bench_logging
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from pipeline.tracking.jsonl import MetricsFile
from tests.tiny import tiny_config

METRICS = [f"family/metric_{number}" for number in range(30)]
"""As many as PPO logs."""


def main() -> None:
    """Time both, interleaved in one process, and print the share."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(1)
    step = _step(args.batch, args.length)
    step()
    with tempfile.TemporaryDirectory() as folder:
        log = MetricsFile(Path(folder) / "metrics.jsonl")
        steps, records = [], []
        for number in range(args.steps):
            steps.append(_seconds(step))
            metrics = _record(number)
            records.append(_seconds(lambda at=number, line=metrics: log.log(line, step=at, epoch=at / 10)))
            log.progress(number, args.steps)
        log.close()
    step_seconds, record_seconds = (sorted(values)[len(values) // 2] for values in (steps, records))
    print(f"step of a two-layer model of width 32, {args.batch} rows of {args.length} tokens:")
    print(f"  optimizer step {step_seconds * 1e3:8.3f} ms CPU, median of {args.steps}")
    print(f"  one record     {record_seconds * 1e3:8.3f} ms CPU, {len(METRICS)} metrics, flushed")
    print(f"  share          {record_seconds / step_seconds:8.2%}")


def _step(rows: int, length: int):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(tiny_config())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    ids = torch.randint(5, 261, (rows, length))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()

    return step


def _record(step: int) -> dict[str, float]:
    return {name: 1.0 / (step + number + 1) for number, name in enumerate(METRICS)}


def _seconds(call) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


if __name__ == "__main__":
    main()
