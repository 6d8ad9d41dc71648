"""`triptych models`: for a base model, the smallest card for each stage and tuning. No torch."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("base", nargs="?", help="folder, config.json, Hub id in the cache, or a known shape")
    add_sizes(parser)


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Declare the sizes that the answer is for."""
    parser.add_argument(
        "--max-length", type=int, default=1024, metavar="N", help="tokens a row (default 1024)"
    )
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="rows a micro-batch (default 1)")
    add_hardware(parser)


def add_hardware(parser: argparse.ArgumentParser) -> None:
    """Declare the file of a person's own cards."""
    parser.add_argument(
        "--hardware",
        type=Path,
        metavar="FILE",
        help="YAML with cards and prices of your own, over the shipped",
    )


def main(args: argparse.Namespace) -> int:
    """Print the smallest cards of a base, or the known bases."""
    from pipeline.cli import tables
    from pipeline.memory.bases import find_shape, known_bases, weights
    from pipeline.memory.choice import smallest_cards
    from pipeline.memory.hardware_file import read_hardware

    if args.base is None:
        rows = [(base.name, weights(base.parameters), base.source) for base in known_bases()]
        tables.show(("base", "weights", "source"), rows, title="known shapes")
        return 0
    hardware = read_hardware(args.hardware)
    shape = find_shape(args.base)
    found = smallest_cards(shape, hardware, batch=args.batch, max_length=args.max_length)
    rows_shown = [
        (
            one.stage,
            one.tuning,
            f"{one.needs_bytes / 2**30:.1f}",
            one.card.name if one.card else "none",
            f"{one.cost.hours:.2f}" if one.cost else "",
            f"{one.cost.usd:.2f}" if one.cost and one.cost.usd is not None else "",
        )
        for one in found
    ]
    tables.show(
        ("stage", "tuning", "GiB", "smallest card", "hours a 1000", "USD"),
        rows_shown,
        title=f"{args.base}: {weights(shape.num_parameters)} weights",
        notes=(
            f"Micro-batches of {args.batch} x {args.max_length} tokens, layers recomputed; hours and "
            f"price of 1,000 of them at {hardware.utilisation:.0%} of the card's peak.",
            f"Prices: {hardware.prices.offer}, {hardware.prices.date}. Estimates, not offers.",
        ),
    )
    return 0
