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
_TILE = 256
"Texts of a bucket that are compared at once."
_CELLS = 1 << 20
"Numbers in a table of sets and grams (4 MB)."
_FEW = 4
"So few pairs are compared one by one."


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

    def sizes(self) -> np.ndarray:
        """Return how many grams each set holds, (sets,)."""
        import numpy as np

        return np.diff(np.array(self._ends, dtype=np.int64)) // np.dtype(np.uint64).itemsize

    def marks(self) -> np.ndarray:
        """Return the marks of all sets, (sets, bands): sets that share a mark may be alike."""
        import numpy as np

        return np.array(self._marks, dtype=np.uint64).reshape(-1, NUM_BANDS)


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
    yield from _similar(_Pool((sets,)))


def similar_between(sets: GramSets, others: GramSets) -> Iterator[tuple[int, int, float]]:
    """Yield (i, j, similarity) of a set and one of the others that are at least THRESHOLD alike."""
    border = len(sets)
    for one, other, alike in _similar(_Pool((sets, others), border)):
        yield one, other - border, alike


class _Pool:
    """Gram sets that are compared with each other; with a border, only sets before it with sets behind it."""

    def __init__(self, parts: Sequence[GramSets], border: int | None = None) -> None:
        import numpy as np

        self._parts, self._border = parts, border
        self.marks = np.concatenate([part.marks() for part in parts])
        self.sizes = np.concatenate([part.sizes() for part in parts])

    def grams(self, number: int) -> np.ndarray:
        """Return one set."""
        first = self._parts[0]
        return first[number] if number < len(first) else self._parts[1][number - len(first)]

    def worth_comparing(self, first: np.ndarray, second: np.ndarray, band: int) -> np.ndarray:
        """Say of each pair whether it may be alike and was not met in an earlier band, (pairs,)."""
        import numpy as np

        one, other = self.sizes[first], self.sizes[second]
        # No two sets have more in common than the smaller one holds.
        found = np.minimum(one, other) / np.maximum(one, other) >= THRESHOLD
        found &= ~(self.marks[first, :band] == self.marks[second, :band]).any(axis=1)
        if self._border is not None:
            found &= (first < self._border) & (second >= self._border)
        kept: np.ndarray = found
        return kept


def _similar(pool: _Pool) -> Iterator[tuple[int, int, float]]:
    """Yield the similar pairs band by band, within a band the nearest in its order first."""
    import numpy as np

    for band in range(NUM_BANDS):
        order = np.argsort(pool.marks[:, band], kind="stable")
        found = [
            part for tile in _tiles(pool.marks[order, band]) for part in _compare(pool, order, tile, band)
        ]
        if not found:
            continue
        step, place, first, second, alike = (np.concatenate(column) for column in zip(*found, strict=True))
        sequence = np.lexsort((place, step))
        rows = (column[sequence].tolist() for column in (first, second, alike))
        yield from zip(*rows, strict=True)


def _tiles(key: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Yield (start, begin, end) of stretches of equal keys: from begin on is new, the rest stands before."""
    import numpy as np

    borders = np.flatnonzero(key[1:] != key[:-1]) + 1
    starts, ends = np.append(0, borders), np.append(borders, key.size)
    shared = ends - starts > 1
    for start, end in zip(starts[shared].tolist(), ends[shared].tolist(), strict=True):
        for begin in range(start, end, _TILE):
            yield max(start, begin - _MAX_BUCKET), begin, min(begin + _TILE, end)


def _compare(
    pool: _Pool, order: np.ndarray, tile: tuple[int, int, int], band: int
) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield distance and place in the order, both sets and similarity, of the similar pairs of a tile."""
    import numpy as np

    start, begin, end = tile
    steps = np.arange(1, min(_MAX_BUCKET, end - start - 1) + 1)
    places = np.arange(start, end - 1)
    place, step = (grid.ravel() for grid in np.meshgrid(places, steps, indexing="ij"))
    inside = (place + step >= begin) & (place + step < end)
    place, step = place[inside], step[inside]
    first, second = order[place], order[place + step]
    kept = pool.worth_comparing(first, second, band)
    place, step, first, second = place[kept], step[kept], first[kept], second[kept]
    if not first.size:
        return
    common = _common(pool, first, second)
    alike = common / (pool.sizes[first] + pool.sizes[second] - common)
    near = alike >= THRESHOLD
    yield step[near], place[near], first[near], second[near], alike[near]


def _common(pool: _Pool, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return how many grams each pair of sets shares, (pairs,).

    Every set is read once. With a row a set and a column a gram, the counts are the products of the rows;
    a gram of one set only is left out.
    """
    import numpy as np

    if first.size <= _FEW:
        pairs = zip(first.tolist(), second.tolist(), strict=True)
        return np.array(
            [np.intersect1d(pool.grams(a), pool.grams(b), assume_unique=True).size for a, b in pairs]
        )
    numbers, place = np.unique(np.concatenate([first, second]), return_inverse=True)
    sets = [pool.grams(number) for number in numbers.tolist()]
    _, gram, count = np.unique(np.concatenate(sets), return_inverse=True, return_counts=True)
    row = np.repeat(np.arange(len(sets)), [grams.size for grams in sets])
    shared = count[gram] > 1
    row, column = row[shared], (np.cumsum(count > 1) - 1)[gram[shared]]
    products = np.zeros((len(sets), len(sets)), dtype=np.float32)
    num_shared = int((count > 1).sum())
    width = min(num_shared, _CELLS // len(sets))
    for begin in range(0, num_shared, max(1, width)):
        inside = (column >= begin) & (column < begin + width)
        table = np.zeros((len(sets), width), dtype=np.float32)
        table[row[inside], column[inside] - begin] = 1
        products += table @ table.T
    return products[place[: first.size], place[first.size :]].astype(np.int64)
