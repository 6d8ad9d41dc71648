"""From answers to numbers: utility, win rate, proxy reward, KL, length, variety; with intervals by prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stages.evaluate import EvaluateConfig
from stages.evaluation.answers import Answers, Task
from stages.ops.diversity import distinct_n, repetition
from stages.ops.intervals import Array, Interval, bootstrap_mean, mean_by_prompt, outcomes
from stages.runtime.score_function import ScoreFunction


@dataclass(frozen=True, slots=True)
class Measured:
    """One row of the table. None stands where something was not given or has no meaning."""

    name: str
    gold: Interval | None
    gold_gain: Interval | None
    "Gold utility minus the reference's, prompt by prompt."
    win_rate: Interval | None
    "Share of prompts on which it beats the reference, equal scores counting half."
    proxy: Interval | None
    kl: Interval | None
    "KL to the reference in nats a response: mean of log policy - log reference on its own samples."
    length: float
    "Mean tokens of a response, the stop token included."
    eos_rate: float
    "Share of responses that the model ended itself."
    distinct_2: float
    repetition_3: float
    loss: float | None

    @property
    def perplexity(self) -> float | None:
        """exp(loss) on held-out demonstrations."""
        return None if self.loss is None else math.exp(min(self.loss, 700.0))

    def metrics(self) -> dict[str, float]:
        """Return the numbers under family/name."""
        numbers: dict[str, float | None] = {
            "length": self.length,
            "eos_rate": self.eos_rate,
            "distinct_2": self.distinct_2,
            "repetition_3": self.repetition_3,
            "loss": self.loss,
            "perplexity": self.perplexity,
        }
        for family in ("gold", "gold_gain", "win_rate", "proxy", "kl"):
            interval: Interval | None = getattr(self, family)
            if interval is not None:
                numbers |= {
                    family: interval.mean,
                    f"{family}_low": interval.low,
                    f"{family}_high": interval.high,
                }
        key = self.name.replace(" ", "_")
        return {f"{family}/{key}": value for family, value in numbers.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Scored:
    """The answers of a model with their gold utilities."""

    answers: Answers
    gold: list[float] | None
    "None without a gold function."

    @property
    def judged(self) -> list[float] | None:
        """What decides who wins: gold, else the proxy reward, else nothing."""
        return self.gold if self.gold is not None else self.answers.proxy


def with_gold(answers: Answers, task: Task, gold: ScoreFunction | None) -> Scored:
    """Score each response; the row that the function gets also holds `id` and `finished`."""
    if gold is None:
        return Scored(answers, None)
    per_prompt = len(answers.texts) // len(task.rows)
    scores = []
    for at, (text, finished) in enumerate(zip(answers.texts, answers.finished, strict=True)):
        row = task.rows[at // per_prompt]
        scores.append(gold(row.prompt, text, {**row.meta, "id": row.id, "finished": finished}))
    return Scored(answers, scores)


def measure(given: Sequence[Scored], config: EvaluateConfig) -> list[Measured]:
    """Measure every model, and against the reference on the same prompts; the reference is one of them."""
    reference = next(scored for scored in given if scored.answers.name == config.reference)
    return [_measure(scored, reference, config) for scored in given]


def _measure(scored: Scored, reference: Scored, config: EvaluateConfig) -> Measured:
    answers = scored.answers
    gain = win = kl = None
    if scored is not reference:
        if scored.gold is not None and reference.gold is not None:
            gain = _interval(_by_prompt(scored.gold, config) - _by_prompt(reference.gold, config), config)
        if scored.judged is not None and reference.judged is not None:
            wins = outcomes(_table(scored.judged, config), _table(reference.judged, config))
            win = _interval(mean_by_prompt(wins), config)
        if answers.ref_logps is not None:
            kl = _interval(_by_prompt(np.subtract(answers.logps, answers.ref_logps), config), config)
    return Measured(
        answers.name,
        gold=None if scored.gold is None else _interval(_by_prompt(scored.gold, config), config),
        gold_gain=gain,
        win_rate=win,
        proxy=None if answers.proxy is None else _interval(_by_prompt(answers.proxy, config), config),
        kl=kl,
        length=sum(map(len, answers.responses)) / len(answers.responses),
        eos_rate=sum(answers.finished) / len(answers.finished),
        distinct_2=distinct_n(answers.responses, 2),
        repetition_3=repetition(answers.responses, 3),
        loss=answers.loss,
    )


def _table(values: Sequence[float] | Array, config: EvaluateConfig) -> Array:
    return np.asarray(values, dtype=np.float64).reshape(-1, config.samples_per_prompt)


def _by_prompt(values: Sequence[float] | Array, config: EvaluateConfig) -> Array:
    return mean_by_prompt(_table(values, config))


def _interval(values: Array, config: EvaluateConfig) -> Interval:
    return bootstrap_mean(
        values, draws=config.bootstrap_draws, confidence=config.confidence, seed=config.seed
    )
