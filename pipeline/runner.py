"""Walks the plan of a run: reuses, runs, blocks behind closed gates, and sums up in an exit code."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from pipeline import hub
from pipeline.display import Display
from pipeline.errors import ExitCode
from pipeline.inputs import FromStage, FromUser, RunFile, WiredStage
from pipeline.launch import StopRequests, launch
from pipeline.ledger import Ledger
from pipeline.locks import held
from pipeline.make import Launch, Made, NotMade, StageMaker, holder
from pipeline.manifest import RunManifest, gate_status
from pipeline.plan import Plan, make_plan
from pipeline.preflight import preflight
from pipeline.store import Store
from pipeline.tracking.trackers import Trackers

_STOPPING = "stopping: the stage saves its state first; press again to end at once"


class Runner:
    """One run of one run file.

    Args:
        run: the loaded run file.
        store: where results are and go.
        display: who is told.
        keep_going: run the stages that do not depend on a failed one, too.
        until: make these stages and what they are made from, and no others; all when empty.
        start: starts a stage's child.
    """

    def __init__(
        self,
        run: RunFile,
        store: Store,
        display: Display,
        *,
        keep_going: bool = False,
        until: Sequence[str] = (),
        start: Launch = launch,
    ) -> None:
        self._run = run
        self._name = run.config.name
        self._store = store
        self._display = display
        self._keep_going = keep_going
        self._until = tuple(until)
        self._start = start
        self._stop = StopRequests()
        self._exit_code: int = ExitCode.OK
        self._failed = False
        self._ledger: Ledger | None = None

    @property
    def manifest(self) -> RunManifest:
        """The run's manifest as last written."""
        return self._book.manifest

    def go(self, *, before_seconds: float = 0.0, finish: Callable[[], None] | None = None) -> int:
        """Run every stage that is not in the store and return the exit code.

        Args:
            before_seconds: how long the program had run before, for the account of time.
            finish: called when all stages had their turn, with the run still held; writes the report.

        Raises:
            UserError: something is wrong before the first stage, or with the store.
        """
        began = time.monotonic()
        self._store.create()
        lock = self._store.lock_path(f"run-{self._name}")
        with (
            held(lock, holder(self._name), waiting=self._waits),
            self._stop.listening(lambda: self._display.say(_STOPPING)),
        ):
            # gc holds this lock while it deletes: a run that has begun keeps it from starting.
            with held(self._store.lock_path("store"), holder(self._name), waiting=self._waits_for_store):
                pass
            plan = self._plan()
            wanted = {stage.name for stage in plan.wiring.until(self._until)}
            self._ledger = Ledger(self._run, plan.wiring.stages, self._store)
            times = {"start": before_seconds, "plan": time.monotonic() - began}
            in_stages = self._walk(plan, wanted)
            around = time.monotonic() - began - times["plan"] - in_stages
            times |= {"stages": in_stages, "publish": max(0.0, around)}
            self._ledger.spent(times)
            if finish is not None:
                finishing = time.monotonic()
                finish()
                self._ledger.spent({**times, "report": time.monotonic() - finishing})
        return self._exit_code

    def _walk(self, plan: Plan, wanted: set[str]) -> float:
        """Give every stage its turn; return the seconds that children ran."""
        folder = self._store.run_folder(self._name)
        trackers = Trackers(run=self._name, tracking=self._run.config.tracking, folder=folder)
        maker = StageMaker(self._name, self._store, self._display, trackers, self._stop, launch=self._start)
        try:
            for wired in plan.wiring.stages:
                if wired.name in wanted:
                    self._visit(wired, maker)
                elif (made := maker.take(wired)) is not None:
                    self._complete(wired, made)
        finally:
            trackers.close()
            self._store.digests.save()
        return maker.seconds

    @property
    def _book(self) -> Ledger:
        if self._ledger is None:
            raise ValueError("the run has not begun")
        return self._ledger

    def _plan(self) -> Plan:
        plan = make_plan(self._run, self._store)
        origins = [origin for wired in plan.wiring.stages for origin in wired.inputs.values()]
        users = [origin for origin in origins if isinstance(origin, FromUser) and origin.path is None]
        missing = dict.fromkeys(origin.model for origin in users if origin.model is not None)
        for model in missing:
            self._display.say(f"fetching {model.source} from the Hub")
            hub.download(model)
        if missing:
            plan = make_plan(self._run, self._store)
        preflight(plan, self._store)
        return plan

    def _visit(self, wired: WiredStage, maker: StageMaker) -> None:
        """Bring one stage as far as it can go, and note what became of it."""
        blocked = self._blocked_by(wired)
        if blocked:
            self._book.blocked(wired.name, blocked)
            self._display.stage(wired.name, "blocked", blocked)
            return
        if self._stop.requested:
            self._exit_code = ExitCode.INTERRUPTED
            return
        if self._failed and not self._keep_going:
            return

        def on_start(key: str, recipe: object) -> None:
            assert isinstance(recipe, dict)
            self._book.started(wired.name, key, recipe)
            self._display.stage(wired.name, "running")

        answer = maker.make(wired, on_start)
        if isinstance(answer, NotMade):
            self._not_made(wired, answer)
        else:
            self._complete(wired, answer)

    def _blocked_by(self, wired: WiredStage) -> str:
        """Return why a stage cannot start: a parent is not complete, or its gate is closed."""
        for origin in wired.inputs.values():
            if not isinstance(origin, FromStage):
                continue
            status = self.manifest.stages[origin.stage]
            if status.gate is not None and status.gate.closed:
                return f"gate of {origin.stage} is closed: " + "; ".join(status.gate.closed)
            if status.state in ("failed", "blocked", "interrupted"):
                return f"{origin.stage} is {status.state}"
            if status.state != "complete":
                return f"{origin.stage} did not run"
        return ""

    def _complete(self, wired: WiredStage, made: Made) -> None:
        gate = gate_status(wired.gate, made.record.metrics)
        self._book.complete(wired.name, made, gate)
        state = "reused" if made.reused else "complete"
        self._display.stage(wired.name, state, "" if made.reused else f"{made.record.seconds:.1f} s")
        for note in () if made.reused else made.record.notes:
            self._display.say(f"{wired.name}: {note}")
        if gate is not None and gate.closed:
            self._display.stage(wired.name, "gate closed", "; ".join(gate.closed))
            if self._exit_code == ExitCode.OK:
                self._exit_code = ExitCode.GATE_CLOSED

    def _not_made(self, wired: WiredStage, answer: NotMade) -> None:
        failure = answer.failure
        self._book.not_made(wired.name, answer)
        interrupted = failure.outcome == "interrupted"
        text = "\n".join(map(str, failure.findings))
        self._display.stage(wired.name, "interrupted" if interrupted else "failed", text)
        if interrupted:
            self._exit_code = ExitCode.INTERRUPTED
            self._display.say("run the same command to go on")
            return
        self._failed = True
        if self._exit_code in (ExitCode.OK, ExitCode.GATE_CLOSED):
            self._exit_code = failure.exit_code
        self._display.say(f"{wired.name}: {failure.outcome}; its log is {answer.log}")

    def _waits_for_store(self, other: str) -> None:
        self._display.say(f"waiting: {other} is at work on the store")

    def _waits(self, other: str) -> None:
        self._display.say(f"waiting: {other} is at work on a run of this name")
