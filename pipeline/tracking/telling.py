"""The few numbers of a stage that a person who watches it wants to see."""

from __future__ import annotations

import math
from collections.abc import Mapping

TELLING = (
    ("objective/scores", "score"),
    ("objective/kl", "kl"),
    ("rewards/accuracies", "accuracy"),
    ("rewards/margins", "margin"),
    ("eval_loss", "eval loss"),
    ("loss", "loss"),
)
"Metrics by weight, with the words for them; the first of them that a stage logs are shown."
MOST = 3
SPEED = "tokens_per_second"


def telling(metrics: Mapping[str, float]) -> str:
    """Return up to three numbers and the speed, such as `accuracy 0.81, loss 0.432, 8155 tokens/s`."""
    known = [(word, metrics[name]) for name, word in TELLING if name in metrics][:MOST]
    parts = [f"{word} {float(value):.3g}" for word, value in known]
    speed = metrics.get(SPEED, math.nan)
    return ", ".join([*parts, f"{speed:.0f} tokens/s"] if math.isfinite(speed) else parts)
