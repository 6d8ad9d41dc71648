"""Near-duplicate texts: MinHash finds candidates, exact Jaccard similarity of word 3-grams decides."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from reward.preferences.records import normalised

if TYPE_CHECKING:
    import numpy as np

THRESHOLD = 0.8
NUM_PERMUTATIONS = 128
NUM_BANDS = 16
_MERSENNE_31 = (1 << 31) - 1
_SIGNATURE_SEED = 20_111
_MAX_BUCKET = 64
"Within a larger bucket each text is compared with the texts nearest to it in the bucket only."


def shingles(text: str) -> np.ndarray:
    """Return the sorted hashes of the word 3-grams of a text; shorter texts count as one gram."""
    import numpy as np
    import xxhash

    words = normalised(text).lower().split()
    if len(words) < 3:
        return np.array([xxhash.xxh64_intdigest(" ".join(words).encode())], dtype=np.uint64)
    grams = {" ".join(words[place : place + 3]).encode() for place in range(len(words) - 2)}
    hashes = np.fromiter((xxhash.xxh64_intdigest(gram) for gram in grams), np.uint64, len(grams))
    hashes.sort()
    return hashes


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Return the share of grams that two sorted sets have in common."""
    import numpy as np

    common = np.intersect1d(one, other, assume_unique=True).size
    return float(common / (one.size + other.size - common))


def signature(grams: np.ndarray) -> np.ndarray:
    """Return the MinHash of a set of grams, (128,) of 64-bit numbers."""
    import numpy as np

    multipliers, offsets = _permutations()
    folded = (grams % np.uint64(_MERSENNE_31)).astype(np.uint64)
    products = folded[:, None] * multipliers[None, :] + offsets[None, :]
    return np.asarray((products % np.uint64(_MERSENNE_31)).min(axis=0))


def _permutations() -> tuple[np.ndarray, np.ndarray]:
    import numpy as np

    generator = np.random.default_rng(_SIGNATURE_SEED)
    multipliers = generator.integers(1, _MERSENNE_31, NUM_PERMUTATIONS, dtype=np.uint64)
    offsets = generator.integers(0, _MERSENNE_31, NUM_PERMUTATIONS, dtype=np.uint64)
    return multipliers, offsets


def near_duplicates(texts: Sequence[str]) -> Iterator[tuple[int, int, float]]:
    """Yield (i, j, similarity) of near-duplicate texts, i < j, each pair once."""
    sets = [shingles(text) for text in texts]
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
