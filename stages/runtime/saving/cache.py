"""Tensors that stages of a store compute once for all of them, named by what they were computed from.

An entry is whole or absent. What was read back is checked against the digest that was written with it:
a damaged entry is computed again, never trusted.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.disk import Disk
from pipeline.locks import Holder, held
from pipeline.record import timestamp
from stages.runtime.saving.durable import publish
from stages.runtime.saving.listing import listing_findings, make_listing

LOGGER = logging.getLogger(__name__)

_TENSORS, _LISTING, _LOCK = "tensors.safetensors", "files.json", ".lock"


class TensorCache:
    """A folder of named tensors by content key.

    Args:
        folder: where entries lie; made when the first one is written.
        disk: tests stop a process at each of its operations.
    """

    def __init__(self, folder: Path, *, disk: Disk | None = None) -> None:
        self._folder, self._disk = folder, disk or Disk()

    def entry(self, key: str) -> Path:
        """Return where an entry lies or will lie."""
        return self._folder / key

    def read(self, key: str) -> dict[str, Tensor] | None:
        """Return the tensors of a key, or None when there is no entry that is whole."""
        place = self.entry(key)
        if not place.is_dir():
            return None
        damage = self._damage(key)
        if damage is None:
            try:
                tensors = load_file(place / _TENSORS)
            except (SafetensorError, OSError) as error:
                damage = str(error)
            else:
                # gc keeps what was used lately.
                os.utime(place)
                return tensors
        LOGGER.warning("a cached result is computed again: %s", damage)
        return None

    def write(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Store the tensors of a key; an entry of before is replaced.

        Raises:
            StoreError: the disk is full, read-only or failing.
        """
        self._disk.make_folder(self._folder)
        holder = Holder(os.getpid(), "writing a cached result", timestamp())
        with (
            held(self._folder / _LOCK, holder, waiting=lambda _: None),
            publish(self.entry(key), self._disk) as temporary,
        ):
            save_file(dict(tensors), temporary / _TENSORS)
            (temporary / _LISTING).write_bytes(make_listing(temporary, key=key, step=0))

    def _damage(self, key: str) -> str | None:
        place = self.entry(key)
        found = listing_findings(place / _LISTING, place, key=key, step=0, required=(_TENSORS,))
        return f"{place}: {found[0].message}" if found else None
