"""One process against several: the largest difference of a logged number and of a weight, stage by stage.

    python -m tests.benchmarks.many_processes FOLDER [--processes 2]

CPU, gloo, a model of two layers. The folder gets the run file, the data and the stores.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from tests.many_setup import lines_of, run, verified, weight_distance, write_world

STAGES = ("base_stage", "sft", "reward", "dpo", "ppo")
LOSSES = ("loss", "eval_loss", "loss/policy_avg", "loss/value_avg")


def largest(folder: Path, stage: str, names: tuple[str, ...] | None = None) -> float:
    """Return the largest difference of the named numbers, of all when none are named."""
    pairs = zip(lines_of(folder, "one", stage), lines_of(folder, "many", stage), strict=True)
    apart = [abs(a[name] - b[name]) for a, b in pairs for name in a if names is None or name in names]
    return max(apart)


def main() -> None:
    """Print one row a stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    folder = write_world(args.folder.resolve())
    print("| stage | losses | all logged numbers | weights | verify | seconds, one | many |")
    print("|---|---|---|---|---|---|---|")
    for stage in STAGES:
        seconds = []
        for store, words in (("one", ()), ("many", (f"accelerate.num_processes={args.processes}",))):
            began = time.perf_counter()
            ended = run(folder, *words, store=store, until=stage)
            seconds.append(time.perf_counter() - began)
            assert ended.returncode == 0, ended.stderr
        row = [stage, f"{largest(folder, stage, LOSSES):.1e}", f"{largest(folder, stage):.1e}"]
        row += [f"{weight_distance(folder, 'one', 'many', stage):.1e}", str(verified(folder, "many"))]
        print("| " + " | ".join([*row, *(f"{each:.0f}" for each in seconds)]) + " |", flush=True)


if __name__ == "__main__":
    main()
