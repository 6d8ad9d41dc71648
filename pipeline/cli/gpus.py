"""`triptych gpus`: for a card, the largest base for each stage and tuning. No torch."""

from __future__ import annotations

import argparse

from pipeline.cli.models import add_sizes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("card", nargs="?", help="a known card, or a size such as 24GiB; none lists the cards")
    add_sizes(parser)


def main(args: argparse.Namespace) -> int:
    """Print the largest bases of a card, or the known cards."""
    from pipeline.cli import tables
    from pipeline.memory.bases import known_bases, weights
    from pipeline.memory.choice import STAGES, TUNINGS, largest_base
    from pipeline.memory.hardware import find_card
    from pipeline.memory.hardware_file import read_hardware

    hardware = read_hardware(args.hardware)
    if args.card is None:
        rows = [
            (card.name, f"{card.memory_mib / 1024:.1f}", card.bf16_tflops, card.bandwidth_gbs, card.price_usd)
            for card in sorted(hardware.cards, key=lambda card: card.memory_mib)
        ]
        columns = ("card", "GiB", "bf16 TFLOP/s", "GB/s", "USD an hour")
        note = f"Prices: {hardware.prices.offer}, {hardware.prices.date}; {hardware.prices.source}"
        tables.show(columns, rows, title="known cards", notes=(note,))
        return 0
    card, bases = find_card(args.card, hardware), known_bases()
    sizes = {"batch": args.batch, "max_length": args.max_length}
    shown = []
    for stage in STAGES:
        found = [
            largest_base(bases, card.memory_bytes, stage=stage, tuning=tuning, **sizes) for tuning in TUNINGS
        ]
        named = (f"{base.name} ({weights(base.parameters)})" if base else "none" for base in found)
        shown.append((stage, *named))
    tables.show(
        ("stage", *TUNINGS),
        shown,
        title=f"largest known base on {card.name}, {card.memory_bytes / 2**30:.1f} GiB",
        notes=(f"Micro-batches of {args.batch} x {args.max_length} tokens, layers recomputed.",),
    )
    return 0
