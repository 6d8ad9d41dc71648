"""Kills a PPO stage at random moments, and in the middle of saving a checkpoint; it must end bit-equal.

    python -m tests.faults.ppo_kills --kills 20 --saves 20

The stage runs in a forked child, so that nearly all of its time is training and not imports. `--saves`
kills right before the n-th disk operation of its savings, n at random. Prints one line and exits 1 when
weights, rollouts or final metrics differ from those of an undisturbed run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from pipeline.contract import Checkpoint
from pipeline.disk import Disk
from stages.ppo import SPEC, PPOConfig
from stages.runtime.saving import checkpoints
from tests.ppo_setup import chain, config
from tests.tiny import stage_context

Outcome = dict[str, bytes]


def settings() -> PPOConfig:
    """Return settings with everything that is carried from one iteration to the next."""
    return config(
        total_iterations=8,
        save_steps=1,
        normalize_scores=True,
        kl_target=0.5,
        kl_horizon=20.0,
        keep="best",
        rollout_prompts=2,
    )


def start(root: Path, inputs: Mapping[str, Checkpoint], *, die_at: int | None = None) -> int:
    """Run the stage in a forked child and return its process id.

    Args:
        root: of its output and scratch folders.
        inputs: of the stage.
        die_at: the child kills itself right before this disk operation of its savings.
    """
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        if die_at is not None:
            _die_before(die_at)
        shutil.rmtree(root / "output", ignore_errors=True)
        ctx = stage_context(root, settings(), inputs)
        result = SPEC.run(ctx)
        (root / "metrics.json").write_text(json.dumps(result.metrics, sort_keys=True))
        code = 0
    finally:
        os._exit(code)


def outcome(root: Path) -> Outcome:
    """Return every byte that a finished stage gave."""
    files = [path for path in sorted((root / "output").rglob("*")) if path.is_file()]
    found = {str(path.relative_to(root)): path.read_bytes() for path in files}
    return {**found, "metrics.json": (root / "metrics.json").read_bytes()}


def finish(child: int) -> bool:
    """Wait for a child; True when it got through."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def kill_at_random(
    root: Path, inputs: Mapping[str, Checkpoint], chance: random.Random, *, kills: int, longest: float
) -> int:
    """Run the stage, kill it `kills` times at random moments, and let it get through; count its starts.

    Raises:
        RuntimeError: it failed by itself.
    """
    for attempt in range(kills):
        child = start(root, inputs)
        time.sleep(chance.uniform(0.0, longest))
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        if finish(child):
            return attempt + 1
    if not finish(start(root, inputs)):
        raise RuntimeError("the stage failed by itself")
    return kills + 1


def kill_in_save(root: Path, inputs: Mapping[str, Checkpoint], operation: int) -> bool:
    """Kill the stage before a disk operation of its savings, then let it get through; say if it was."""
    killed = not finish(start(root, inputs, die_at=operation))
    if killed and not finish(start(root, inputs)):
        raise RuntimeError("the stage failed by itself")
    return killed


def _die_before(operation: int) -> None:
    left = operation

    def before(*_: object) -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoints.Disk = lambda: Disk(before=before)  # type: ignore[misc,assignment]


def main() -> int:
    """Kill as often as asked and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="random kills, five a run")
    parser.add_argument("--saves", type=int, default=20, help="runs killed in the middle of a save")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    chance = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        inputs = chain(folder / "chain")
        began = time.monotonic()
        if not finish(start(folder / "reference", inputs)):
            sys.stdout.write("the undisturbed run failed\n")
            return 1
        longest, expected = time.monotonic() - began, outcome(folder / "reference")
        wrong, done = 0, 0
        for number in range(-(-args.kills // 5)):
            root = folder / f"kills-{number}"
            done += kill_at_random(root, inputs, chance, kills=5, longest=longest / 3) - 1
            wrong += outcome(root) != expected
        saves = 0
        for number in range(args.saves):
            root = folder / f"saves-{number}"
            saves += kill_in_save(root, inputs, chance.randint(1, 8 * 14))
            wrong += outcome(root) != expected
        sys.stdout.write(
            f"{done} random kills, {saves} kills in a save: {wrong} runs ended with other bytes\n"
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
