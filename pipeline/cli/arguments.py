"""Arguments that several commands share, and what they mean."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from types import ModuleType

from pipeline.errors import ConfigError, UserError
from pipeline.fingerprint import file_digest
from pipeline.inputs import RunFile, wire
from pipeline.store import Store

DEFAULT_STORE = "store"


def add_run_file(parser: argparse.ArgumentParser) -> None:
    """Declare the run file, overrides and --store."""
    parser.add_argument("file", type=Path, help="run file, such as configs/demo.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as seed=2 or ppo.kl_coef=0.1")
    parser.add_argument(
        "--store", type=Path, help="folder of committed stages; default: the run file's `store`"
    )
    parser.add_argument(
        "--shared-store",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="a store of others, only read: what lies there is not made again; remembered by the store",
    )


def add_store(parser: argparse.ArgumentParser) -> None:
    """Declare --store for a command that reads a store without a run file."""
    parser.add_argument(
        "--store", type=Path, default=Path(DEFAULT_STORE), help="folder of committed stages (default: store)"
    )


def load(args: argparse.Namespace) -> tuple[RunFile, Store]:
    """Load the run file with its overrides, and name its store.

    Raises:
        ConfigError: everything that is wrong with the file and with what its inputs name.
    """
    from pipeline.config.load import RunFileError, load_run

    try:
        run = load_run(args.file, args.overrides)
    except RunFileError as error:
        inputs = () if error.run is None else wire(error.run, file_digest).findings
        raise ConfigError.from_findings(list(dict.fromkeys([*error.findings, *inputs]))) from None
    return run, Store(args.store or Path(run.config.store))


def open_store(args: argparse.Namespace) -> Store:
    """Return the store that --store names.

    Raises:
        StoreError: there is none.
    """
    store = Store(args.store)
    store.check()
    return store


def run_name(text: str) -> str:
    """Return the run that a person names: its name, or the run file that makes it."""
    if text.endswith((".yaml", ".yml")) and Path(text).is_file():
        from pipeline.config.load import load_run

        return load_run(Path(text)).config.name
    return text


def split_stage(text: str) -> tuple[str, str | None]:
    """Split `run:stage` into its parts.

    Raises:
        UserError: an empty part.
    """
    run, colon, stage = text.partition(":")
    if not run or (colon and not stage):
        raise UserError(f"{text!r} is not RUN or RUN:STAGE", hint="demo:ppo", code="bad-name")
    return run_name(run), stage or None


def signing() -> ModuleType:
    """Return the module that signs and checks signatures.

    Raises:
        UserError: its packages are not installed.
    """
    try:
        return importlib.import_module("pipeline.signing")
    except ImportError as error:
        hint = "pip install 'triptych-rlhf[sign]'"
        raise UserError(
            f"signatures need the extra `sign`: {error}", hint=hint, code="missing-extra"
        ) from error
