"""What is random in PPO, as pure functions of seed and iteration: nothing to save, nothing to lose."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from stages.ppo import PPOConfig


def seeded(seed: int, *purpose: str | int) -> torch.Generator:
    """Return a fresh generator for one purpose, such as (\"sample\", iteration)."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def prompts_of(iteration: int, *, num_prompts: int, batch_size: int, seed: int) -> list[int]:
    """Return which prompts an iteration answers: every pass over them is a new permutation."""
    rows: list[int] = []
    position = iteration * batch_size
    while len(rows) < batch_size:
        epoch, start = divmod(position + len(rows), num_prompts)
        order = torch.randperm(num_prompts, generator=seeded(seed, "prompts", epoch)).tolist()
        rows.extend(order[start : start + batch_size - len(rows)])
    return rows


def minibatches(
    lengths: Sequence[int], config: PPOConfig, *, iteration: int, epoch: int
) -> list[list[list[int]]]:
    """Return the rows of each micro-batch of each minibatch of one pass over the rollouts.

    Which rows share a minibatch does not depend on the micro-batch size. Inside a minibatch
    rows of like length go together.
    """
    generator = seeded(config.seed, "minibatches", iteration, epoch)
    order = torch.randperm(len(lengths), generator=generator)
    size = config.per_device_train_batch_size
    parts = []
    for part in order.tensor_split(config.num_mini_batches):
        rows = sorted(part.tolist(), key=lambda row: (lengths[row], row))
        parts.append([rows[start : start + size] for start in range(0, len(rows), size)])
    return parts


def learning_rate_factor(iteration: int, config: PPOConfig) -> float:
    """Return the share of the peak learning rate that an iteration uses; the last one still learns."""
    total = config.iterations
    warmup = max(1, round(config.warmup_ratio * total))
    rise = min(1.0, (iteration + 1) / warmup)
    left = 1.0 - iteration / total
    fall = {
        "linear": left,
        "cosine": 0.5 * (1 + float(torch.cos(torch.tensor((1 - left) * torch.pi, dtype=torch.float64)))),
        "constant": 1.0,
    }
    return rise * fall[config.lr_scheduler_type]
