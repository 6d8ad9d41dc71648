"""`triptych data tokens`: what padding costs on a preference file, and what shared prompts will gain."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli.data_arguments import add_reading, mapping_of
from pipeline.errors import DataError, ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reward.preferences.tokens import CountTokens, PairTokens, TokenRow

BATCH_SIZES = (2, 4, 8, 16, 32)
QUANTILES = (0, 25, 50, 75, 95, 99, 100)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("file", type=Path, metavar="FILE")
    add_reading(parser)
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FOLDER",
        help="folder with tokenizer.json; else tokens are estimated",
    )
    parser.add_argument(
        "--batch", type=int, nargs="+", default=list(BATCH_SIZES), metavar="N", help="pairs a batch"
    )
    parser.add_argument(
        "--max-length", type=int, default=1024, help="longer pairs are dropped, as in training"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(args: argparse.Namespace) -> int:
    """Print the table."""
    from reward.preferences.pairs import read_pairs
    from reward.preferences.tokens import estimated_tokens, pair_tokens, token_table

    found = read_pairs(args.file, mapping_of(args))
    counted = estimated_tokens if args.tokenizer is None else _counter(args.tokenizer)
    everything = pair_tokens(found.pairs, counted)
    kept = [pair for pair in everything if pair.longest <= args.max_length]
    if not kept:
        reason = "no pair is short enough" if everything else "the file holds no pair with a preference"
        raise DataError(reason, where=str(args.file), hint="a larger --max-length", code="no-pairs")
    table = token_table(kept, [size for size in args.batch if size > 0])
    how = f"tokens of {args.tokenizer}" if args.tokenizer else "tokens estimated from words and bytes"
    notes = [
        f"{len(kept)} pairs, {how}; without the chat template's own tokens",
        f"{len(everything) - len(kept)} pairs above {args.max_length} tokens left out",
    ]
    if args.json:
        document = {"lengths": _lengths(kept), "rows": [_row(row) for row in table], "notes": notes}
        print(json.dumps(document, indent=1))
    else:
        _show(args.file.name, kept, table, notes)
    return 0


def _counter(folder: Path) -> CountTokens:
    """Return a counter by a tokenizer.json, read without transformers or torch.

    Raises:
        ModelError: the folder holds none that can be read.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json" if folder.is_dir() else folder
    try:
        tokenizer = Tokenizer.from_buffer(path.read_bytes())
    except (OSError, ValueError) as error:
        hint = "a folder with tokenizer.json, or leave --tokenizer out for an estimate"
        raise ModelError(
            f"the tokenizer cannot be read: {error}", where=str(path), hint=hint, code="no-tokenizer"
        ) from error

    def count(texts: Sequence[str]) -> list[int]:
        return [len(found.ids) for found in tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    return count


def _lengths(pairs: Sequence[PairTokens]) -> dict[str, list[int]]:
    columns = {
        "prompt": sorted(pair.prompt_tokens for pair in pairs),
        "chosen": sorted(pair.chosen_tokens for pair in pairs),
        "rejected": sorted(pair.rejected_tokens for pair in pairs),
    }
    return {
        name: [values[round(share / 100 * (len(values) - 1))] for share in QUANTILES]
        for name, values in columns.items()
    }


def _row(row: TokenRow) -> dict[str, Any]:
    return {
        "batch": row.batch_size,
        "padded": round(row.padded),
        "grouped": round(row.grouped),
        "real": round(row.real),
        "shared": round(row.shared),
        "gain": round(row.gain, 3),
    }


def _show(name: str, pairs: Sequence[PairTokens], table: Sequence[TokenRow], notes: Sequence[str]) -> None:
    from pipeline.cli import tables

    lengths = [[part, *values] for part, values in _lengths(pairs).items()]
    quantiles = ["tokens", "shortest", *(f"{share} %" for share in QUANTILES[1:-1]), "longest"]
    tables.show(quantiles, lengths, title=f"{name}: lengths")
    rows = [
        [
            row.batch_size,
            f"{row.padded:,.0f}",
            f"{row.grouped:,.0f}",
            f"{row.real:,.0f}",
            f"{row.shared:,.0f}",
            f"{row.padded / row.real:.2f}",
            f"{row.gain:.2f}",
        ]
        for row in table
    ]
    columns = ["pairs a batch", "padded", "padded, like lengths", "real", "shared", "padded / real", "gain"]
    tables.show(columns, rows, title="tokens computed in one pass over the file", notes=notes)
    print(
        "gain: how many times fewer tokens the reward and DPO stages compute than a trainer that pads;\n"
        "the time saved follows it while matrix products dominate, and DPO's cached reference comes on top."
    )
