"""Closes a stage's output folder: allowed files only, flushed, read-only, every byte hashed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.contract import ArtifactKind
from pipeline.disk import Disk
from pipeline.errors import Finding, StoreError
from pipeline.fingerprint import describe, list_folder
from pipeline.kinds import MODEL_KINDS
from pipeline.record import OutputRecord, digest_of_output

ALLOWED_SUFFIXES = (".safetensors", ".json", ".jsonl", ".jinja", ".txt", ".model", ".tiktoken", ".md")
LARGEST_HEADER_BYTES = 16 * 2**20
LARGEST_TEXT_SCANNED_BYTES = 2**20
_SECRETS = re.compile(
    rb"hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{36}|sk-[A-Za-z0-9_-]{32,}|AKIA[0-9A-Z]{16}"
    rb"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_SCANNED_NAMES = ("config.json", "adapter_config.json", "generation_config.json", "text.json")


@dataclass(frozen=True, slots=True)
class Sealed:
    """An output folder that may be published."""

    outputs: Mapping[str, OutputRecord]
    left_out: tuple[str, ...]
    "Files that were deleted because results do not carry such files."


def seal(
    disk: Disk, folder: Path, *, declared: Mapping[str, ArtifactKind], given: Mapping[str, Path]
) -> Sealed:
    """Check and close what a stage wrote.

    Args:
        disk: how to write.
        folder: the stage's output folder.
        declared: role -> kind, from the card.
        given: role -> file or folder, from the stage's result.

    Raises:
        StoreError: an output is missing, lies outside, is a link, holds no readable
            weights, or carries a secret.
    """
    paths = _output_paths(folder, declared, given)
    left_out = _drop_foreign_files(disk, folder, paths)
    kept = list_folder(folder)
    _check_contents(folder, declared, paths, kept=kept)
    for path in kept:
        disk.protect(folder / path)
        disk.sync_file(folder / path)
    for below in sorted({(folder / path).parent for path in kept} | {folder}, reverse=True):
        disk.sync_folder(below)
    outputs = {}
    for role, path in paths.items():
        files = tuple(describe(folder, name) for name in kept if _belongs(name, path))
        outputs[role] = OutputRecord(
            kind=declared[role], path=path, digest=digest_of_output(path, files), files=files
        )
    return Sealed(outputs, left_out)


def damages(folder: Path, outputs: Mapping[str, OutputRecord]) -> list[str]:
    """Return what differs between a sealed folder and its listing; every byte is read."""
    found = []
    for file in (file for output in outputs.values() for file in output.files):
        try:
            if describe(folder, file.path) != file:
                found.append(f"{file.path} changed")
        except (StoreError, OSError):
            found.append(f"{file.path} is missing or unreadable")
    return found


def check_weights(path: Path) -> None:
    """Check that a safetensors file's header is whole and its tensors fill the file exactly.

    Raises:
        StoreError: not such a file.
    """
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(size - 8, LARGEST_HEADER_BYTES):
                raise ValueError("the header's length is impossible")
            header = json.loads(stream.read(length), object_pairs_hook=_unique)
        spans = sorted(
            tuple(entry["data_offsets"]) for name, entry in header.items() if name != "__metadata__"
        )
        end = 0
        for start, stop in spans:
            if start != end or stop < start:
                raise ValueError("tensors overlap or leave holes")
            end = stop
        if end != size - 8 - length:
            raise ValueError("the tensors do not fill the file")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(
            f"not a whole safetensors file: {error}", where=path.name, code="damaged-weights"
        ) from error


def _output_paths(
    folder: Path, declared: Mapping[str, ArtifactKind], given: Mapping[str, Path]
) -> dict[str, str]:
    findings = [
        Finding(f"the stage gave no output {role!r}", code="missing-output")
        for role in declared.keys() - given.keys()
    ]
    findings += [
        Finding(f"the stage's card declares no output {role!r}", code="unknown-output")
        for role in given.keys() - declared.keys()
    ]
    paths = {}
    for role in declared.keys() & given.keys():
        path = Path(given[role])
        if not path.exists() or path.is_symlink() or not path.resolve().is_relative_to(folder.resolve()):
            findings.append(Finding(f"output {role!r} is missing or lies outside the output folder"))
        elif path.resolve() == folder.resolve():
            findings.append(
                Finding(f"output {role!r} must be inside the output folder, not the folder itself")
            )
        else:
            paths[role] = path.resolve().relative_to(folder.resolve()).as_posix()
    if findings:
        raise StoreError.from_findings(findings)
    return {role: paths[role] for role in declared}


def _drop_foreign_files(disk: Disk, folder: Path, paths: Mapping[str, str]) -> tuple[str, ...]:
    foreign = [
        name
        for name in list_folder(folder)
        if not name.endswith(ALLOWED_SUFFIXES) or not any(_belongs(name, path) for path in paths.values())
    ]
    for name in foreign:
        disk.remove(folder / name)
    return tuple(foreign)


def _check_contents(
    folder: Path, declared: Mapping[str, ArtifactKind], paths: Mapping[str, str], *, kept: list[str]
) -> None:
    findings = []
    for role, path in paths.items():
        own = [name for name in kept if _belongs(name, path)]
        weights = [name for name in own if name.endswith(".safetensors")]
        if not own:
            findings.append(
                Finding(f"output {role!r} holds no file that may be published", code="empty-output")
            )
        elif declared[role] in MODEL_KINDS and not weights:
            findings.append(Finding(f"output {role!r} holds no safetensors weights", code="no-weights"))
    for name in kept:
        if name.endswith(".safetensors"):
            check_weights(folder / name)
        elif name.rpartition("/")[2] in _SCANNED_NAMES and _holds_secret(folder / name):
            findings.append(
                Finding(f"{name} holds what looks like a secret token; it is not published", code="secret")
            )
    if findings:
        raise StoreError.from_findings(findings)


def _holds_secret(path: Path) -> bool:
    return _SECRETS.search(path.read_bytes()[:LARGEST_TEXT_SCANNED_BYTES]) is not None


def _belongs(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}/")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a tensor name stands twice")
    return result
