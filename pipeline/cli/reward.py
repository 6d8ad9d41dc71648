"""`triptych reward`: what a reward model is worth."""

from __future__ import annotations

import argparse
import importlib

ACTIONS = {
    "card": ("pipeline.cli.reward_card", "show a reward model's report card, or measure it on another file"),
    "ratings": ("pipeline.cli.reward_ratings", "Bradley-Terry ratings of models from people's comparisons"),
    "margins": ("pipeline.cli.reward_margins", "score comparisons by every member, for data select"),
}
"Action -> module and one line of help. A module has add_arguments(parser) and main(args) -> int."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions."""
    actions = parser.add_subparsers(dest="action", metavar="action", required=True)
    for name, (module, text) in ACTIONS.items():
        chosen = actions.add_parser(name, help=text, description=text)
        importlib.import_module(module).add_arguments(chosen)


def main(args: argparse.Namespace) -> int:
    """Run the chosen action."""
    return int(importlib.import_module(ACTIONS[args.action][0]).main(args))
