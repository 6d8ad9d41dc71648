"""Content digests: of files, folders, base models and Hub ids, and the key of a stage."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.canonical import digest
from pipeline.config.strict import StrictModel
from pipeline.errors import StoreError
from pipeline.paths import check_distinct, check_relative

RECIPE_TYPE = "stage-recipe/1"
YOUNG_SECONDS = 2.0
_BLOCK_BYTES = 2**20
_MODEL_SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".txt", ".tiktoken")


@dataclass(frozen=True, slots=True)
class FileDigest:
    """One file of a listing: its name in the folder, its size and what it holds."""

    path: str
    "Relative, with forward slashes."
    size: int
    "Bytes."
    sha256: str
    "Lower-case hex."


HashFile = Callable[[Path], str]


def file_digest(path: Path) -> str:
    """Return the sha256 of a regular file's bytes, in hex.

    Raises:
        StoreError: a link, a device, or a file that cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        with os.fdopen(descriptor, "rb", buffering=0) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise StoreError("not a regular file", where=str(path), code="not-a-file")
            hasher = hashlib.sha256()
            block = memoryview(bytearray(_BLOCK_BYTES))
            while count := stream.readinto(block):
                hasher.update(block[:count])
            return hasher.hexdigest()
    except OSError as error:
        reason = "a symbolic link" if path.is_symlink() else f"cannot be read: {error.strerror}"
        raise StoreError(reason, where=str(path), code="missing-file") from error


def list_folder(folder: Path) -> list[str]:
    """Return the relative paths of all files below a folder, in UTF-16 order.

    Raises:
        StoreError: a symbolic link or device, or a name that is refused everywhere.
    """
    paths = [check_relative(entry.relative_to(folder).as_posix()) for entry in _regular_files(folder)]
    check_distinct(paths)
    return sorted(paths, key=_utf16)


def listing(folder: Path, *, hash_file: HashFile = file_digest) -> list[FileDigest]:
    """Return name, size and digest of every file below a folder, in UTF-16 order."""
    return [describe(folder, path, hash_file=hash_file) for path in list_folder(folder)]


def describe(folder: Path, path: str, *, hash_file: HashFile = file_digest) -> FileDigest:
    """Return name, size and digest of one file of a folder."""
    return FileDigest(path, (folder / path).lstat().st_size, hash_file(folder / path))


def tree_digest(files: Sequence[FileDigest]) -> str:
    """Return the digest of a folder: names, sizes and contents, whatever the order given."""
    ordered = sorted(files, key=lambda file: _utf16(file.path))
    return digest({"type": "tree/1", "files": [asdict(file) for file in ordered]})


def content_digest(path: Path, *, hash_file: HashFile = file_digest) -> str:
    """Return what a user's input holds as one digest: a file's sha256, a folder's tree digest."""
    return tree_digest(listing(path, hash_file=hash_file)) if path.is_dir() else hash_file(path.resolve())


def model_digest(folder: Path, *, hash_file: HashFile = file_digest) -> str:
    """Return the digest of a model folder: weights, configuration and tokenizer, nothing else.

    A Hub snapshot is a folder of links, so links to files are followed here.
    """
    chosen = [
        entry
        for entry in sorted(folder.iterdir())
        if entry.name.endswith(_MODEL_SUFFIXES) and not entry.name.startswith(".") and entry.is_file()
    ]
    files = [
        FileDigest(entry.name, entry.stat().st_size, hash_file(entry.resolve(strict=True)))
        for entry in chosen
    ]
    return tree_digest(files)


def hub_digest(model_id: str, commit: str) -> str:
    """Return the digest that stands for a Hub model: its id and its 40-hex commit."""
    return digest({"type": "hub/1", "id": model_id, "commit": commit})


