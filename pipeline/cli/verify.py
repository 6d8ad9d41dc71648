"""`triptych verify`: compare committed files with their records."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict

from pipeline.cli import arguments
from pipeline.errors import ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("run", nargs="?", help="RUN, RUN:STAGE or a run file; default: the whole store")
    parser.add_argument("--quick", action="store_true", help="trust files whose size and times are unchanged")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments.add_store(parser)


def main(args: argparse.Namespace) -> int:
    """Name every damaged file; exit 1 when there is one."""
    from pipeline import verify
    from pipeline.disk import size_text
    from pipeline.fingerprint import file_digest

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
