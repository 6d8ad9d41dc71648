"""`triptych schema`: the JSON schema of run files, for editors."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--out", type=Path, help="write to this file instead of standard output")


def main(args: argparse.Namespace) -> int:
    """Print the schema, or write it where asked."""
    from pipeline.config.schema import run_schema

    text = json.dumps(run_schema(), indent=2, ensure_ascii=False) + "\n"
    if args.out is None:
        print(text, end="")
    else:
        args.out.write_text(text, encoding="utf-8")
        print(f"in the first line of a run file: # yaml-language-server: $schema={args.out}")
    return 0
