"""The processes that train one stage together: who takes which part, and how parts become one whole again.

One process imports nothing of torch.distributed, and every method gives back what it was given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from torch import Tensor, nn

from pipeline.contract import StageContext
from pipeline.place import ONLY, Place

T = TypeVar("T")


class Ranks(Protocol):
    """What the loops ask of the processes that train one stage.

    Every method but `share` and `turns` is a meeting: all ranks must call it, in the same order.
    """

    @property
    def place(self) -> Place:
        """Which of the stage's processes this is."""

    @property
    def readers(self) -> Ranks:
        """The ranks that share a pass without gradients.

        Where each rank holds a part of the base, all of them have to run every layer together: then each
        one reads everything itself.
        """

    @property
    def rank(self) -> int:
        """Number of this process."""

    @property
    def count(self) -> int:
        """Processes in all."""

    @property
    def is_main(self) -> bool:
        """True for the rank that writes."""

    def share(self, parts: Sequence[T]) -> Sequence[T]:
        """Return this rank's parts: every count-th one. A rank may get none."""

    def turns(self, parts: Sequence[T]) -> Sequence[tuple[T, bool]]:
        """Return this rank's parts, and whether each counts.

        Where each rank holds a part of the base all get as many turns; one that does not count only keeps
        up with the others.
        """

    def add_gradients(self, parameters: Sequence[nn.Parameter], total: float) -> float:
        """Put the sum of all ranks' gradients into each one's, and return the sum of their totals.

        A parameter without a gradient on every rank keeps none.
        """

    def add(self, *grids: Tensor) -> None:
        """Put the sum over ranks into each tensor, in place; where one rank alone is not 0, it is exact."""

    def any(self, fact: bool) -> bool:
        """Return whether it is true on any rank."""

    def gathered(self, part: T) -> list[T]:
        """Return what every rank gave, by rank. Plain values and tensors on the CPU only."""

    def from_main(self, make: Callable[[], T]) -> T:
        """Call `make` on the main rank alone, and return its answer on every one. Plain values only."""

    def prove_equal(self, parameters: Sequence[nn.Parameter]) -> None:
        """Check that all ranks hold the same weights, bit for bit.

        Raises:
            StageFailed: they do not.
        """


class OneRank:
    """A stage that is one process."""

    rank, count, is_main, place = 0, 1, True, ONLY

    @property
    def readers(self) -> Ranks:
        """Return itself."""
        return self

    def turns(self, parts: Sequence[T]) -> Sequence[tuple[T, bool]]:
        """Return all parts; all count."""
        return [(part, True) for part in parts]

    def share(self, parts: Sequence[T]) -> Sequence[T]:
        """Return all parts."""
        return parts

    def add_gradients(self, parameters: Sequence[nn.Parameter], total: float) -> float:
        """Return the total; gradients are what they are."""
        return total

    def add(self, *grids: Tensor) -> None:
        """Leave them."""

    def any(self, fact: bool) -> bool:
        """Return it."""
        return fact

    def gathered(self, part: T) -> list[T]:
        """Return it alone."""
        return [part]

    def from_main(self, make: Callable[[], T]) -> T:
        """Return what it makes."""
        return make()

    def prove_equal(self, parameters: Sequence[nn.Parameter]) -> None:
        """Nothing can differ."""


ONE: Ranks = OneRank()


def open_ranks(ctx: StageContext) -> Ranks:
    """Join the other processes of a stage; the second call gives the same group."""
    if ctx.place.count == 1:
        return ONE
    from stages.runtime.process_group import ProcessGroup

    return ProcessGroup.joined(ctx.place)
