"""`triptych reward`: what a reward model is worth."""

from __future__ import annotations

import argparse

from pipeline.cli.actions import Actions, add_actions, run_action

ACTIONS: Actions = {
    "card": ("pipeline.cli.reward_card", "show a reward model's report card, or measure it on another file"),
    "ratings": ("pipeline.cli.reward_ratings", "Bradley-Terry ratings of models from people's comparisons"),
    "margins": ("pipeline.cli.reward_margins", "score comparisons by every member, for data select"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions."""
    add_actions(parser, ACTIONS)


def main(args: argparse.Namespace) -> int:
    """Run the chosen action."""
    return run_action(args, ACTIONS)
