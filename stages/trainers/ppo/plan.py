"""What is random in PPO, as pure functions of seed and iteration: nothing to save, nothing to lose."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from stages.ppo import PPOConfig
from stages.trainers.order import order, seed_of


def sampling_generator(seed: int, iteration: int) -> torch.Generator:
    """Return the generator that an iteration samples its responses with."""
    return torch.Generator().manual_seed(seed_of(seed, "sample", iteration))


def prompts_of(
    iteration: int, *, num_prompts: int, batch_size: int, seed: int, group_size: int = 1
) -> list[int]:
    """Return which prompts an iteration answers: every pass over them is a new permutation.

    With a group size each prompt stands that many times in a row.
    """
    batch_size //= group_size
    rows: list[int] = []
    while len(rows) < batch_size:
        epoch, start = divmod(iteration * batch_size + len(rows), num_prompts)
        rows.extend(order(seed, epoch, num_prompts)[start : start + batch_size - len(rows)])
    return [row for row in rows for _ in range(group_size)]


def minibatches(
    lengths: Sequence[int], config: PPOConfig, *, iteration: int, epoch: int, ranks: int = 1
) -> list[list[list[int]]]:
    """Return the rows of each micro-batch of each minibatch of one pass over the rollouts.

    Which rows share a minibatch does not depend on the micro-batch size. Inside a minibatch
    rows of like length go together; the responses to one prompt always do.

    Args:
        lengths: tokens of each rollout, prompt included.
        config: how many minibatches, how many rows a micro-batch.
        iteration: of the stage.
        epoch: pass over the rollouts of this iteration.
        ranks: processes that share each minibatch; it is cut finer until each has something to do.
    """
    group, rows_at_once = config.group_size, config.per_device_train_batch_size
    together = [sum(lengths[start : start + group]) for start in range(0, len(lengths), group)]
    seed = seed_of(config.seed, "minibatches", iteration)
    shuffled = torch.tensor(order(seed, epoch, len(together)))
    parts = []
    for part in shuffled.tensor_split(config.num_mini_batches):
        groups = sorted(part.tolist(), key=lambda number: (together[number], number))
        rows = [row for number in groups for row in range(number * group, (number + 1) * group)]
        size = min(rows_at_once, math.ceil(len(rows) / ranks))
        parts.append([rows[start : start + size] for start in range(0, len(rows), size)])
    return parts


def learning_rate_factor(iteration: int, config: PPOConfig) -> float:
    """Return the share of the peak learning rates that an iteration uses; the last one still learns."""
    total = config.iterations
    rise = min(1.0, (iteration + 1) / max(1, math.ceil(config.warmup_ratio * total)))
    done = iteration / total
    if config.lr_scheduler_type == "cosine":
        return rise * 0.5 * (1 + math.cos(math.pi * done))
    return rise * (1 - done if config.lr_scheduler_type == "linear" else 1.0)
