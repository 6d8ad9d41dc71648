"""Commands of commands: `triptych data check` is the action `check` of `data`."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping

Actions = Mapping[str, tuple[str, str]]
"Action -> module and one line of help. A module has add_arguments(parser) and main(args) -> int."


def add_actions(parser: argparse.ArgumentParser, actions: Actions) -> None:
    """Declare each action with the arguments of its module."""
    parsers = parser.add_subparsers(dest="action", metavar="action", required=True)
    for name, (module, text) in actions.items():
        chosen = parsers.add_parser(name, help=text, description=text)
        importlib.import_module(module).add_arguments(chosen)


def run_action(args: argparse.Namespace, actions: Actions) -> int:
    """Run the chosen action and return its exit code."""
    return int(importlib.import_module(actions[args.action][0]).main(args))
