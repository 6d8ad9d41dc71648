"""`triptych status`: the runs of a store, and the stages of one."""

from __future__ import annotations

import argparse

from pipeline.cli import arguments
from pipeline.locks import is_held
from pipeline.manifest import RunManifest, StageStatus, read_manifest, run_names
from pipeline.record import EnvironmentRecord, environment_changes
from pipeline.store import Store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("run", nargs="?", help="a run's name or its run file; default: all runs")
    arguments.add_store(parser)


def main(args: argparse.Namespace) -> int:
    """Print one line a run, or one line a stage. Writes nothing."""
    store = arguments.open_store(args)
    if args.run is not None:
        return _show_run(store, read_manifest(store, arguments.run_name(args.run)))
    from pipeline.cli.tables import show

    rows = []
    for name in run_names(store):
        manifest = read_manifest(store, name)
        states = [status.state for status in manifest.stages.values()]
        summary = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        rows.append((name, summary, manifest.updated))
    show(("run", "stages", "updated"), rows)
    return 0


def _show_run(store: Store, manifest: RunManifest) -> int:
    from pipeline.cli.tables import show
    from pipeline.record import environment

    now = environment()
    rows = []
    for name in manifest.order:
        status = manifest.stages[name]
        state, text = _state(store, status, now)
        key = (status.key or "")[:12]
        rows.append((name, status.kind, state, key, f"{status.seconds:.1f} s", text))
    show(("stage", "kind", "state", "key", "time", ""), rows, title=f"{manifest.name}, {manifest.updated}")
    return 0


def _state(store: Store, status: StageStatus, now: EnvironmentRecord) -> tuple[str, str]:
    """Return a stage's state as it is now, which the manifest may not know yet."""
    if status.state == "running" and not is_held(store.lock_path(f"key-{status.key}")):
        return "interrupted", "its process is gone; the same run command goes on"
    if status.state != "complete" or status.key is None:
        return status.state, status.message
    if not store.has(status.key):
        return "gone", "its files are no longer in the store"
    drift = ", ".join(environment_changes(store.load(status.key).environment, now))
    notes = [status.message] if status.message else []
    return status.state, "; ".join([*notes, f"made with another environment: {drift}"] if drift else notes)
