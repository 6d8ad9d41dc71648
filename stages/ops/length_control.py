"""Win rate at equal length: what would be left of a win rate if both answers were equally long."""

from __future__ import annotations

import numpy as np

from stages.ops.intervals import BLOCK, Array, Interval

RIDGE = 0.1
"Penalty on both coefficients: keeps them finite when one model wins everywhere. 300 prompts outweigh it."
NEWTON_STEPS = 50
LARGEST_STEP = 2.0


def length_controlled_win_rate(
    wins: Array,
    length_differences: Array,
    *,
    draws: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return the win rate that a logistic regression predicts for a length difference of zero.

    P(win) = sigmoid(theta + phi * tanh(d / sd(d)));   result = sigmoid(theta)

    with d the length of the model's answer minus the reference's and sd its standard deviation over
    prompts. theta and phi maximise sum(y log P + (1 - y) log(1 - P)) - RIDGE / 2 * (theta^2 + phi^2).
    AlpacaEval 2 also has a term for the difficulty of each instruction, estimated from many models; with
    two models it cannot be told from noise and is left out.

    Args:
        wins: 1 for a win, 0 for a loss, shares for ties or several samples, (prompts,).
        length_differences: tokens, (prompts,).
        draws: resamples of the prompts behind the interval; each fits both coefficients anew.
        confidence: share of the resampled rates inside the interval.
        seed: the same seed draws the same prompts as bootstrap_mean.

    Raises:
        ValueError: there is no prompt, or a number is not finite.

    Source: Dubois et al. 2024, https://arxiv.org/abs/2404.04475, section 3.
    """
    wins = np.asarray(wins, dtype=np.float64)
    differences = np.asarray(length_differences, dtype=np.float64)
    if not wins.size or wins.shape != differences.shape or not np.isfinite(wins + differences).all():
        raise ValueError("a length-controlled win rate needs finite wins and lengths, one a prompt")
    spread = differences.std()
    lengths = np.tanh(differences / spread) if spread > 0 else np.zeros_like(differences)
    generator = np.random.default_rng(seed)
    rows = max(1, BLOCK // wins.size)
    rates = []
    for start in range(0, draws, rows):
        chosen = generator.integers(wins.size, size=(min(rows, draws - start), wins.size))
        rates.append(_rate_at_equal_length(wins[chosen], lengths[chosen]))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(rates), [tail, 1 - tail])
    return Interval(float(_rate_at_equal_length(wins[None], lengths[None])[0]), float(low), float(high))


def _rate_at_equal_length(wins: Array, lengths: Array) -> Array:
    """Fit every row by Newton's method and return sigmoid(theta): (draws, prompts) -> (draws,)."""
    theta = np.zeros(len(wins))
    phi = np.zeros(len(wins))
    for _ in range(NEWTON_STEPS):
        chance = _sigmoid(theta[:, None] + phi[:, None] * lengths)
        missing, weight = wins - chance, chance * (1 - chance)
        slope_theta = missing.sum(1) - RIDGE * theta
        slope_phi = (missing * lengths).sum(1) - RIDGE * phi
        # The Hessian of two coefficients, inverted by hand.
        a, b, c = weight.sum(1) + RIDGE, (weight * lengths).sum(1), (weight * lengths**2).sum(1) + RIDGE
        determinant = a * c - b * b
        step_theta = (c * slope_theta - b * slope_phi) / determinant
        step_phi = (a * slope_phi - b * slope_theta) / determinant
        theta += np.clip(step_theta, -LARGEST_STEP, LARGEST_STEP)
        phi += np.clip(step_phi, -LARGEST_STEP, LARGEST_STEP)
        if max(np.abs(step_theta).max(), np.abs(step_phi).max()) < 1e-10:
            break
    return _sigmoid(theta)


def _sigmoid(values: Array) -> Array:
    rates: Array = 0.5 * (1 + np.tanh(values / 2))
    return rates
