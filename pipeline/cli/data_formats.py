"""`triptych data formats`: what can be read, and which side each format says is better."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--long", action="store_true", help="also say how the better side is named")


def main(args: argparse.Namespace) -> int:
    """Print the catalogue."""
    from reward.preferences.catalogue import ALL

    width = max(len(form.name) for form in ALL)
    for form in ALL:
        print(f"{form.name:{width}}  {form.title}")
        if args.long:
            print(f"{'':{width}}    {form.reads_as}")
            if form.ask:
                print(f"{'':{width}}    must be named: {form.ask}")
    return 0
