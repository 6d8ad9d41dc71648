"""A machine that helps machine 0: it starts its ranks of stages that span machines, and writes nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pipeline.display import Display
from pipeline.errors import ExitCode
from pipeline.fingerprint import stage_key
from pipeline.inputs import RunFile, WiredStage
from pipeline.launch import StopRequests, launch_many
from pipeline.plan import input_fingerprints, make_plan, recipe_of
from pipeline.preflight import preflight
from pipeline.record import StageRecord
from pipeline.store import Store
from pipeline.work import WorkFolder

POLL_SECONDS = 1.0


class Helper:
    """One run on a machine that is not machine 0. The store is a folder that both see.

    Args:
        run: the loaded run file, with this machine's machine_rank.
        store: where machine 0 puts results.
        display: who is told.
        until: the stages that machine 0 was asked for; all when empty.
    """

    def __init__(self, run: RunFile, store: Store, display: Display, *, until: Sequence[str] = ()) -> None:
        self._run, self._store, self._display, self._until = run, store, display, until
        self._stop = StopRequests()
        self._records: dict[str, StageRecord] = {}

    def go(self) -> int:
        """Help with every stage that machine 0 makes, in its order, and return the exit code.

        Raises:
            UserError: something is wrong before the first stage.
        """
        plan = make_plan(self._run, self._store)
        preflight(plan, self._store)
        with self._stop.listening(lambda: self._display.say("stopping: the stage saves its state first")):
            for wired in plan.wiring.until(self._until):
                code = self._visit(wired)
                if code != ExitCode.OK:
                    return code
        return ExitCode.OK

    def _visit(self, wired: WiredStage) -> int:
        """Wait until a stage is in the store; take part in it where it spans machines."""
        fingerprints = input_fingerprints(wired, self._records)
        if fingerprints is None:
            raise ValueError(f"stage {wired.name} was asked for before its parents")
        key = stage_key(recipe_of(wired, fingerprints, self._store.digests))
        helped = wired.accelerate.num_machines == 1
        while (record := self._store.find(key)) is None:
            if self._stop.requested:
                return ExitCode.INTERRUPTED
            if helped:
                time.sleep(POLL_SECONDS)
                continue
            code = self._help(wired, key)
            if code != ExitCode.OK:
                return code
            helped = True
        self._records[wired.name] = record
        return ExitCode.OK

    def _help(self, wired: WiredStage, key: str) -> int:
        work = WorkFolder(self._store.work_folder(key))
        work.path.mkdir(parents=True, exist_ok=True)
        self._display.stage(wired.name, "helping")
        failure = launch_many(
            work,
            wired.accelerate,
            listen=lambda step, total, text: self._display.progress(wired.name, step, total, text=text),
            stop=self._stop,
            lock=self._store.lock_path(f"worker-{key}"),
        )
        if failure is None:
            return ExitCode.OK
        self._display.stage(wired.name, failure.outcome, "\n".join(map(str, failure.findings)))
        return int(failure.exit_code)
