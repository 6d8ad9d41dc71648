"""Kills runs at random moments and compares where they end with an undisturbed run, bit for bit.

python -m tests.faults.random_kills --kills 200           the demo's chain, cut down to seconds a stage
python -m tests.faults.random_kills --kills 40 --fakes    stages without models, much faster

A round is one run, killed again and again until it gets through. Half of the kills hit the
run and half its stage. A run lives a third of the chain's time at most before it is killed, so that
most kills hit a stage that has begun. Prints a line a round and exits 1 when one ends with other bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.chain import DEMO, ROOT, SMALL
from tests.fakes.engine import Engine

Digests = dict[str, dict[str, str]]


def start(folder: Path, words: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start `triptych run` in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (folder / "run.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "pipeline.cli.main", "run", *words],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
        )


def outputs(folder: Path) -> Digests:
    """Return the digest of every committed output."""
    found: Digests = {}
    for path in folder.glob("store/stages/*/*/record.json"):
        record = json.loads(path.read_text())
        found[record["stage"]] = {role: output["digest"] for role, output in record["outputs"].items()}
    return found


def children(pid: int) -> list[int]:
    """Return the child processes of a process."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def disturbed(folder: Path, words: Sequence[str], chance: random.Random, longest: float) -> int:
    """Run until the run gets through; kill it after a random time each but the last. Count the kills."""
    kills = 0
    while True:
        run = start(folder, words)
        end = time.monotonic() + chance.uniform(0.05, longest)
        while run.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        if run.poll() is None:
            stages = children(run.pid)
            victim = chance.choice([run.pid, *stages[-1:]])
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
                kills += 1
        if run.wait(timeout=600) == 0:
            return kills


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="end after the round that reaches this")
    parser.add_argument("--fakes", action="store_true", help="stages without models")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    chance = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        words = [str(DEMO), *SMALL, "tracking.wandb=off", "--store", "store"]
        if args.fakes:
            words = [str(Engine(folder / "files").file), "--store", "store"]
        (folder / "reference").mkdir()
        began = time.monotonic()
        if start(folder / "reference", words).wait() != 0:
            sys.stdout.write((folder / "reference" / "run.log").read_text())
            return 1
        longest = time.monotonic() - began
        expected = outputs(folder / "reference")
        kills, rounds, wrong = 0, 0, 0
        while kills < args.kills:
            rounds += 1
            (folder / f"round-{rounds}").mkdir()
            kills += disturbed(folder / f"round-{rounds}", words, chance, longest / 3)
            if outputs(folder / f"round-{rounds}") != expected:
                wrong += 1
                sys.stdout.write(f"round {rounds} ended with other bytes\n")
            sys.stdout.write(f"round {rounds}: {kills} kills so far\n")
            sys.stdout.flush()
        sys.stdout.write(f"{kills} kills in {rounds} rounds; {rounds - wrong} of {rounds} end bit-equal\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
