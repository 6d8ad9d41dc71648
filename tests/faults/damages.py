"""Damages the newest checkpoint of every trainer, file by file, and lets the stage go on.

python -m tests.faults.damages                every file of every trainer's checkpoint
python -m tests.faults.damages ppo dpo        some stages only

Each stage of the cut-down demo is killed once it has two checkpoints. Then, on a copy of the store,
one file of the newest checkpoint is cut, removed or has one bit flipped, by turns, and the same
command goes on. It must name the file, use the checkpoint before, and end with the same bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.chain import DEMO, SMALL
from tests.faults.bit_flips import flip
from tests.faults.random_kills import children, outputs, start

PARENTS = {"base": None, "sft": "base", "reward": "sft", "dpo": "sft", "ppo": "reward"}
LONGER = (
    *("base.max_steps=8", "base.save_steps=1", "sft.max_steps=8", "sft.save_steps=1"),
    *("reward.max_steps=8", "reward.save_steps=1", "dpo.max_steps=8", "dpo.save_steps=1"),
    *("ppo.total_iterations=6", "ppo.save_steps=1"),
)


def cut(path: Path) -> None:
    """Keep the first half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_middle(path: Path) -> None:
    """Change the lowest bit of the byte in the middle."""
    flip(path, 8 * (path.stat().st_size // 2))


DAMAGES: tuple[Callable[[Path], None], ...] = (cut, Path.unlink, flip_middle)


def checkpoints(folder: Path) -> list[Path]:
    """Return the finished checkpoints of the stage at work, newest last."""
    ours = folder.glob("store/work/*/scratch/checkpoints/step-*")
    sealed = [path.with_suffix("") for path in folder.glob("store/work/*/scratch/trainer/checkpoint-*.seal")]
    found = [path for path in (*ours, *sealed) if path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def stop_after_two(folder: Path, words: Sequence[str]) -> None:
    """Start a run and kill it and its stage as soon as two checkpoints are there."""
    run = start(folder, words)
    while run.poll() is None and len(checkpoints(folder)) < 2:
        time.sleep(0.02)
    victims = [*children(run.pid), run.pid]
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    run.wait()
    if len(checkpoints(folder)) < 2:
        raise RuntimeError((folder / "run.log").read_text())


def finish(folder: Path, words: Sequence[str]) -> str:
    """Run to the end and return what was said and logged."""
    if start(folder, words).wait() != 0:
        return (folder / "run.log").read_text()
    records = folder.glob("store/stages/*/*/record.json")
    return (folder / "run.log").read_text() + "".join(path.read_text() for path in records)


def try_stage(stage: str, before: Path, place: Path) -> list[str]:
    """Damage each file of a stage's newest checkpoint in turn; return what went wrong."""
    common = [str(DEMO), *SMALL, *LONGER, "tracking.wandb=off", "--store", "store", "--until"]
    words, parent = [*common, stage], PARENTS[stage]
    if parent is not None:
        finish(before, [*common, parent])
    stopped = place / f"{stage}-stopped"
    shutil.copytree(before, stopped)
    stop_after_two(stopped, words)
    newest = checkpoints(stopped)[-1]
    names = sorted(str(path.relative_to(newest)) for path in newest.rglob("*") if path.is_file())
    finish(before, words)
    expected = outputs(before)[stage]
    faults = []
    for number, name in enumerate(names):
        folder = place / "damaged"
        shutil.copytree(stopped, folder)
        DAMAGES[number % len(DAMAGES)](folder / newest.relative_to(stopped) / name)
        said = finish(folder, words)
        label = f"{stage}, {newest.name}/{name} {DAMAGES[number % len(DAMAGES)].__name__}"
        if outputs(folder).get(stage) != expected:
            faults.append(f"{label}: other bytes")
        elif newest.name not in said or Path(name).name not in said:
            faults.append(f"{label}: the damage is not named")
        shutil.rmtree(folder)
    sys.stdout.write(f"{stage}: {len(names)} damaged files, {len(faults)} faults\n")
    sys.stdout.flush()
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("stages", nargs="*", default=list(PARENTS), help="stages of the demo")
    args = parser.parse_args()
    faults = []
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "before").mkdir()
        for stage in args.stages:
            faults += try_stage(stage, Path(place) / "before", Path(place))
    for fault in faults:
        sys.stdout.write(f"{fault}\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
