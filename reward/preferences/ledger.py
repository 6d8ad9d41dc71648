"""A compact account of every judged pair: numbers and digests, no text. Memory grows by ~200 bytes a row."""

from __future__ import annotations

import itertools
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from reward.preferences.records import PreferenceRecord, VoteKind, digest, prompt_group

if TYPE_CHECKING:
    import numpy as np

NOBODY = -1
KINDS = tuple(VoteKind)


@dataclass(slots=True)
class Ledger:
    """Pairs of responses in a fixed order, and the votes on them."""

    prompts: dict[str, int] = field(default_factory=dict)
    responses: dict[str, int] = field(default_factory=dict)
    people: dict[str, int] = field(default_factory=dict)
    sources: dict[str, int] = field(default_factory=dict)
    pairs: dict[tuple[int, int, int], int] = field(default_factory=dict)
    prompt_line: array[int] = field(default_factory=lambda: array("q"))
    response_chars: array[int] = field(default_factory=lambda: array("q"))
    response_words: array[int] = field(default_factory=lambda: array("q"))
    pair_line: array[int] = field(default_factory=lambda: array("q"))
    pair_first: array[int] = field(default_factory=lambda: array("q"))
    pair_second: array[int] = field(default_factory=lambda: array("q"))
    pair_source: array[int] = field(default_factory=lambda: array("q"))
    "Index of the source of each side, two numbers a pair; -1 when it is not known."
    vote_pair: array[int] = field(default_factory=lambda: array("q"))
    vote_person: array[int] = field(default_factory=lambda: array("q"))
    vote_value: array[int] = field(default_factory=lambda: array("b"))
    "1: the first side of the pair is better, -1: the second, 0: neither."
    vote_kind: array[int] = field(default_factory=lambda: array("b"))
    vote_shown: array[int] = field(default_factory=lambda: array("b"))
    "1: the first side of the pair stood first on the screen, -1: the second, 0: not known."
    vote_seconds: array[float] = field(default_factory=lambda: array("d"))
    "NaN when it was not recorded."
    vote_strength: array[float] = field(default_factory=lambda: array("d"))
    vote_line: array[int] = field(default_factory=lambda: array("q"))
    vote_gold: array[int] = field(default_factory=lambda: array("b"))
    "Probe items: the value that the vote should have; 2 elsewhere."
    vote_order: array[int] = field(default_factory=lambda: array("q"))
    "Number of the judgement that a vote belongs to: a ranking is one judgement and several votes."
    num_judgements: int = 0

    def add(self, record: PreferenceRecord, *, group: str | None = None) -> None:
        """Enter all pairs and votes of one record; group names its prompt when the caller knows it."""
        prompt = self.prompts.setdefault(group or prompt_group(record.prompt), len(self.prompts))
        if prompt == len(self.prompt_line):
            self.prompt_line.append(record.line)
        sides = [self._response(response.text) for response in record.responses]
        gold_place = {name: place for place, name in enumerate(record.gold or ())}
        judgements = [self._judgement() for _ in record.votes]
        for one, other in itertools.combinations(range(len(sides)), 2):
            pair = self._pair(prompt, sides, record, (one, other))
            if self.pair_first[pair] != sides[one]:
                one, other = other, one
            ids = record.responses[one].id, record.responses[other].id
            wanted = _compare(gold_place, *ids) if record.gold else None
            for vote, judgement in zip(record.votes, judgements, strict=True):
                places = {name: place for place, tier in enumerate(vote.tiers) for name in tier}
                value = _compare(places, *ids)
                if value is None and vote.kind.counts:
                    continue
                shown = {name: place for place, name in enumerate(vote.shown_order or ())}
                self.vote_pair.append(pair)
                self.vote_person.append(self._person(vote.annotator))
                self.vote_value.append(value or 0)
                self.vote_kind.append(KINDS.index(_kind_of(vote.kind, value)))
                self.vote_shown.append(_compare(shown, *ids) or 0)
                self.vote_seconds.append(float("nan") if vote.seconds is None else vote.seconds)
                self.vote_strength.append(float("nan") if vote.strength is None else vote.strength)
                self.vote_line.append(record.line)
                self.vote_gold.append(2 if wanted is None else wanted)
                self.vote_order.append(judgement)

    def _judgement(self) -> int:
        self.num_judgements += 1
        return self.num_judgements - 1

    def _response(self, text: str) -> int:
        index = self.responses.setdefault(digest(text), len(self.responses))
        if index == len(self.response_chars):
            self.response_chars.append(len(text))
            self.response_words.append(text.count(" ") + 1)
        return index

    def _pair(self, prompt: int, sides: list[int], record: PreferenceRecord, places: tuple[int, int]) -> int:
        """Return the index of a pair; its sides stay in the order in which it was seen first."""
        first, second = sides[places[0]], sides[places[1]]
        key = (prompt, min(first, second), max(first, second))
        index = self.pairs.setdefault(key, len(self.pairs))
        if index == len(self.pair_line):
            self.pair_line.append(record.line)
            self.pair_first.append(first)
            self.pair_second.append(second)
            for place in places:
                source = record.responses[place].source
                known = NOBODY if source is None else self.sources.setdefault(source, len(self.sources))
                self.pair_source.append(known)
        return index

    def _person(self, name: str | None) -> int:
        return NOBODY if name is None else self.people.setdefault(name, len(self.people))

    def votes(self) -> Votes:
        """Return the votes as numpy arrays, and what each vote's pair looks like."""
        import numpy as np

        keys = np.array(list(self.pairs), dtype=np.int64).reshape(-1, 3)
        first = np.array(self.pair_first, dtype=np.int64)
        second = np.array(self.pair_second, dtype=np.int64)
        chars = np.array(self.response_chars, dtype=np.int64)
        words = np.array(self.response_words, dtype=np.int64)
        return Votes(
            pair=np.array(self.vote_pair, dtype=np.int64),
            person=np.array(self.vote_person, dtype=np.int64),
            value=np.array(self.vote_value, dtype=np.int64),
            kind=np.array(self.vote_kind, dtype=np.int64),
            shown=np.array(self.vote_shown, dtype=np.int64),
            seconds=np.array(self.vote_seconds),
            strength=np.array(self.vote_strength),
            line=np.array(self.vote_line, dtype=np.int64),
            gold=np.array(self.vote_gold, dtype=np.int64),
            judgement=np.array(self.vote_order, dtype=np.int64),
            pair_prompt=keys[:, 0],
            pair_first=first,
            pair_second=second,
            pair_line=np.array(self.pair_line, dtype=np.int64),
            pair_source=np.array(self.pair_source, dtype=np.int64).reshape(-1, 2),
            pair_chars=np.stack([chars[first], chars[second]], axis=1),
            pair_words=np.stack([words[first], words[second]], axis=1),
        )


