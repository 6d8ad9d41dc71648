"""Names that a committed file may have: safe on every system, and no way out of a folder."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from pipeline.errors import Finding, StoreError

_DEVICE = re.compile(r"^(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?$", re.IGNORECASE)
_HEX_DIGEST = re.compile(r"^[0-9a-f]{64}$")


def is_digest(text: object) -> bool:
    """Say whether this is a sha256 in lower-case hex, so safe as a folder name."""
    return isinstance(text, str) and _HEX_DIGEST.match(text) is not None


def check_relative(path: str) -> str:
    """Return a committed file's relative path unchanged, or refuse it.

    Raises:
        StoreError: absolute, climbing, not NFC, reserved, or too long.
    """
    reason = _fault(path)
    if reason:
        raise StoreError(f"the file name {path!r} is refused: {reason}", code="unsafe-path")
    return path


def check_distinct(paths: Iterable[str]) -> None:
    """Refuse two names that a case-blind file system would merge.

    Raises:
        StoreError: naming every such pair.
    """
    seen: dict[str, str] = {}
    findings = []
    for path in paths:
        other = seen.setdefault(path.casefold(), path)
        if other != path:
            findings.append(
                Finding(f"the file names {other!r} and {path!r} differ only in case", code="unsafe-path")
            )
    if findings:
        raise StoreError.from_findings(findings)


def _fault(path: str) -> str:
    if not path or path.startswith("/"):
        return "it must be relative"
    if len(path.encode("utf-8", "surrogatepass")) > 1024:
        return "it is longer than 1024 bytes"
    if unicodedata.normalize("NFC", path) != path:
        return "it is not in Unicode form NFC"
    return next((fault for part in path.split("/") if (fault := _part_fault(part))), "")


def _part_fault(part: str) -> str:
    if part in ("", ".", ".."):
        return "a part is empty, . or .."
    if any(character in '\\:*?"<>|' or unicodedata.category(character) in ("Cc", "Cs") for character in part):
        return "it holds a character that is not allowed in file names everywhere"
    if part[0] == " " or part[-1] in " .":
        return "a part starts or ends with a space or ends with a dot"
    if _DEVICE.match(part):
        return "it is a device name on Windows"
    return "a part is longer than 255 bytes" if len(part.encode()) > 255 else ""
