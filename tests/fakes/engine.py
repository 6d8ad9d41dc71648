"""Helps tests of the engine: writes run files of fake stages and runs them, in or out of process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.config.load import LoadedRun, load_run
from pipeline.disk import BeforeOperation, Disk
from pipeline.launch import Listener, StopRequests, died
from pipeline.runner import Runner
from pipeline.store import Store
from pipeline.work import Failure, WorkFolder
from pipeline.worker import StopSignal, perform
from tests.fakes.source import read_model

CHAIN = """\
name: {name}
seed: 1
tracking: {{wandb: "off"}}
stages:
  first: {{kind: tests.fakes.source, inputs: {{text: corpus.txt}}}}
  second: {{kind: tests.fakes.adder, inputs: {{parent: first}}, rate: 2}}
  third: {{kind: tests.fakes.adder, inputs: {{parent: second, other: first}}}}
"""
# corpus.txt holds 6 bytes and the seed is 1: first = 1 + 6 + 3 * 1, second = 1 + 10 + 3 * 2,
# third = 1 + 17 + 10 + 3 * 1.
VALUES = {"first": 10.0, "second": 17.0, "third": 31.0}


@dataclass
class Recorder:
    """A display that remembers what it was told."""

    said: list[str] = field(default_factory=list)
    states: list[tuple[str, str]] = field(default_factory=list)
    steps: list[tuple[str, int]] = field(default_factory=list)

    def say(self, text: str) -> None:
        self.said.append(text)

    def stage(self, name: str, state: str, text: str = "") -> None:
        self.states.append((name, state))
        self.said.append(text)

    def progress(self, name: str, step: int, total: int, *, text: str) -> None:
        self.steps.append((name, step))

    def now(self) -> dict[str, str]:
        """The last state of each stage."""
        return dict(self.states)


@dataclass
class Engine:
    """A folder with a run file, an input and a store."""

    folder: Path
    text: str = CHAIN
    name: str = "chain"
    display: Recorder = field(default_factory=Recorder)

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        (self.folder / "corpus.txt").write_text("hello\n")
        self.write(self.text)

    @property
    def file(self) -> Path:
        return self.folder / f"{self.name}.yaml"

    @property
    def store(self) -> Store:
        return Store(self.folder / "store")

    @property
    def tally(self) -> list[str]:
        """One line for each step that any process computed."""
        path = self.folder / "tally.txt"
        return path.read_text().splitlines() if path.exists() else []

    def write(self, text: str) -> None:
        self.text = text
        self.file.write_text(text.format(name=self.name) if "{name}" in text else text)

    def load(self, *overrides: str) -> LoadedRun:
        tallies = [
            f"{stage}.tally={self.folder / 'tally.txt'}" for stage in load_run(self.file).config.stages
        ]
        return load_run(self.file, [*tallies, *overrides])

    def run(self, *overrides: str, keep_going: bool = False) -> int:
        """Run with real child processes."""
        self.display = Recorder()
        return Runner(self.load(*overrides), self.store, self.display, keep_going=keep_going).go()

    def run_here(
        self,
        *overrides: str,
        before: BeforeOperation | None = None,
        keep_going: bool = False,
        until: Sequence[str] = (),
    ) -> int:
        """Run with every stage in this process, so that one hook sees every disk operation."""
        self.display = Recorder()
        disk = Disk(before)
        store = Store(self.folder / "store", disk=disk)
        run = self.load(*overrides)
        start = InProcess(disk)
        return Runner(run, store, self.display, keep_going=keep_going, until=until, start=start).go()

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `triptych run` on the store and do not wait for it."""
        tally = [f"{name}.tally={self.folder / 'tally.txt'}" for name in load_run(self.file).config.stages]
        command = [sys.executable, "-m", "pipeline.cli.main", "run", self.file.name, "--store", "store"]
        return subprocess.Popen(
            [*command, *tally, *arguments],
            cwd=self.folder,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command line in a child process, in this folder."""
        return subprocess.run(
            [sys.executable, "-m", "pipeline.cli.main", *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )

    def values(self) -> dict[str, float]:
        """The number that each stage's committed model holds."""
        return {name: read_model(folder / "model") for name, folder in self.stage_folders().items()}

    def outputs(self) -> dict[str, dict[str, str]]:
        """Digest of every committed output."""
        store = self.store
        return {
            name: {role: output.digest for role, output in store.load(folder.name).outputs.items()}
            for name, folder in self.stage_folders().items()
        }

    def stage_folders(self) -> dict[str, Path]:
        """Folder of every committed stage of the store, by the stage's name."""
        store = self.store
        return {store.load(key).stage: store.stage_folder(key) for key in store.keys()}  # noqa: SIM118


@dataclass
class InProcess:
    """Runs a stage in the engine's own process."""

    disk: Disk

    def __call__(
        self, work: WorkFolder, *, listen: Listener, stop: StopRequests, lock: Path
    ) -> Failure | None:
        def progress(step: int, total: int, text: str) -> None:
            listen(step, total, text)

        try:
            code = perform(work, stop=StopSignal(), progress=progress, disk=self.disk)
        except Exception:  # noqa: BLE001 - a bug in a child ends the child; the reason is in failure.json
            code = 1
        return None if code == 0 else work.read_failure() or died(code, oom=False)