@dataclass(frozen=True, slots=True)
class Votes:
    """The ledger as arrays; names as in Ledger. `pair_*` have one entry a pair, the others one a vote."""

    pair: np.ndarray
    person: np.ndarray
    value: np.ndarray
    kind: np.ndarray
    shown: np.ndarray
    seconds: np.ndarray
    strength: np.ndarray
    line: np.ndarray
    gold: np.ndarray
    judgement: np.ndarray
    pair_prompt: np.ndarray
    pair_first: np.ndarray
    pair_second: np.ndarray
    pair_line: np.ndarray
    pair_source: np.ndarray
    pair_chars: np.ndarray
    pair_words: np.ndarray

    @property
    def counted(self) -> np.ndarray:
        """True for votes that say something about the order, (votes,)."""
        import numpy as np

        allowed = [number for number, kind in enumerate(KINDS) if kind.counts]
        return np.isin(self.kind, allowed)

    def tallies(self) -> np.ndarray:
        """Return votes for the first side, for neither and for the second side, (pairs, 3)."""
        import numpy as np

        table = np.zeros((len(self.pair_line), 3), dtype=np.int64)
        counted = self.counted
        np.add.at(table, (self.pair[counted], 1 - self.value[counted]), 1)
        return table

    def winners(self) -> np.ndarray:
        """Return 1 or -1 for the side with more votes, 0 when neither has, (pairs,)."""
        import numpy as np

        table = self.tallies()
        return np.sign(table[:, 0] - table[:, 2])


def _compare(places: dict[str, int], first: str, second: str) -> int | None:
    """Return 1 when the first stands before the second, -1 after, 0 level; None when one is not placed."""
    if first not in places or second not in places:
        return None
    return (places[first] < places[second]) - (places[first] > places[second])


def _kind_of(kind: VoteKind, value: int | None) -> VoteKind:
    """Return the kind of a vote on one pair: two equal places in a ranking are a tie."""
    return VoteKind.TIE if kind is VoteKind.STRICT and value == 0 else kind
