"""`triptych verify`: compare committed files with their records."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli import arguments
from pipeline.errors import ExitCode, UserError

if TYPE_CHECKING:
    from pipeline.store import Store
    from pipeline.verify import Verdict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("run", nargs="?", help="RUN, RUN:STAGE or a run file; default: the whole store")
    parser.add_argument("--quick", action="store_true", help="trust files whose size and times are unchanged")
    parser.add_argument(
        "--signatures", type=Path, metavar="FILE", help="signed statements, from `provenance --sign`"
    )
    parser.add_argument("--key", type=Path, help="public key (PEM) of whoever signed them")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments.add_store(parser)


def _with_signatures(verdict: Verdict, store: Store, args: argparse.Namespace) -> Verdict:
    from pipeline.manifest import read_manifest

    signing = arguments.signing()
    run, _ = arguments.split_stage(args.run)
    key = signing.public_key(args.key)
    findings = signing.check_signatures(store, read_manifest(store, run), args.signatures, key=key)
    return replace(verdict, findings=(*verdict.findings, *findings))


def main(args: argparse.Namespace) -> int:
    """Name every damaged file; exit 1 when there is one."""
    from pipeline import verify
    from pipeline.disk import size_text
    from pipeline.fingerprint import file_digest

    if (args.signatures is None) != (args.key is None) or (args.signatures and args.run is None):
        raise UserError(
            "signatures are checked with a run, a file and a key",
            hint="verify RUN --signatures FILE --key KEY",
        )
    store = arguments.open_store(args)
    hash_file = store.digests if args.quick else file_digest
    started = time.monotonic()

    def show(key: str) -> None:
        if sys.stderr.isatty():
            print(f"\rreading {key[:12]} ", end="", file=sys.stderr, flush=True)

    if args.run is None:
        verdict = verify.verify_store(store, hash_file=hash_file, show=show)
    else:
        run, stage = arguments.split_stage(args.run)
        verdict = verify.verify_run(store, run, stage=stage, hash_file=hash_file, show=show)
    if sys.stderr.isatty():
        print("\r", end="", file=sys.stderr)
    if args.signatures is not None:
        verdict = _with_signatures(verdict, store, args)
    store.digests.save()
    if args.json:
        print(json.dumps(asdict(verdict), indent=1))
    else:
        for finding in verdict.findings:
            print(f"damaged: {finding}")
        for sentence in verdict.not_checked:
            print(f"not checked: {sentence}")
        answer = f"{len(verdict.findings)} faults" if verdict.findings else "all as recorded"
        size = size_text(verdict.num_bytes)
        print(f"{verdict.stages} stages, {size}, {time.monotonic() - started:.1f} s: {answer}")
    return ExitCode.STAGE_FAILED if verdict.findings else ExitCode.OK
