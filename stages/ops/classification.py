"""How well labels are told apart: confusion, precision, recall and F1. Plain arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class ClassScores:
    """One label."""

    label: str
    precision: float
    "Of what was called so, the share that is; 0 when nothing was called so."
    recall: float
    "Of what is so, the share that was called so; 0 when nothing is."
    f1: float
    support: int
    "Rows that are so."


@dataclass(frozen=True, slots=True)
class Classified:
    """All labels together. Means over labels are plain ones (macro)."""

    labels: tuple[str, ...]
    confusion: NDArray[np.int64]
    "True label by row, predicted label by column."
    classes: tuple[ClassScores, ...]
    accuracy: float

    def macro(self, name: str) -> float:
        """Return the mean over labels of precision, recall or f1."""
        return float(np.mean([getattr(row, name) for row in self.classes]))


def classify(truth: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> Classified:
    """Count and score predictions.

    Raises:
        ValueError: no row, unequal numbers of rows, or a label that is not listed.
    """
    if not truth or len(truth) != len(predicted):
        raise ValueError(f"{len(truth)} labels and {len(predicted)} predictions")
    number = {label: at for at, label in enumerate(labels)}
    if unknown := {*truth, *predicted} - number.keys():
        raise ValueError(f"labels that are not listed: {sorted(unknown)}")
    confusion = np.zeros((len(labels), len(labels)), dtype=np.int64)
    for true, said in zip(truth, predicted, strict=True):
        confusion[number[true], number[said]] += 1
    classes = tuple(_scores(label, confusion, at) for at, label in enumerate(labels))
    return Classified(tuple(labels), confusion, classes, float(np.trace(confusion) / confusion.sum()))


def _scores(label: str, confusion: NDArray[np.int64], at: int) -> ClassScores:
    hits, called, support = confusion[at, at], confusion[:, at].sum(), confusion[at].sum()
    precision = float(hits / called) if called else 0.0
    recall = float(hits / support) if support else 0.0
    both = precision + recall
    return ClassScores(label, precision, recall, 2 * precision * recall / both if both else 0.0, int(support))
