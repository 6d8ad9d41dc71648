"""`triptych data`: everything an annotation team needs. No model, no configuration, no network."""

from __future__ import annotations

import argparse

from pipeline.cli.actions import Actions, add_actions, run_action

ACTIONS: Actions = {
    "check": (
        "pipeline.cli.data_check",
        "check preference files and write a report, rejects and accepted rows",
    ),
    "pairs": ("pipeline.cli.data_pairs", "write the pairs that training would see"),
    "tokens": ("pipeline.cli.data_tokens", "count padded, real and shared tokens; no model needed"),
    "split": ("pipeline.cli.data_split", "split by prompt into training and held-out files"),
    "prepare": ("pipeline.cli.data_prepare", "clean, deduplicate, cut, mask, mix: recorded steps"),
    "export": (
        "pipeline.cli.data_export",
        "write comparisons to be judged: Label Studio, Argilla, CSV, XLSX",
    ),
    "import": ("pipeline.cli.data_import", "read judgements back into comparison records"),
    "select": ("pipeline.cli.data_select", "choose what to have judged next"),
    "noise": ("pipeline.cli.data_noise", "find pairs whose label is doubted, to be judged again"),
    "formats": ("pipeline.cli.data_formats", "list the formats that can be read"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions."""
    add_actions(parser, ACTIONS)


def main(args: argparse.Namespace) -> int:
    """Run the chosen action."""
    return run_action(args, ACTIONS)
