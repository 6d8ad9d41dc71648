"""Which rows an optimizer step trains on, as a pure function of seed and step: resume needs no more."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import torch

from stages.config import OptimizationConfig


def seed_of(seed: int, *purpose: object) -> int:
    """Return a seed of its own for a purpose, such as (epoch 3, "order"); equal on every machine."""
    text = "|".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big") >> 3


def order(seed: int, epoch: int, num_rows: int) -> list[int]:
    """Return the rows in the order of an epoch: a permutation that depends on seed and epoch only."""
    generator = torch.Generator().manual_seed(seed_of(seed, "order", epoch))
    return torch.randperm(num_rows, generator=generator).tolist()


def steps_an_epoch(config: OptimizationConfig, num_rows: int) -> int:
    """Return the optimizer steps of one pass; the last one may be smaller."""
    return math.ceil(num_rows / (config.per_device_train_batch_size * config.gradient_accumulation_steps))


def total_steps(config: OptimizationConfig, num_rows: int) -> int:
    """Return max_steps when it is set, else the steps of num_train_epochs, rounded up."""
    if config.max_steps is not None:
        return config.max_steps
    return max(1, math.ceil(config.num_train_epochs * steps_an_epoch(config, num_rows)))


def row_batches(
    config: OptimizationConfig, num_rows: int, *, ranks: int = 1
) -> Callable[[int], list[list[int]]]:
    """Return the function that gives a step (from 0) its micro-batches of row indexes.

    Every epoch holds each row once. The last step of an epoch may hold fewer rows; no
    micro-batch is empty. Several ranks that share a step get micro-batches of their own, as far as
    there are rows.

    Raises:
        ValueError: there are no rows.
    """
    if num_rows < 1:
        raise ValueError("there are no rows to train on")
    micro = config.per_device_train_batch_size
    rows_a_step = micro * config.gradient_accumulation_steps
    an_epoch = steps_an_epoch(config, num_rows)
    cached: dict[int, list[int]] = {}

    def batches(step: int) -> list[list[int]]:
        epoch, within = divmod(step, an_epoch)
        if epoch not in cached:
            cached.clear()
            cached[epoch] = order(config.seed, epoch, num_rows)
        rows = cached[epoch][within * rows_a_step : (within + 1) * rows_a_step]
        size = min(micro, math.ceil(len(rows) / ranks))
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    return batches
