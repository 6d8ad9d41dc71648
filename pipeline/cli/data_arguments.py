"""Arguments that the data actions share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reward.preferences.mapping import Mapping


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Declare how files are read."""
    parser.add_argument("--map", type=Path, metavar="YAML", help="mapping file; it wins over detection")
    parser.add_argument("--format", help="name of the format (triptych data formats)")


def mapping_of(args: argparse.Namespace) -> Mapping:
    """Return the mapping that the arguments describe.

    Raises:
        DataError: the mapping file is wrong.
    """
    from reward.preferences.mapping import load_mapping

    mapping = load_mapping(args.map)
    return mapping.model_copy(update={"format": args.format}) if args.format else mapping