def key_settings(
    config: StrictModel, *, hash_file: HashFile = file_digest, skip: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the settings that enter a stage key.

    A setting equal to its default is left out, so that a new option voids no old key.
    One marked `in_key: False` is left out always. One marked `by_content: True` that
    names a file counts by the file's digest.
    """
    settings: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        marks = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        value = getattr(config, name)
        default = field.get_default(call_default_factory=True)
        if marks.get("in_key") is False or value == default:
            continue
        if isinstance(value, StrictModel):
            base = default if isinstance(default, type(value)) else None
            inner = _nested(value, base, hash_file)
            if inner:
                settings[name] = inner
        elif marks.get("by_content") and isinstance(value, str | Path) and Path(value).is_file():
            settings[name] = f"sha256:{hash_file(Path(value).resolve())}"
        else:
            settings[name] = _plain(value)
    return settings


def defaults_digest(config_type: type[StrictModel]) -> str:
    """Return the digest of a config class's defaults, to notice one that changed."""
    return digest(defaults(config_type))


def recipe(
    kind: str,
    version: int,
    *,
    inputs: Mapping[str, str],
    config: Mapping[str, Any],
    order: Sequence[str] = (),
) -> dict[str, Any]:
    """Return what a stage computes, as JSON: the preimage of its key.

    Args:
        kind: stage kind.
        version: the card's version.
        inputs: role -> content digest.
        config: settings from `key_settings`.
        order: roles in the user's order, for a stage whose output shows them in that order.
    """
    document: dict[str, Any] = {
        "type": RECIPE_TYPE,
        "kind": kind,
        "version": version,
        "inputs": dict(inputs),
        "config": dict(config),
    }
    if order:
        document["order"] = list(order)
    return document


def stage_key(stage_recipe: Mapping[str, Any]) -> str:
    """Return the key under which a stage's result is stored."""
    return digest(stage_recipe)


class DigestCache:
    """Remembers digests by device, inode, size and times, so that a big file is read once.

    A file that was changed less than two seconds ago is read again: its times may not
    tell two writes apart. The cache is only ever a saving; losing it costs a re-read.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._changed = False
        self._known: dict[str, list[Any]] = {}
        if path is not None:
            with contextlib.suppress(OSError, ValueError):
                known = json.loads(path.read_bytes())
                self._known = known if isinstance(known, dict) else {}

    def __call__(self, path: Path) -> str:
        """Return the file's sha256, from memory when its times say that nothing changed."""
        try:
            status = path.lstat()
        except OSError:
            return file_digest(path)
        name = f"{status.st_dev}:{status.st_ino}"
        stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        known = self._known.get(name)
        if isinstance(known, list) and known[:-1] == stamp and isinstance(known[-1], str):
            return known[-1]
        value = file_digest(path)
        newest = max(status.st_mtime_ns, status.st_ctime_ns) / 1e9
        if time.time() - newest > YOUNG_SECONDS:
            self._known[name] = [*stamp, value]
            self._changed = True
        return value

    def save(self) -> None:
        """Write the cache; where its folder is missing or read-only nothing is kept."""
        if self._path is None or not self._changed:
            return
        with contextlib.suppress(OSError):
            draft = self._path.with_name(f"{self._path.name}.{os.getpid()}")
            draft.write_text(json.dumps(self._known))
            draft.replace(self._path)
            self._changed = False


def _nested(value: StrictModel, default: StrictModel | None, hash_file: HashFile) -> dict[str, Any]:
    """Settings of a nested model that differ from the default that the outer class gives it."""
    settings = key_settings(value, hash_file=hash_file)
    if default is None:
        return settings
    usual = key_settings(default, hash_file=hash_file)
    own = {name: setting for name, setting in settings.items() if usual.get(name) != setting}
    # A field put back to its own class's default differs from what the outer class says.
    for name in usual.keys() - settings.keys():
        own[name] = _plain(getattr(value, name))
    return own


def defaults(config_type: type[StrictModel]) -> dict[str, Any]:
    """Return the default of every setting that can enter a key."""
    values: dict[str, Any] = {}
    for name, field in config_type.model_fields.items():
        marks = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        if marks.get("in_key") is False or field.is_required():
            continue
        default = field.get_default(call_default_factory=True)
        if isinstance(default, StrictModel):
            values[name] = {**defaults(type(default)), **key_settings(default)}
        else:
            values[name] = _plain(default)
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, StrictModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(_plain(item) for item in value)
    return str(value) if isinstance(value, Path) else value


def _regular_files(folder: Path) -> Iterator[Path]:
    for entry in folder.iterdir():
        status = entry.lstat()
        if stat.S_ISDIR(status.st_mode):
            yield from _regular_files(entry)
        elif stat.S_ISREG(status.st_mode):
            yield entry
        else:
            raise StoreError("a link or device in place of a file", where=str(entry), code="not-a-file")


def _utf16(text: str) -> bytes:
    return text.encode("utf-16-be")
