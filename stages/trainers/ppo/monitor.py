"""Says when PPO goes wrong: what to look for in the metrics of its iterations. No tensors here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Line = Mapping[str, float]
"Metrics of one iteration."

HISTORY = 20
"Iterations that the monitor looks back on."
WINDOW = 5
"Iterations whose mean counts as now: one batch alone is noise."
LENGTH_GROWTH = 1.3
"Responses this many times as long as at the start, with scores that follow length, are suspicious."
LENGTH_CORRELATION = 0.5
"Correlation of score and length within a batch from which scores follow length."
ENTROPY_LEFT = 0.1
"Share of the first entropy below which the policy has collapsed."
EOS_LEFT = 0.5
"Share of the first rate of finished responses below which the policy has unlearned to end."
DISTINCT_LEFT = 0.7
"Share of the first rate of distinct tokens below which responses repeat themselves."
SCORE_GAIN = 0.5
"Rise of the score, in its first standard deviations, that counts as learning."
WATCHED_LOSS = 0.25
"Fall of the watched score, in its first standard deviations, that counts as harm."


@dataclass(frozen=True, slots=True)
class Alarm:
    """One thing that went wrong."""

    name: str
    "Stable name: kl, entropy, eos, value, length, repetition, reward_hacking."
    message: str
    "One sentence with the numbers."


def find_alarms(first: Line, recent: Sequence[Line], *, max_kl: float) -> list[Alarm]:
    """Return what is wrong now.

    Args:
        first: metrics of the first iteration, before any training.
        recent: metrics of the last iterations, oldest first, at most HISTORY of them.
        max_kl: KL of a response to the reference, nats, that is a blow-up.
    """
    if not recent:
        return []
    messages = {name: rule(first, recent) for name, rule in _RULES.items()}
    kl = recent[-1]["objective/kl"]
    if kl > max_kl:
        messages["kl"] = f"a response is {kl:.1f} nats away from the reference, more than {max_kl:g}"
    return [Alarm(name, text) for name, text in sorted(messages.items()) if text is not None]


def _entropy(first: Line, recent: Sequence[Line]) -> str | None:
    start, now = first["policy/entropy_avg"], _now(recent, "policy/entropy_avg")
    if now >= ENTROPY_LEFT * start:
        return None
    return f"entropy fell from {start:.3g} to {now:.3g} nats a token: the policy answers in one way only"


def _eos(first: Line, recent: Sequence[Line]) -> str | None:
    start, now = first["ppo/eos_rate"], _now(recent, "ppo/eos_rate")
    if start == 0 or now >= EOS_LEFT * start:
        return None
    return f"{now:.0%} of the responses end by themselves, {start:.0%} did at the start"


def _value(first: Line, recent: Sequence[Line]) -> str | None:
    if "ppo/explained_variance" not in first:
        return None
    explained = [line["ppo/explained_variance"] for line in recent[-HISTORY:]]
    if len(explained) < HISTORY or max(explained) >= 0:
        return None
    return f"for {HISTORY} iterations the value function was worse than a constant ({explained[-1]:.2f})"


def _length(first: Line, recent: Sequence[Line]) -> str | None:
    start, now = first["ppo/response_length"], _now(recent, "ppo/response_length")
    follows = _now(recent, "ppo/score_length_correlation")
    if now < LENGTH_GROWTH * start or follows < LENGTH_CORRELATION or _gain(first, recent) < SCORE_GAIN:
        return None
    return (
        f"the score rises with length (correlation {follows:.2f}): "
        f"responses grew from {start:.1f} to {now:.1f} tokens"
    )


def _repetition(first: Line, recent: Sequence[Line]) -> str | None:
    start, now = first["ppo/distinct_ratio"], _now(recent, "ppo/distinct_ratio")
    if now >= DISTINCT_LEFT * start:
        return None
    return f"{now:.0%} of a response's tokens are new in it, {start:.0%} were at the start"


def _reward_hacking(first: Line, recent: Sequence[Line]) -> str | None:
    if "ppo/watched_score" not in first:
        return None
    gain, change = _gain(first, recent), _gain(first, recent, "ppo/watched_score", "ppo/watched_std")
    if gain < SCORE_GAIN or change > -WATCHED_LOSS:
        return None
    return (
        f"the score rose by {gain:.2f} of its first deviations while the watched score fell by {-change:.2f}"
    )


_RULES: Mapping[str, Callable[[Line, Sequence[Line]], str | None]] = {
    "entropy": _entropy,
    "eos": _eos,
    "value": _value,
    "length": _length,
    "repetition": _repetition,
    "reward_hacking": _reward_hacking,
}
NAMES = ("kl", *_RULES)


def _now(recent: Sequence[Line], name: str) -> float:
    lines = recent[-WINDOW:]
    return sum(line[name] for line in lines) / len(lines)


def _gain(
    first: Line, recent: Sequence[Line], name: str = "objective/scores", spread: str = "ppo/score_std"
) -> float:
    """Return the change since the first iteration in standard deviations of a response there."""
    return (_now(recent, name) - first[name]) / max(first[spread], 1e-6)
