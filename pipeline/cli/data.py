"""`triptych data`: everything an annotation team needs. No model, no configuration, no network."""

from __future__ import annotations

import argparse
import importlib

ACTIONS = {
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
