"""A list of files with size and digest that checks itself: any flipped byte is named. No torch here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.errors import Finding
from pipeline.fingerprint import file_digest

_SELF = "self"


def make_listing(folder: Path, *, key: str, step: int) -> bytes:
    """Return the listing of every file in a folder, as JSON that holds its own digest."""
    files = {
        str(path.relative_to(folder)): {"size": path.stat().st_size, "sha256": file_digest(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    content = {"key": key, "step": step, "files": files}
    return _plain({**content, _SELF: _own_digest(content)})


def listing_findings(
    listing: Path, folder: Path, *, key: str, step: int, required: Iterable[str] = ()
) -> list[Finding]:
    """Say what is wrong with a folder by its listing: damaged, missing or foreign files.

    Args:
        listing: the file that make_listing's bytes were written to.
        folder: what it lists.
        key: the stage key that the listing must name.
        step: the optimizer step that the listing must name.
        required: files that must be among those listed.
    """
    where = str(folder)
    content = _read(listing)
    if content is None:
        return [_damage(where, f"{listing.name} is missing or damaged")]
    if content["key"] != key:
        return [_damage(where, "it was made with other settings or inputs", code="foreign-checkpoint")]
    if content["step"] != step:
        return [_damage(where, f"{listing.name} speaks of step {content['step']}")]
    findings = [
        _damage(where, f"{name} was never saved") for name in required if name not in content["files"]
    ]
    for name, entry in sorted(content["files"].items()):
        file = folder / name
        if not file.is_file():
            findings.append(_damage(where, f"{name} is missing"))
        elif file.stat().st_size != entry["size"]:
            findings.append(_damage(where, f"{name} has {file.stat().st_size} bytes, not {entry['size']}"))
        elif file_digest(file) != entry["sha256"]:
            findings.append(_damage(where, f"{name} was changed since it was saved"))
    return findings


def _read(listing: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(listing.read_bytes())
        own = content.pop(_SELF)
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    return content if own == _own_digest(content) else None


def _own_digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(_plain(content)).hexdigest()


def _plain(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=True, allow_nan=False).encode() + b"\n"


def _damage(where: str, what: str, *, code: str = "damaged-checkpoint") -> Finding:
    return Finding(f"a checkpoint cannot be used: {what}", where, "the checkpoint before it is used", code)
