"""Checkpoints inside a stage: safetensors and JSON, verified by digest before anything is read back."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.canonical import digest
from pipeline.contract import StageContext
from pipeline.disk import Disk, free_text
from pipeline.errors import Finding, StoreError
from pipeline.fingerprint import key_settings
from stages.runtime.saving.durable import publish, remove_leftovers
from stages.runtime.saving.listing import listing_findings, make_listing

LOGGER = logging.getLogger(__name__)

STATE_FILE = "state.json"
LISTING_FILE = "files.json"
_FOLDER = re.compile(r"step-(\d{9})")
_GROUP = re.compile(r"[a-z][a-z0-9_]*")
_SUFFIX = ".safetensors"


@dataclass(frozen=True, slots=True)
class LoadedCheckpoint:
    """The newest checkpoint that is whole."""

    step: int
    path: Path
    tensors: Mapping[str, Mapping[str, Tensor]]
    "Group -> name -> tensor, on the CPU."
    state: Mapping[str, Any]
    damages: tuple[Finding, ...] = field(default=())
    "What is wrong with newer checkpoints that were passed over."


class CheckpointFolder:
    """The checkpoints of one stage, of one key, newest last.

    Args:
        root: folder that survives an interruption, such as ctx.scratch_dir / "checkpoints".
        key: what the checkpoints belong to; those of another key are never loaded.
        keep: how many to keep; older ones go after a newer one is safe on the disk.
        disk: tests stop a process at each of its operations.
    """

    def __init__(self, root: Path, key: str, keep: int = 2, *, disk: Disk | None = None) -> None:
        if keep < 1:
            raise ValueError("keep at least one checkpoint")
        self._root, self._key, self._keep = root, key, keep
        self._disk = disk or Disk()
        self.damages: tuple[Finding, ...] = ()
        "What the last call of latest() found wrong."

    def save(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
        """Write a checkpoint that is whole or absent, then drop the oldest ones.

        Args:
            step: optimizer step (or iteration) that it stands after.
            tensors: group -> name -> tensor; one safetensors file a group.
            state: what JSON can hold, read back equal; floats keep every bit.

        Raises:
            StoreError: the disk is full or read-only; the checkpoints before are untouched.
        """
        self._disk.make_folder(self._root)
        folder = self._root / f"step-{step:09d}"
        with publish(folder, self._disk) as temporary:
            for group, named in tensors.items():
                _write_group(temporary, group, named)
            text = json.dumps(state, sort_keys=True, allow_nan=True)
            (temporary / STATE_FILE).write_text(text, encoding="utf-8")
            (temporary / LISTING_FILE).write_bytes(make_listing(temporary, key=self._key, step=step))
        for old in self._steps()[: -self._keep]:
            self._disk.remove_tree(self._root / f"step-{old:09d}")
        return folder

    def latest(self) -> LoadedCheckpoint | None:
        """Return the newest checkpoint whose every file verifies; None when there is none.

        Damaged ones are named in `damages` and in the log, and passed over.
        """
        damages: list[Finding] = []
        for step in reversed(self._steps()):
            folder = self._root / f"step-{step:09d}"
            found = listing_findings(
                folder / LISTING_FILE, folder, key=self._key, step=step, required=[STATE_FILE]
            )
            damages += found
            if not found:
                self.damages = tuple(damages)
                return _open(folder, step, self.damages)
            for finding in found:
                LOGGER.warning("%s", finding)
        self.damages = tuple(damages)
        return None

    def clear(self) -> None:
        """Delete every checkpoint: the stage is finished."""
        shutil.rmtree(self._root, ignore_errors=True)

    def _steps(self) -> list[int]:
        if not self._root.is_dir():
            return []
        remove_leftovers(self._root)
        matches = (_FOLDER.fullmatch(path.name) for path in self._root.iterdir() if path.is_dir())
        return sorted(int(match[1]) for match in matches if match)


def checkpoint_key(ctx: StageContext) -> str:
    """Return what a stage's checkpoints belong to: its settings that count and what its inputs hold."""
    inputs = {role: source.fingerprint for role, source in ctx.inputs.items()}
    return digest({"stage": ctx.name, "inputs": inputs, "settings": key_settings(ctx.config)})


def _write_group(folder: Path, group: str, named: Mapping[str, Tensor]) -> None:
    if not _GROUP.fullmatch(group):
        raise ValueError(f"{group!r} cannot name a file: lower-case letters, digits and _")
    plain = {name: named[name].detach().cpu().contiguous() for name in sorted(named)}
    try:
        save_file(plain, folder / f"{group}{_SUFFIX}")
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"a checkpoint cannot be written ({free_text(folder)} free): {error}",
            where=str(folder.parent),
            hint="make room, then run the same command; it goes on from the checkpoint before",
            code="checkpoint-not-written",
        ) from error


def _open(folder: Path, step: int, damages: tuple[Finding, ...]) -> LoadedCheckpoint:
    tensors = {path.stem: load_file(path) for path in sorted(folder.glob(f"*{_SUFFIX}"))}
    state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    return LoadedCheckpoint(step, folder, tensors, state, damages)
