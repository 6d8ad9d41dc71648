"""Held-out splits by prompt: what is nearly the same prompt never stands on both sides."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

from reward.preferences.near import near_duplicates
from reward.preferences.records import Prompt, prompt_words


class Grouped(Protocol):
    """A pair or a demonstration: a row that knows its prompt and the prompt's name."""

    @property
    def prompt(self) -> Prompt:
        """The prompt itself."""

    @property
    def group(self) -> str:
        """Name that all rows of one prompt share."""


def split_groups(pairs: Sequence[Grouped], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Divide pairs into training and held-out, by components of near-duplicate prompts.

    Which side a component falls on depends on its prompts and the seed, not on the order of
    the pairs. At least one component is held out when there are two, unless share is 0.

    Args:
        pairs: pairs with their prompt group.
        share: part of the pairs to hold out, 0 <= share < 1.
        seed: another seed gives another split.

    Returns:
        Indices of the training pairs and of the held-out pairs, each ascending.

    Raises:
        ValueError: share is outside [0, 1).
    """
    if not 0 <= share < 1:
        raise ValueError(f"share must be in [0, 1), not {share}")
    components = prompt_components(pairs)
    members: dict[str, list[int]] = defaultdict(list)
    for index, pair in enumerate(pairs):
        members[components[pair.group]].append(index)
    order = sorted(members, key=lambda name: _rank(name, seed))
    wanted = round(share * len(pairs))
    held_out: list[int] = []
    for number, name in enumerate(order):
        first = number == 0 and share > 0 and len(order) > 1
        if first or len(held_out) + len(members[name]) <= wanted:
            held_out += members[name]
    held = set(held_out)
    return [index for index in range(len(pairs)) if index not in held], sorted(held_out)


def prompt_components(pairs: Sequence[Grouped]) -> dict[str, str]:
    """Return, for every prompt group, the name of its component of near-duplicate prompts."""
    texts: dict[str, str] = {}
    for pair in pairs:
        texts.setdefault(pair.group, prompt_words(pair.prompt))
    groups = sorted(texts)
    parent = list(range(len(groups)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    for one, other, _ in near_duplicates([texts[group] for group in groups]):
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    return {group: groups[root(number)] for number, group in enumerate(groups)}


def _rank(name: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()
