"""Arguments of the commands that let a stage's model speak: which model, how it is asked, which prompts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli import arguments
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.store import Store
    from stages.committed import Committed
    from stages.evaluation.speaker import Voice


def add_voice(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup, *, temperature: float, seed: bool = True
) -> None:
    """Declare how a model is asked; seed is False where the command has one of its own."""
    parser.add_argument(
        "--temperature", type=float, default=temperature, help=f"0 is greedy (default: {temperature:g})"
    )
    parser.add_argument("--top-p", type=float, default=1.0, help="smallest share of probability to draw from")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="longest answer (default: 128)")
    if seed:
        parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same answers")
    add_base(parser)


def add_base(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Declare --base."""
    parser.add_argument(
        "--base", type=Path, help="folder of the base, when the store cannot tell where it is"
    )


def voice_of(args: argparse.Namespace) -> Voice:
    """Return how the model is to be asked.

    Raises:
        UserError: a number is out of range.
    """
    from stages.evaluation.speaker import Voice

    if args.temperature < 0 or not 0 < args.top_p <= 1 or args.max_new_tokens < 1:
        raise UserError(
            f"temperature {args.temperature:g}, top-p {args.top_p:g} or max-new-tokens "
            f"{args.max_new_tokens} is out of range",
            hint="temperature of at least 0, top-p above 0 and up to 1, at least 1 token",
            code="bad-value",
        )
    return Voice(args.max_new_tokens, args.temperature, args.top_p, args.seed)


def committed_of(store: Store, text: str, base: Path | None) -> Committed:
    """Return the model that RUN:STAGE names. Loads no torch, so that a mistake is told at once."""
    from stages.committed import find_committed

    run, stage = arguments.split_stage(text)
    return find_committed(store, run, stage, base=base)
