"""Stops a run at each disk operation, by SIGKILL or an error, and lets the next run go on.

python -m tests.faults.sweep kill                 every operation
python -m tests.faults.sweep torn                 in the middle of copies and deletions
python -m tests.faults.sweep twice --stride 7     a second kill while the first is mended
python -m tests.faults.sweep errno                six errors, once and for ever

Prints one line and exits 1 when any state ends otherwise than an undisturbed run.
"""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.disk import BeforeOperation
from pipeline.errors import UserError
from pipeline.verify import verify_store
from tests.fakes.engine import Engine

ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EMFILE)
TORN_OPERATIONS = ("copy", "rmtree", "write")
CHAIN = """\
name: {name}
seed: 1
tracking: {{wandb: "off"}}
stages:
  first: {{kind: tests.fakes.source, inputs: {{text: corpus.txt}}}}
  second: {{kind: tests.fakes.adder, inputs: {{parent: first}}, rate: 2}}
"""


@dataclass(frozen=True)
class Outcome:
    """How many states were tried and which ended wrong."""

    states: int
    faults: tuple[str, ...]


@dataclass(frozen=True)
class Sweep:
    """States of one chain, each in a folder of its own."""

    folder: Path
    reference: dict[str, dict[str, str]]
    operations: tuple[tuple[str, str], ...]

    @classmethod
    def prepare(cls, folder: Path) -> Sweep:
        """Run the chain once undisturbed and write down its operations."""
        engine = Engine(folder / "reference", text=CHAIN)
        seen: list[tuple[str, str]] = []
        engine.run_here(before=lambda name, path: seen.append((name, path.name)))
        return cls(folder, engine.outputs(), tuple(seen))

    def fresh(self, name: str) -> Engine:
        """Return an engine on an empty folder."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        return Engine(self.folder / name, text=CHAIN)

    def fault(self, engine: Engine, label: str) -> str | None:
        """Let the next run go on undisturbed; say what is wrong with where it ends."""
        try:
            code = engine.run_here()
        except UserError as error:
            return f"{label}: the next run stopped: {error}"
        found = engine.outputs()
        verdict = verify_store(engine.store, hash_file=_hash, show=lambda _: None)
        left = [path.name for path in (engine.folder / "store" / "work").iterdir()]
        shutil.rmtree(engine.folder)
        if code != 0 or found != self.reference:
            return f"{label}: exit code {code}, other outputs"
        if verdict.findings:
            return f"{label}: {verdict.findings[0]}"
        return f"{label}: leftovers {left}" if left else None

    def kill(self, stride: int) -> Iterator[str | None]:
        """SIGKILL before every operation."""
        for number in range(0, len(self.operations), stride):
            engine = self.fresh(f"kill-{number}")
            _in_child(lambda engine=engine, number=number: engine.run_here(before=_killer(number)))
            yield self.fault(engine, f"kill at {number} {self.operations[number]}")

    def torn(self, stride: int) -> Iterator[str | None]:
        """SIGKILL in the middle of an operation that takes more than one step."""
        chosen = [n for n, (name, _) in enumerate(self.operations) if name in TORN_OPERATIONS]
        for number in chosen[::stride]:
            engine = self.fresh(f"torn-{number}")
            _in_child(lambda engine=engine, number=number: engine.run_here(before=_tearer(number)))
            yield self.fault(engine, f"torn at {number} {self.operations[number]}")

    def twice(self, stride: int) -> Iterator[str | None]:
        """SIGKILL, then SIGKILL again while the next run mends."""
        for first in range(0, len(self.operations), stride):
            for second in range(0, len(self.operations), stride):
                engine = self.fresh(f"twice-{first}-{second}")
                for number in (first, second):
                    _in_child(lambda engine=engine, number=number: engine.run_here(before=_killer(number)))
                yield self.fault(engine, f"kill at {first}, then at {second}")

    def errno(self, stride: int) -> Iterator[str | None]:
        """Each error at every operation, once and from then on."""
        for code in ERRORS:
            for lasting in (False, True):
                offset = (ERRORS.index(code) * 2 + lasting) % stride
                for number in range(offset, len(self.operations), stride):
                    yield self._one_errno(number, code, lasting=lasting)

    def _one_errno(self, number: int, code: int, *, lasting: bool) -> str | None:
        label = f"{errno.errorcode[code]} {'from' if lasting else 'at'} {number} {self.operations[number]}"
        engine = self.fresh(f"errno-{number}-{code}-{lasting}")
        try:
            ended = engine.run_here(before=_failer(number, code, lasting=lasting))
        except UserError as error:
            if not error.findings[0].where:
                return f"{label}: the error names no path"
        else:
            if ended == 0 and engine.outputs() != self.reference:
                return f"{label}: success with other outputs"
        return self.fault(engine, label)


def run(mode: str, stride: int) -> Outcome:
    """Run one kind of sweep."""
    # SIGKILL loses nothing that the kernel holds, so memory is as good as a disk, and faster.
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        sweep = Sweep.prepare(Path(folder))
        modes: dict[str, Callable[[int], Iterable[str | None]]] = {
            "kill": sweep.kill,
            "torn": sweep.torn,
            "twice": sweep.twice,
            "errno": sweep.errno,
        }
        answers = list(modes[mode](stride))
    return Outcome(len(answers), tuple(answer for answer in answers if answer))


def _killer(number: int) -> BeforeOperation:
    count = iter(range(10**9))

    def before(name: str, path: Path) -> None:
        if next(count) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return before


def _tearer(number: int) -> BeforeOperation:
    count = iter(range(10**9))

    def before(name: str, path: Path) -> None:
        if next(count) != number:
            return
        if name == "rmtree":
            next(entry for entry in sorted(path.rglob("*")) if entry.is_file()).unlink()
        else:
            path.write_bytes(b'{"torn')
        os.kill(os.getpid(), signal.SIGKILL)

    return before


def _failer(number: int, code: int, *, lasting: bool) -> BeforeOperation:
    count = iter(range(10**9))

    def before(name: str, path: Path) -> None:
        now = next(count)
        if now == number or (lasting and now > number):
            raise OSError(code, os.strerror(code), str(path))

    return before


def _in_child(task: Callable[[], object]) -> None:
    """Run a task in a forked process that may die."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            task()
            code = 0
        finally:
            os._exit(code)
    os.waitpid(child, 0)


def _hash(path: Path) -> str:
    from pipeline.fingerprint import file_digest

    return file_digest(path)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mode", choices=("kill", "torn", "twice", "errno"))
    parser.add_argument("--stride", type=int, default=1, help="take every n-th operation only")
    args = parser.parse_args()
    outcome = run(args.mode, args.stride)
    for fault in outcome.faults:
        sys.stdout.write(fault + "\n")
    good = outcome.states - len(outcome.faults)
    sys.stdout.write(f"{args.mode}: {good} of {outcome.states} states end as they should\n")
    return 1 if outcome.faults else 0


if __name__ == "__main__":
    sys.exit(main())
