"""What choosing the best of n samples is worth, estimated without bias from k >= n samples a prompt."""

from __future__ import annotations

from math import comb, log

import numpy as np

from stages.ops.intervals import Array


def best_of_n(judged: Array, worth: Array, n: int) -> Array:
    """Return the expected worth of the sample that the judge likes best among n, prompt by prompt.

    With the k samples of a prompt in rising order of the judge's score, sample i (from 1) is the best of
    n drawn ones with chance C(i - 1, n - 1) / C(k, n). Samples that the judge scores alike share their
    worth, as when ties are broken by chance.

    Args:
        judged: the judge's scores, (prompts, k).
        worth: what the chosen sample is worth, (prompts, k).
        n: samples to choose from, 1 to k.

    Returns:
        (prompts,).

    Source: Nakano et al. 2021, https://arxiv.org/abs/2112.09332, appendix I (estimator of best-of-n).
    """
    samples = judged.shape[1]
    if not 1 <= n <= samples or worth.shape != judged.shape:
        raise ValueError(f"best of {n} needs at least {n} samples a prompt, there are {samples}")
    chances = np.array([comb(i, n - 1) for i in range(samples)], dtype=np.float64) / comb(samples, n)
    return np.array(
        [float(chances @ _in_rank_order(*rows)) for rows in zip(judged, worth, strict=True)], dtype=np.float64
    )


def kl_of_best_of_n(n: int) -> float:
    """Return log n - (n - 1) / n: KL of best-of-n sampling from plain sampling, in nats, at most.

    Source: Stiennon et al. 2020, https://arxiv.org/abs/2009.01325, appendix G.3; Beirami et al. 2024,
    https://arxiv.org/abs/2401.01879, who prove that it is an upper bound.
    """
    return log(n) - (n - 1) / n


def powers_up_to(samples: int) -> list[int]:
    """Return 1, 2, 4, ... and the number itself."""
    sizes = [1 << power for power in range(samples.bit_length()) if 1 << power <= samples]
    return sizes if sizes and sizes[-1] == samples else [*sizes, samples]


def _in_rank_order(judged: Array, worth: Array) -> Array:
    """Return the worth in rising order of the judge's score, averaged over equal scores."""
    _, group, sizes = np.unique(judged, return_inverse=True, return_counts=True)
    means: Array = np.bincount(group, weights=worth) / sizes
    return np.repeat(means, sizes)
