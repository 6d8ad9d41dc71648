"""Signs statements of provenance and checks them: DSSE envelopes, as in-toto and cosign use them.

Needs the extra `sign`. Nothing here is imported unless a key is named.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import CryptoSigner, SSlibKey

from pipeline.canonical import read_bounded
from pipeline.errors import Finding, StoreError, UserError
from pipeline.manifest import RunManifest
from pipeline.provenance import statement
from pipeline.store import Store

PAYLOAD_TYPE = "application/vnd.in-toto+json"
PASSWORD_VARIABLE = "TRIPTYCH_KEY_PASSWORD"
_MAKE_KEYS = "openssl genpkey -algorithm ed25519 -out key.pem; openssl pkey -in key.pem -pubout -out key.pub"


def signed(document: Mapping[str, Any], key: CryptoSigner) -> dict[str, Any]:
    """Return a statement in an envelope with one signature.

    Source: DSSE 1.0 (github.com/secure-systems-lab/dsse), in-toto attestation framework.
    """
    envelope = Envelope(json.dumps(document, sort_keys=True).encode(), PAYLOAD_TYPE, {})
    envelope.sign(key)
    return dict(envelope.to_dict())


def private_key(path: Path) -> CryptoSigner:
    """Read a private key: PEM, Ed25519, ECDSA P-256 or RSA.

    A password is taken from the environment variable TRIPTYCH_KEY_PASSWORD.

    Raises:
        UserError: no such file, no such key, or a wrong password.
    """
    password = os.environ.get(PASSWORD_VARIABLE)
    try:
        key = load_pem_private_key(read_bounded(path), password.encode() if password else None)
        return CryptoSigner(key)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        hint = f"set {PASSWORD_VARIABLE} if it has a password; make one: {_MAKE_KEYS}"
        raise UserError(
            f"not a usable private key: {error}", where=str(path), hint=hint, code="key"
        ) from error


def public_key(path: Path) -> SSlibKey:
    """Read a public key in PEM.

    Raises:
        UserError: no such file or no such key.
    """
    try:
        return SSlibKey.from_crypto(load_pem_public_key(read_bounded(path)))
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UserError(
            f"not a usable public key: {error}", where=str(path), hint=_MAKE_KEYS, code="key"
        ) from error


def check_signatures(store: Store, manifest: RunManifest, path: Path, *, key: SSlibKey) -> list[Finding]:
    """Compare signed statements with the stages of a run.

    Returns:
        Every envelope that the key did not sign, every stage without a statement, and every
        statement that says something else than the store.
    """
    findings: list[Finding] = []
    told: dict[str, Any] = {}
    for number, line in enumerate(read_bounded(path).splitlines(), start=1):
        if not line.strip():
            continue
        document = _opened(line, key)
        if document is None:
            findings.append(Finding("not signed by this key", f"{path}:{number}", code="signature"))
        else:
            told[_key_of(document)] = document
    for name, stage_key in _complete(manifest):
        if stage_key not in told:
            findings.append(Finding(f"stage {name} has no signed statement", str(path), code="signature"))
        elif told[stage_key] != _as_json(store, stage_key):
            message = f"the signed statement of stage {name} says something else than the store"
            findings.append(Finding(message, str(path), code="signature"))
    return findings


def _opened(line: bytes, key: SSlibKey) -> dict[str, Any] | None:
    """Return a statement whose signature holds, else None."""
    try:
        envelope = Envelope.from_dict(json.loads(line))
        envelope.verify([key], 1)
        document = json.loads(envelope.payload)
    except (VerificationError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    usable = envelope.payload_type == PAYLOAD_TYPE and isinstance(document, dict)
    return document if usable else None


def _key_of(document: Mapping[str, Any]) -> str:
    try:
        return str(document["predicate"]["runDetails"]["metadata"]["invocationId"]).partition("/")[0]
    except (KeyError, TypeError):
        return ""


def _complete(manifest: RunManifest) -> Iterator[tuple[str, str]]:
    for name in manifest.order:
        status = manifest.stages[name]
        if status.key is not None and status.state == "complete":
            yield name, status.key


def _as_json(store: Store, key: str) -> Any:
    try:
        return json.loads(json.dumps(statement(store.load(key))))
    except StoreError:
        return None
