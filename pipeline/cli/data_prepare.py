"""`triptych data prepare`: recorded, repeatable steps from files to one file of comparison records."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import DataError

if TYPE_CHECKING:
    from reward.preferences.preparation import Recipe

SWITCHES = {"clean": "clean", "dedupe": "dedupe", "mask_pii": "mask_pii"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="files, one after another")
    parser.add_argument("--recipe", type=Path, metavar="YAML", help="inputs, weights and steps")
    parser.add_argument("--clean", action="store_true", help="line ends, composed and invisible characters")
    parser.add_argument("--dedupe", action="store_true", help="keep the first of equal judgements")
    parser.add_argument("--mask-pii", action="store_true", help="replace personal data by its kind")
    parser.add_argument("--min-words", type=int, help="drop comparisons with a shorter response")
    parser.add_argument("--max-words", type=int, help="drop comparisons with a longer response")
    parser.add_argument("--seed", type=int, default=0, help="seed of the steps that draw")
    parser.add_argument("--out", type=Path, default=Path("prepared.jsonl"), help="file to write")


def main(args: argparse.Namespace) -> int:
    """Prepare, write, and say what each step did."""
    from reward.preferences.preparation import prepare, write_prepared

    recipe, folder = _recipe(args)
    prepared = prepare(recipe, folder=folder)
    account = write_prepared(prepared, args.out)
    for item in prepared.inputs:
        print(f"{item['file']}: {item['comparisons']:,} comparisons, {item['taken']:,} taken")
    for step in prepared.steps:
        print(f"{step.step['step']}: {step.comparisons_in:,} in, {step.comparisons_out:,} out")
    print(f"{args.out}: {len(prepared.records):,} comparisons; steps and digests in {account}")
    return 0


def _recipe(args: argparse.Namespace) -> tuple[Recipe, Path]:
    """Return the recipe of the arguments, and the folder its paths are relative to.

    Raises:
        DataError: files and a recipe, or neither.
    """
    from reward.preferences.mapping import read_yaml_model
    from reward.preferences.preparation import Recipe

    if bool(args.files) == bool(args.recipe):
        raise DataError(
            "name files, or a recipe with --recipe", hint="triptych data prepare votes.jsonl --clean"
        )
    if args.recipe:
        return read_yaml_model(args.recipe, Recipe), args.recipe.parent
    steps: list[dict[str, Any]] = [{"step": step} for name, step in SWITCHES.items() if getattr(args, name)]
    if args.min_words is not None or args.max_words is not None:
        steps.append({"step": "length", "min_words": args.min_words or 0, "max_words": args.max_words})
    inputs = [{"file": str(path)} for path in args.files]
    return Recipe.model_validate({"inputs": inputs, "steps": steps, "seed": args.seed}), Path()
