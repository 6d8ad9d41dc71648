"""Canonical JSON for keys and digests, and the one readable form of every document on disk."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import rfc8785

from pipeline.errors import StoreError

Migrations = Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]]
LARGEST_DOCUMENT_BYTES = 16 * 2**20
DEEPEST_NESTING = 32


def canonical_json(value: Any) -> bytes:
    """Return the RFC 8785 bytes of a JSON value.

    Raises:
        ValueError: NaN, infinities, integers beyond 2**53 - 1, non-string keys and
            lone surrogates have no canonical form.
    """
    try:
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeError, TypeError, AttributeError) as error:
        raise ValueError(f"not canonical JSON: {error}") from error


def digest(value: Any) -> str:
    """Return the sha256 of a JSON value's canonical bytes, in hex."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def finite(number: float) -> float | str:
    """Return a number as JSON can hold it: NaN and infinities become strings."""
    if isinstance(number, float) and not math.isfinite(number):
        return "nan" if math.isnan(number) else "inf" if number > 0 else "-inf"
    return number


def sealed(document: Mapping[str, Any]) -> bytes:
    """Return a document's readable bytes, with its own digest under `self`."""
    body = {name: value for name, value in document.items() if name != "self"}
    return _readable({**body, "self": digest(body)})


def read_sealed(
    path: Path, *, type_name: str, version: int, migrations: Migrations | None = None
) -> dict[str, Any]:
    """Read a document that `sealed` wrote and prove that no byte of it changed.

    Args:
        path: the file.
        type_name: the `type` that it must have.
        version: the newest version that this program reads; older ones are brought up to it.
        migrations: version -> function that brings a document of it to the next one.

    Returns:
        The document as of `version`, with the `self` of the file as written.

    Raises:
        StoreError: missing, too large, not JSON, of another type or a newer version,
            or changed since it was written.
    """
    data = read_bounded(path)
    document = parse(data, where=str(path))
    if document.get("type") != type_name:
        raise StoreError(f"this is not a {type_name}", where=str(path), code="wrong-type")
    if not isinstance(document.get("version"), int) or document["version"] > version:
        raise StoreError(
            f"{type_name} version {document.get('version')!r} is newer than this program reads ({version})",
            where=str(path),
            hint="upgrade triptych",
            code="newer-version",
        )
    body = {name: value for name, value in document.items() if name != "self"}
    if document.get("self") != digest(body) or data != _readable(document):
        raise StoreError("the bytes changed since they were written", where=str(path), code="damaged")
    return migrated(document, version=version, migrations=migrations or {}, where=str(path))


def migrated(
    document: dict[str, Any], *, version: int, migrations: Migrations, where: str = ""
) -> dict[str, Any]:
    """Bring a document of an older version up to date, one version after another.

    Raises:
        StoreError: no way leads from its version to this one.
    """
    while document["version"] < version:
        step = migrations.get(document["version"])
        if step is None:
            message = f"version {document['version']} of {document.get('type')} is not read any more"
            raise StoreError(message, where=where, code="older-version")
        document = {**step(document), "version": document["version"] + 1}
    return document


def parse(data: bytes, *, where: str) -> dict[str, Any]:
    """Parse a JSON object strictly: no duplicate keys, no NaN, bounded nesting.

    Raises:
        StoreError: the bytes are not such an object.
    """
    try:
        document = json.loads(data, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
        if not isinstance(document, dict):
            raise ValueError("not a JSON object")
        _refuse_deep(document, DEEPEST_NESTING)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"not a readable document: {error}", where=where, code="damaged") from error
    return document


def read_bounded(path: Path, *, limit: int = LARGEST_DOCUMENT_BYTES) -> bytes:
    """Read a small file.

    Raises:
        StoreError: missing, unreadable or larger than `limit` bytes.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise StoreError(f"cannot be read: {error.strerror}", where=str(path), code="missing-file") from error
    if len(data) > limit:
        raise StoreError(f"larger than {limit} bytes", where=str(path), code="too-large")
    return data


def _readable(document: Mapping[str, Any]) -> bytes:
    text = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {twice!r} stands twice")
    return result


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _refuse_deep(value: Any, levels: int) -> None:
    if levels < 0:
        raise ValueError(f"nested deeper than {DEEPEST_NESTING} levels")
    if isinstance(value, dict):
        for child in value.values():
            _refuse_deep(child, levels - 1)
    elif isinstance(value, list):
        for child in value:
            _refuse_deep(child, levels - 1)
