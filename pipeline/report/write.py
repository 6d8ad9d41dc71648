"""Writes the report of a run beside its manifest, whole or not at all."""

from __future__ import annotations

from pathlib import Path

from pipeline.report.collect import collect
from pipeline.report.page import render
from pipeline.store import Store

REPORT_NAME = "report.html"


def write_report(store: Store, name: str, *, live: bool = False, out: Path | None = None) -> Path:
    """Write the report of a run and return where it is.

    Args:
        store: where the run is.
        name: its name.
        live: the run goes on; the page then loads itself again.
        out: another file than `<store>/runs/<name>/report.html`.

    Raises:
        StoreError: there is no such run, or its manifest was changed.
    """
    path = out or store.run_folder(name) / REPORT_NAME
    content = render(collect(store, name, live=live)).encode("utf-8")
    if out is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    store.disk.write(path, content)
    return path
