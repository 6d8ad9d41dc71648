"""Near-duplicate texts: MinHash finds candidates, exact Jaccard similarity of word 3-grams decides."""

from __future__ import annotations

import functools
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from reward.preferences.records import normalised

if TYPE_CHECKING:
    import numpy as np

THRESHOLD = 0.8
NUM_PERMUTATIONS = 128
NUM_BANDS = 16
MAX_MEMORY_BYTES = 32 << 20
"Gram sets beyond this size go to a temporary file."
_SEED = 20_111
_FACTOR = 0x9E3779B97F4A7C15
_BLANK = ord(" ")
_USUAL_LETTERS = 1 << 15
_MAX_BUCKET = 64
"Within a larger bucket each text is compared with this many texts before it only."


def word_grams(text: str) -> np.ndarray:
    """Return the sorted hashes of the word 3-grams of a text; a shorter text counts as one gram.

    The hash of letters a..b is sum of letter[i] * FACTOR^(i - a) modulo 2^64, from running sums.
    """
    import numpy as np

    letters = np.frombuffer(normalised(text).lower().encode("utf-8", "surrogatepass"), dtype=np.uint8)
    blanks = np.flatnonzero(letters == _BLANK)
    starts = np.append(0, blanks[:-2] + 1) if blanks.size > 1 else np.array([0])
    ends = np.append(blanks[2:], letters.size) if blanks.size > 1 else np.array([letters.size])
    powers, inverses = _powers(letters.size)
    sums = np.zeros(letters.size + 1, dtype=np.uint64)
    np.cumsum(letters * powers[: letters.size], out=sums[1:])
    hashed = (sums[ends] - sums[starts]) * inverses[starts]
    hashed = (hashed ^ (hashed >> np.uint64(32))) * np.uint64(_FACTOR)
    hashed.sort()
    first = np.ones(hashed.size, dtype=bool)
    np.not_equal(hashed[1:], hashed[:-1], out=first[1:])
    return hashed[first]


def _powers(num_letters: int) -> tuple[np.ndarray, np.ndarray]:
    """Return FACTOR^i and FACTOR^-i modulo 2^64 for i from 0 to num_letters or further."""
    return _usual_powers() if num_letters < _USUAL_LETTERS else _power_table(num_letters + 1)


@functools.cache
def _usual_powers() -> tuple[np.ndarray, np.ndarray]:
    return _power_table(_USUAL_LETTERS)


def _power_table(size: int) -> tuple[np.ndarray, np.ndarray]:
    import numpy as np

    tables = []
    for factor in (_FACTOR, pow(_FACTOR, -1, 1 << 64)):
        table = np.full(size, factor, dtype=np.uint64)
        table[0] = 1
        tables.append(np.multiply.accumulate(table))
    return tables[0], tables[1]


class GramSets:
    """Many gram sets in little memory: 136 bytes of marks each; the grams themselves may lie in a file."""

    def __init__(self) -> None:
        self._marks = array("Q")
        self._ends = array("Q", [0])
        self._file = tempfile.SpooledTemporaryFile(max_size=MAX_MEMORY_BYTES)  # noqa: SIM115

    def __len__(self) -> int:
        """Number of sets."""
        return len(self._ends) - 1

    def append(self, grams: np.ndarray) -> None:
        """Add one sorted set."""
        self._marks.frombytes(band_marks(grams).tobytes())
        self._file.write(grams.tobytes())
        self._ends.append(self._ends[-1] + grams.nbytes)

    def __getitem__(self, number: int) -> np.ndarray:
        """Return one set."""
        import numpy as np

        begin, end = self._ends[number], self._ends[number + 1]
        self._file.seek(begin)
        found = np.frombuffer(self._file.read(end - begin), dtype=np.uint64)
        self._file.seek(self._ends[-1])
        return found

    def marks(self) -> np.ndarray:
        """Return the marks of all sets, (sets, bands): sets that share a mark may be alike."""
        import numpy as np

        return np.array(self._marks, dtype=np.uint64).reshape(-1, NUM_BANDS)


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


def band_marks(grams: np.ndarray) -> np.ndarray:
    """Return one number for each band of the MinHash, (bands,)."""
    rows = NUM_PERMUTATIONS // NUM_BANDS
    return (signature(grams).reshape(NUM_BANDS, rows) * _permutations()[0][:rows]).sum(axis=1)


def near_duplicates(texts: Sequence[str]) -> Iterator[tuple[int, int, float]]:
    """Yield (i, j, similarity) of near-duplicate texts, i < j, each pair once."""
    sets = GramSets()
    for text in texts:
        sets.append(word_grams(text))
    yield from similar_sets(sets)


def similar_sets(sets: GramSets) -> Iterator[tuple[int, int, float]]:
    """Yield (i, j, similarity) of the gram sets that are at least THRESHOLD alike, i < j."""
    for one, other in _candidates(sets.marks()):
        alike = jaccard(sets[one], sets[other])
        if alike >= THRESHOLD:
            yield one, other, alike


def similar_between(sets: GramSets, others: GramSets) -> Iterator[tuple[int, int, float]]:
    """Yield (i, j, similarity) of a set and one of the others that are at least THRESHOLD alike."""
    import numpy as np

    border = len(sets)
    for one, other in _candidates(np.concatenate([sets.marks(), others.marks()])):
        if one < border <= other:
            alike = jaccard(sets[one], others[other - border])
            if alike >= THRESHOLD:
                yield one, other - border, alike


def _candidates(marks: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield the pairs of places that share a mark, each once, band by band."""
    import numpy as np

    for band in range(marks.shape[1]):
        order = np.argsort(marks[:, band], kind="stable")
        key = marks[order, band]
        for step in range(1, min(_MAX_BUCKET, len(order) - 1) + 1):
            together = np.flatnonzero(key[step:] == key[:-step])
            if together.size == 0:
                break
            first, second = order[together], order[together + step]
            new = ~(marks[first, :band] == marks[second, :band]).any(axis=1)
            yield from zip(first[new].tolist(), second[new].tolist(), strict=True)
