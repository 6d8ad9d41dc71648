"""How varied and how repetitive responses are, from token ids."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain


def ngrams(tokens: Sequence[int], n: int) -> list[tuple[int, ...]]:
    """Return the runs of n tokens in order; none when the sequence is shorter."""
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def distinct_n(responses: Sequence[Sequence[int]], n: int) -> float:
    """Return different n-grams / all n-grams over all responses together; 0 when there is none.

    1 means that no n-gram occurs twice; a policy that always says the same falls towards 0.

    Source: Li et al. 2016, https://arxiv.org/abs/1510.03055, section 5.2.
    """
    found = list(chain.from_iterable(ngrams(response, n) for response in responses))
    return len(set(found)) / len(found) if found else 0.0


def repetition(responses: Sequence[Sequence[int]], n: int) -> float:
    """Return the mean share of a response's n-grams that stood in it before; 0 is none."""
    if not responses:
        return 0.0
    shares = []
    for response in responses:
        found = ngrams(response, n)
        shares.append(1 - len(set(found)) / len(found) if found else 0.0)
    return sum(shares) / len(shares)
