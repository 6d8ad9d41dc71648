"""How many tokens a preference file costs: padded, real, and with every prompt computed once.

Counts and a seed in, plain numbers out. It needs no model: the ratio says what packing will gain.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from reward.preferences.pairs import Pair
from reward.preferences.records import prompt_text

CountTokens = Callable[[Sequence[str]], list[int]]
"Texts -> tokens of each."
STOP_TOKENS = 1
"Every answer ends in one."
NUM_ORDERS = 3
"Random orders that a row of the table is a mean of."
_PIECE = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class PairTokens:
    """One pair as lengths."""

    unit: Hashable
    "Pairs of one comparison share it and stay together."
    prompt: Hashable
    "Equal prompts are equal here."
    chosen: Hashable
    rejected: Hashable
    prompt_tokens: int
    chosen_tokens: int
    rejected_tokens: int

    @property
    def longest(self) -> int:
        """Return the tokens of the longer of the two sequences."""
        return self.prompt_tokens + max(self.chosen_tokens, self.rejected_tokens)

    @property
    def real(self) -> int:
        """Return the tokens of both sequences, each with its own prompt."""
        return 2 * self.prompt_tokens + self.chosen_tokens + self.rejected_tokens


@dataclass(frozen=True, slots=True)
class TokenRow:
    """Tokens of one pass over a file at one batch size; means over random orders."""

    batch_size: int
    padded: float
    "Both sequences of every pair, padded to the longest of their batch: what trainers compute."
    grouped: float
    "The same when pairs of like length share a batch."
    real: float
    shared: float
    "Every different prompt and answer of a batch once, nothing padded."

    @property
    def gain(self) -> float:
        """Return how many times fewer tokens are computed with shared prompts than with padding."""
        return self.padded / self.shared


def estimated_tokens(texts: Sequence[str]) -> list[int]:
    """Estimate the tokens of texts without a tokenizer.

    The larger of two counts: words and punctuation marks, and a quarter of the UTF-8 bytes.
    """
    return [max(len(_PIECE.findall(text)), math.ceil(len(text.encode()) / 4)) for text in texts]


def pair_tokens(pairs: Sequence[Pair], count: CountTokens) -> list[PairTokens]:
    """Return the lengths of pairs; every different text is counted once."""
    texts = list(
        dict.fromkeys(
            text for pair in pairs for text in (prompt_text(pair.prompt), pair.chosen, pair.rejected)
        )
    )
    tokens = dict(zip(texts, count(texts), strict=True))
    return [
        PairTokens(
            unit=(pair.line, pair.group),
            prompt=prompt_text(pair.prompt),
            chosen=pair.chosen,
            rejected=pair.rejected,
            prompt_tokens=tokens[prompt_text(pair.prompt)],
            chosen_tokens=tokens[pair.chosen] + STOP_TOKENS,
            rejected_tokens=tokens[pair.rejected] + STOP_TOKENS,
        )
        for pair in pairs
    ]


def token_table(pairs: Sequence[PairTokens], batch_sizes: Sequence[int], *, seed: int = 0) -> list[TokenRow]:
    """Return one row a batch size.

    Args:
        pairs: at least one.
        batch_sizes: pairs a batch.
        seed: of the random orders.

    Raises:
        ValueError: there are no pairs.
    """
    if not pairs:
        raise ValueError("there are no pairs to count")
    rng = random.Random(seed)
    orders = [_shuffled(pairs, rng) for _ in range(NUM_ORDERS)]
    by_length = sorted(pairs, key=lambda pair: pair.longest)
    real = float(sum(pair.real for pair in pairs))
    return [
        TokenRow(
            batch_size=size,
            padded=sum(map(_padded, _cut(orders, size))) / NUM_ORDERS,
            grouped=float(sum(map(_padded, _cut([by_length], size)))),
            real=real,
            shared=sum(map(_shared, _cut(orders, size))) / NUM_ORDERS,
        )
        for size in batch_sizes
    ]


def _shuffled(pairs: Sequence[PairTokens], rng: random.Random) -> list[PairTokens]:
    """Shuffle comparisons as a whole, as the trainer does."""
    units: dict[Hashable, list[PairTokens]] = {}
    for pair in pairs:
        units.setdefault(pair.unit, []).append(pair)
    order = list(units.values())
    rng.shuffle(order)
    return [pair for unit in order for pair in unit]


def _cut(orders: Sequence[Sequence[PairTokens]], size: int) -> list[Sequence[PairTokens]]:
    return [order[at : at + size] for order in orders for at in range(0, len(order), size)]


def _padded(batch: Sequence[PairTokens]) -> int:
    return 2 * len(batch) * max(pair.longest for pair in batch)


def _shared(batch: Sequence[PairTokens]) -> int:
    """Return the tokens of the batch's different prompts and of the different answers to each."""
    found: dict[Hashable, int] = {}
    for pair in batch:
        found[(pair.prompt,)] = pair.prompt_tokens
        found[pair.prompt, pair.chosen] = pair.chosen_tokens
        found[pair.prompt, pair.rejected] = pair.rejected_tokens
    return sum(found.values())
