"""Texts worded alike: cosine of TF-IDF weighted character n-grams, against one set of targets at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reward.preferences.records import normalised

if TYPE_CHECKING:
    import numpy as np

GRAM_SIZES = (3, 4, 5)
NUM_BUCKETS = 1 << 20
MAX_CHARS = 2000
COMMON_SHARE = 0.1
MIN_TARGETS = 200
"Grams of more than COMMON_SHARE of this many or more targets say little and are left out of the search."
_BLANK = ord(" ")
_FACTOR = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True)
class CharGrams:
    """Hashed character n-grams of a text, each bucket once, and how often it occurs."""

    buckets: np.ndarray
    times: np.ndarray

    @classmethod
    def of(cls, text: str) -> CharGrams:
        """Return the 3- to 5-grams of bytes of the words of a text, each word between blanks."""
        import numpy as np

        words = " ".join(normalised(text).lower()[:MAX_CHARS].split())
        padded = f" {words} " if words else ""
        letters = np.frombuffer(padded.encode("utf-8", "surrogatepass"), dtype=np.uint8)
        found = [np.empty(0, dtype=np.uint64)]
        for size in GRAM_SIZES[: max(0, letters.size - GRAM_SIZES[0] + 1)]:
            windows = np.lib.stride_tricks.sliding_window_view(letters, size)
            inside = windows[(windows[:, 1:-1] != _BLANK).all(axis=1)].astype(np.uint64)
            code = np.full(len(inside), size, dtype=np.uint64)
            for place in range(inside.shape[1]):
                code = (code ^ inside[:, place]) * np.uint64(_FACTOR)
                code ^= code >> np.uint64(29)
            found.append(code % np.uint64(NUM_BUCKETS))
        return cls(*np.unique(np.concatenate(found).astype(np.int64), return_counts=True))


class Nearest:
    """Finds the nearest of some targets by cosine of TF-IDF weights; targets are indexed by gram."""

    def __init__(self, targets: Sequence[CharGrams]) -> None:
        import numpy as np

        self._num_targets = num = len(targets)
        buckets = np.concatenate([target.buckets for target in targets]) if num else np.empty(0, np.int64)
        times = np.concatenate([target.times for target in targets]) if num else np.empty(0, np.int64)
        owner = np.repeat(np.arange(num), [len(target.buckets) for target in targets])
        frequency = np.bincount(buckets, minlength=NUM_BUCKETS)
        self._weight = np.log((1 + num) / (1 + frequency)) + 1
        values = times * self._weight[buckets]
        norm = np.sqrt(np.bincount(owner, values * values, minlength=num))
        searched = frequency <= COMMON_SHARE * num if num >= MIN_TARGETS else frequency > 0
        kept = np.flatnonzero(searched[buckets])
        kept = kept[np.argsort(buckets[kept], kind="stable")]
        self._owner = owner[kept]
        self._value = values[kept] / norm[self._owner]
        self._start = np.searchsorted(buckets[kept], np.arange(NUM_BUCKETS + 1))

    def find(self, text: CharGrams) -> tuple[int, float] | None:
        """Return the nearest target and its cosine; None when there is no target."""
        import numpy as np

        values = text.times * self._weight[text.buckets]
        norm = float(np.sqrt((values * values).sum()))
        if not norm or not self._num_targets:
            return None
        begin, sizes = self._start[text.buckets], np.diff(self._start)[text.buckets]
        ends = np.cumsum(sizes)
        total = int(ends[-1])
        places = np.arange(total) + np.repeat(begin - ends + sizes, sizes)
        weights = self._value[places] * np.repeat(values, sizes)
        scores = np.bincount(self._owner[places], weights, minlength=self._num_targets)
        best = int(scores.argmax())
        return best, float(scores[best] / norm)
