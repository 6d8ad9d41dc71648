"""Who judges what: overlap blocks in which every two people share about equally many items."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

MIN_SHARED = 20


@dataclass(frozen=True, slots=True)
class Overlap:
    """How many people judge one item."""

    annotators: int
    per_item: int = 2
    "People who judge an overlapped item."
    share: float = 0.2
    "Share of items that are overlapped; the others get one person each."


def assign(items: Sequence[str], overlap: Overlap, *, seed: int) -> dict[str, tuple[int, ...]]:
    """Return the people of each item, numbered from 0.

    Overlapped items go to the group whose members have shared the least so far, then to those
    with the least work: a balanced incomplete block design as far as the numbers allow.

    Raises:
        ValueError: fewer people than an item needs.
    """
    if not 1 <= overlap.per_item <= overlap.annotators:
        raise ValueError(f"{overlap.per_item} people an item need as many annotators")
    order = sorted(items)
    random.Random(seed).shuffle(order)
    num_overlapped = round(overlap.share * len(order))
    load: Counter[int] = Counter()
    shared: Counter[tuple[int, int]] = Counter()
    found: dict[str, tuple[int, ...]] = {}
    for number, item in enumerate(order):
        wanted = overlap.per_item if number < num_overlapped else 1
        chosen = _group(wanted, overlap.annotators, load, shared)
        for person in chosen:
            load[person] += 1
        for two in itertools.combinations(chosen, 2):
            shared[two] += 1
        found[item] = chosen
    return found


def _group(
    size: int, annotators: int, load: Counter[int], shared: Counter[tuple[int, int]]
) -> tuple[int, ...]:
    """Choose people one by one: least shared with those chosen, then least work, then lowest number."""
    chosen: list[int] = []
    if size > 1:
        everybody = [(one, two) for one in range(annotators) for two in range(one + 1, annotators)]
        best = min(everybody, key=lambda two: (shared[two], load[two[0]] + load[two[1]], two))
        chosen = list(best)
    while len(chosen) < size:
        rest = [person for person in range(annotators) if person not in chosen]
        chosen.append(
            min(
                rest,
                key=lambda person: (
                    sum(shared[min(person, other), max(person, other)] for other in chosen),
                    load[person],
                    person,
                ),
            )
        )
    return tuple(sorted(chosen))


def least_shared(assignment: dict[str, tuple[int, ...]], annotators: int) -> int:
    """Return the smallest number of items that two people share."""
    shared = Counter(two for people in assignment.values() for two in itertools.combinations(people, 2))
    return min((shared[two] for two in itertools.combinations(range(annotators), 2)), default=0)
