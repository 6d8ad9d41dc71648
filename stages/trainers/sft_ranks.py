"""How several processes share an optimizer step of SFT: the same rows a step as one process, none twice."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import DataLoader, Dataset, Sampler

from stages.runtime.ranks import Ranks
from stages.sft import SftConfig, rows_a_rank
from stages.trainers.sft_rows import IGNORED

IDLE = -1
"Stands for a row that counts in no loss: a rank without rows of its own still takes its turn."
Row = Mapping[str, list[int]]


@dataclass(frozen=True, slots=True)
class Share:
    """What one process takes of an optimizer step."""

    rows_a_step: int
    "Of all processes together: per_device_train_batch_size * gradient_accumulation_steps, as for one."
    micro_batch: int
    "Rows of a micro-batch."
    micro_batches: int
    "Micro-batches of one process in one step."

    @classmethod
    def of(cls, config: SftConfig, count: int) -> Share:
        """Cut a step among processes: whole micro-batches where they divide, else smaller ones.

        Raises:
            ValueError: the rows of a step cannot be divided; the card's check says so before.
        """
        micro = rows_a_rank(config, count)
        if micro is None:
            raise ValueError(f"a step cannot be divided among {count} processes")
        rows = config.per_device_train_batch_size * config.gradient_accumulation_steps
        return cls(rows, micro, rows // (count * micro))


class RankBatches(Sampler[list[int]]):
    """The micro-batches of one rank, by row: every rank gets as many, in the order of one process.

    Accelerate's own sharding repeats rows until the last step is full; this one leaves ranks idle.
    """

    def __init__(self, num_rows: int, share: Share, ranks: Ranks, *, seed: int) -> None:
        self._share, self._ranks, self._num_rows = share, ranks, num_rows
        # What accelerate makes of the trainer's sampler in one process.
        self._order = SeedableRandomSampler(range(num_rows), generator=torch.Generator(), data_seed=seed)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self._order.set_epoch(epoch)

    def __len__(self) -> int:
        """Micro-batches of this rank in an epoch."""
        return sum(len(self._parts(rows)) // self._ranks.count for rows in self._steps(range(self._num_rows)))

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the rows of each micro-batch of this rank."""
        for rows in self._steps(list(self._order)):
            yield from self._ranks.share(self._parts(rows))

    def _steps(self, rows: Sequence[int]) -> list[Sequence[int]]:
        size = self._share.rows_a_step
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def _parts(self, rows: Sequence[int]) -> list[list[int]]:
        """Cut the rows of a step into as many micro-batches for every rank; the last ones may be idle."""
        count = self._ranks.count
        size = min(self._share.micro_batch, math.ceil(len(rows) / count))
        parts = [list(rows[start : start + size]) for start in range(0, len(rows), size)]
        return parts + [[IDLE]] * (-len(parts) % count)


class _RowsOrIdle(Dataset[Row]):
    """Rows by number; IDLE is the first row with no token that counts."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> Row:
        if number != IDLE:
            return self._rows[number]
        row = self._rows[0]
        return {**row, "labels": [IGNORED] * len(row["labels"])}


class RankLoader(DataLoader[Row]):
    """Loads this rank's micro-batches; the trainer tells it the epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        if isinstance(self.batch_sampler, RankBatches):
            self.batch_sampler.set_epoch(epoch)

    @classmethod
    def of(cls, rows: Sequence[Row], batches: RankBatches, collator: object) -> RankLoader:
        """Load rows in the order of `batches`."""
        return cls(_RowsOrIdle(rows), batch_sampler=batches, collate_fn=collator)
