"""Finds what no run and no pin needs any more, and deletes it when asked to."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pipeline.canonical import read_sealed, sealed
from pipeline.errors import BusyError, StoreError
from pipeline.locks import Holder, held, is_held, who_holds
from pipeline.manifest import read_manifest, run_names
from pipeline.paths import is_digest
from pipeline.record import timestamp
from pipeline.store import Store

PIN_TYPE = "stage-pin"
YOUNGEST_SECONDS = 3600.0
"A stage committed within the last hour is never deleted."
CACHE_SECONDS = 30 * 24 * 3600.0
"A cached result that no stage used for this long may go."
_PIN_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")


@dataclass(frozen=True, slots=True)
class Garbage:
    """A folder that nothing needs."""

    path: Path
    what: str
    num_bytes: int


def find_garbage(store: Store) -> list[Garbage]:
    """Return what may go: stages without a run or pin, work and drafts that nobody continues.

    Raises:
        StoreError: a manifest or pin cannot be read. What it needs is not known, so nothing may go.
    """
    needed = _needed(store)
    found = []
    for key in store.keys():  # noqa: SIM118 - Store is no mapping
        if key not in needed and not _is_young(store, key):
            found.append(_garbage(store.own_folder(key), _name(store, key)))
    for folder in _below(store.root / "work"):
        if folder.name not in needed and not is_held(store.lock_path(f"key-{folder.name}")):
            found.append(_garbage(folder, "unfinished stage that no run asks for"))
    for part, what in (("tmp", "leftover of an import"), ("quarantine", "damaged stage, set aside")):
        found += [_garbage(folder, what) for folder in _below(store.root / part)]
    return [*found, *_unused_cache(store)]


@contextlib.contextmanager
def alone(store: Store) -> Iterator[None]:
    """Keep runs from starting for the length of a block.

    Raises:
        BusyError: a run is at work, or another process clears the store.
    """
    holder = Holder(os.getpid(), "triptych gc", timestamp())
    with held(store.lock_path("store"), holder):
        for path in sorted((store.root / "locks").glob("run-*.lock")):
            if is_held(path):
                raise BusyError(
                    f"a run is at work: {who_holds(path)}", hint="wait until it ends", code="busy"
                )
        yield


def delete(store: Store, garbage: list[Garbage]) -> int:
    """Delete garbage and return the bytes that are free again.

    A stage folder is first moved out of `stages`, so that no reader meets half of one.
    """
    for item in garbage:
        aside = store.root / "tmp" / f"gc-{item.path.name}"
        store.disk.make_folder(aside.parent)
        if item.path.parent == aside.parent or not store.disk.publish(item.path, aside):
            aside = item.path
        store.disk.remove_tree(aside)
    return sum(item.num_bytes for item in garbage)


def pin(store: Store, name: str, keys: list[str], *, note: str) -> Path:
    """Keep stages whatever becomes of the runs that made them.

    Raises:
        StoreError: the name is not one, or is taken by other stages.
    """
    path = _pin_path(store, name)
    if path.exists() and read_pin(path) != set(keys):
        raise StoreError(
            f"the pin {name!r} keeps other stages", hint=f"triptych gc --unpin {name}", code="pin"
        )
    store.disk.make_folder(path.parent)
    document = {"type": PIN_TYPE, "version": 1, "keys": sorted(keys), "note": note, "since": timestamp()}
    store.disk.write(path, sealed(document))
    return path


def unpin(store: Store, name: str) -> None:
    """Take a pin away; what it kept goes with the next gc that is told to delete.

    Raises:
        StoreError: there is no such pin.
    """
    path = _pin_path(store, name)
    if not path.exists():
        known = ", ".join(pin_names(store)) or "none"
        raise StoreError(f"there is no pin {name!r}", hint=f"pins here: {known}", code="pin")
    store.disk.remove(path)


def pin_names(store: Store) -> list[str]:
    """Return the names of all pins."""
    return sorted(path.stem for path in (store.root / "pins").glob("*.json"))


def read_pin(path: Path) -> set[str]:
    """Return the keys that a pin keeps.

    Raises:
        StoreError: the file was changed.
    """
    keys = read_sealed(path, type_name=PIN_TYPE, version=1).get("keys")
    if not isinstance(keys, list) or not all(map(is_digest, keys)):
        raise StoreError("not a valid pin", where=str(path), code="damaged")
    return set(keys)


def with_ancestors(store: Store, keys: set[str]) -> set[str]:
    """Return these stages and every stage that they were made from."""
    found: set[str] = set()
    waiting = list(keys)
    while waiting:
        key = waiting.pop()
        if key in found:
            continue
        found.add(key)
        if store.has(key):
            producers = (given.producer_key for given in store.load(key).inputs.values())
            waiting += [producer for producer in producers if producer is not None]
    return found


def _needed(store: Store) -> set[str]:
    keys: set[str] = set()
    for name in run_names(store):
        statuses = read_manifest(store, name).stages.values()
        keys.update(status.key for status in statuses if status.key is not None)
    for path in (store.root / "pins").glob("*.json"):
        keys |= read_pin(path)
    return with_ancestors(store, keys)


def _is_young(store: Store, key: str) -> bool:
    try:
        ended = datetime.fromisoformat(store.load(key).ended)
    except StoreError:
        # A damaged stage tells no time; it goes to quarantine when somebody needs it.
        return True
    return (datetime.now(UTC) - ended).total_seconds() < YOUNGEST_SECONDS


def _unused_cache(store: Store) -> list[Garbage]:
    """Return cached results that nobody used for long, and what an interrupted write left."""
    found = []
    for folder in filter(Path.is_dir, _below(store.shared_cache)):
        idle = time.time() - folder.stat().st_mtime
        if idle >= CACHE_SECONDS:
            found.append(_garbage(folder, f"cached result, unused for {idle / 86400:.0f} days"))
        elif folder.name.startswith(".") and idle >= YOUNGEST_SECONDS:
            found.append(_garbage(folder, "leftover of a cached result"))
    return found


def _name(store: Store, key: str) -> str:
    record = store.load(key)
    return f"stage {record.stage} ({record.kind}), made {record.ended}"


def _garbage(path: Path, what: str) -> Garbage:
    sizes = (entry.lstat().st_size for entry in path.rglob("*")) if path.is_dir() else [path.lstat().st_size]
    return Garbage(path, what, sum(sizes))


def _below(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _pin_path(store: Store, name: str) -> Path:
    if not _PIN_NAME.match(name):
        raise StoreError(f"{name!r} is not a name for a pin", hint="letters, digits, . _ -", code="pin")
    return store.root / "pins" / f"{name}.json"
