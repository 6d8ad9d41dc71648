"""Near-duplicate texts: MinHash finds candidates, exact Jaccard similarity of word 3-grams decides."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from reward.preferences.records import normalised

if TYPE_CHECKING:
    import numpy as np

THRESHOLD = 0.8
NUM_PERMUTATIONS = 128
NUM_BANDS = 16
MAX_CACHED_WORDS = 1 << 20
_SEED = 20_111
_MAX_BUCKET = 64
"Within a larger bucket each text is compared with the texts before it in the bucket only."


class _WordHashes(dict[str, int]):
    """Hashes of words, computed when a word is seen for the first time."""

    def __missing__(self, word: str) -> int:
        import xxhash

        found = self[word] = xxhash.xxh64_intdigest(word.encode("utf-8", "surrogatepass"))
        return found


class Shingler:
    """Turns texts into sets of hashed word 3-grams; remembers the hashes of words."""

    def __init__(self) -> None:
        self._words = _WordHashes()

    def grams(self, text: str) -> np.ndarray:
        """Return the sorted hashes of the word 3-grams; a shorter text counts as one gram."""
        import numpy as np

        words = normalised(text).lower().split()
        if len(self._words) > MAX_CACHED_WORDS:
            self._words.clear()
        if len(words) < 3:
            return np.array([self._words[" ".join(words)]], dtype=np.uint64)
        hashes = np.array(list(map(self._words.__getitem__, words)), dtype=np.uint64)
        odd = _permutations()[0]
        mixed = hashes[:-2] * odd[0] + hashes[1:-1] * odd[1] + hashes[2:] * odd[2]
        mixed.sort()
        return mixed[np.flatnonzero(np.diff(mixed, prepend=~mixed[:1]))]


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Return the share of grams that two sorted sets have in common."""
    import numpy as np

    common = np.intersect1d(one, other, assume_unique=True).size
    return float(common / (one.size + other.size - common))


def signature(grams: np.ndarray) -> np.ndarray:
    """Return the MinHash of a set of grams, (128,) of 64-bit numbers.

    Each permutation is a multiplication by an odd number modulo 2^64, and an addition.
    """
    multipliers, offsets = _permutations()
    return (grams[:, None] * multipliers[None, :] + offsets[None, :]).min(axis=0)


@functools.cache
def _permutations() -> tuple[np.ndarray, np.ndarray]:
    import numpy as np

    generator = np.random.default_rng(_SEED)
    drawn = generator.integers(0, 1 << 63, (2, NUM_PERMUTATIONS), dtype=np.uint64)
    return drawn[0] * np.uint64(2) + np.uint64(1), drawn[1]


def near_duplicates(texts: Sequence[str]) -> Iterator[tuple[int, int, float]]:
    """Yield (i, j, similarity) of near-duplicate texts, i < j, each pair once."""
    shingler = Shingler()
    sets = [shingler.grams(text) for text in texts]
    yield from similar_sets(sets)


def similar_sets(sets: Sequence[np.ndarray]) -> Iterator[tuple[int, int, float]]:
    """Yield (i, j, similarity) of the gram sets that are at least THRESHOLD alike."""
    rows = NUM_PERMUTATIONS // NUM_BANDS
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for number, grams in enumerate(sets):
        marks = signature(grams)
        for band in range(NUM_BANDS):
            buckets[(band, marks[band * rows : (band + 1) * rows].tobytes())].append(number)
    seen: set[tuple[int, int]] = set()
    for members in buckets.values():
        for place, second in enumerate(members):
            for first in members[max(0, place - _MAX_BUCKET) : place]:
                if (first, second) in seen:
                    continue
                seen.add((first, second))
                alike = jaccard(sets[first], sets[second])
                if alike >= THRESHOLD:
                    yield first, second, alike
