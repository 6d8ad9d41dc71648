"""From answers to numbers: utility, win rate, proxy reward, KL, length, variety; with intervals by prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from stages.evaluate import EvaluateConfig
from stages.evaluation.answers import Answers, Task
from stages.evaluation.contestants import BASE
from stages.evaluation.likelihood import Likelihoods
from stages.ops.best_of_n import best_of_n, powers_up_to
from stages.ops.classification import Classified, classify
from stages.ops.diversity import distinct_n, repetition
from stages.ops.intervals import Array, Interval, bootstrap_mean, mean_by_prompt, outcomes
from stages.ops.length_control import length_controlled_win_rate
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
    lc_win_rate: Interval | None = None
    "Win rate at equal length."
    judge_win_rate: Interval | None = None
    "Win rate as a judge over an OpenAI-compatible address sees it."
    overfitting_gap: float | None = None
    "Held-out loss minus the loss on answers that were trained on, nats a token."
    probe_loss: float | None = None
    forgetting: float | None = None
    "Loss on general text minus the base's, nats a token."
    classified: Classified | None = None
    best_of: Mapping[int, float] = field(default_factory=dict)
    "n -> mean worth of the best of n samples, chosen by the proxy reward."

    @property
    def perplexity(self) -> float | None:
        """exp(loss) on held-out demonstrations."""
        return _exp(self.loss)

    def metrics(self) -> dict[str, float]:
        """Return the numbers under family/name."""
        numbers: dict[str, float | None] = {
            "length": self.length,
            "eos_rate": self.eos_rate,
            "distinct_2": self.distinct_2,
            "repetition_3": self.repetition_3,
            "loss": self.loss,
            "perplexity": self.perplexity,
            "overfitting_gap": self.overfitting_gap,
            "probe_loss": self.probe_loss,
            "probe_perplexity": _exp(self.probe_loss),
            "forgetting": self.forgetting,
            **{f"best_of_{n}": worth for n, worth in self.best_of.items()},
        }
        if self.classified is not None:
            numbers["accuracy"] = self.classified.accuracy
            numbers |= {name: self.classified.macro(name) for name in ("precision", "recall", "f1")}
        for family in ("gold", "gold_gain", "win_rate", "lc_win_rate", "proxy", "kl"):
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


def measure(given: Sequence[Scored], task: Task, config: EvaluateConfig) -> list[Measured]:
    """Measure every model, and against the reference on the same prompts; the reference is one of them."""
    reference = next(scored for scored in given if scored.answers.name == config.reference)
    base = next((scored.answers.likelihoods for scored in given if scored.answers.name == BASE), None)
    return [
        replace(
            _measure(scored, reference, config),
            **_read(scored.answers.likelihoods, base, task),
            best_of=_best_of(scored, config),
        )
        for scored in given
    ]


def _read(said: Likelihoods, base: Likelihoods | None, task: Task) -> dict[str, Any]:
    """Return what the likelihood of given texts says of a model."""
    truth = [row.label for row in task.labelled]
    return {
        "loss": said.held_out,
        "overfitting_gap": _minus(said.held_out, said.train),
        "probe_loss": said.probe,
        "forgetting": _minus(said.probe, base.probe if base else None),
        "classified": classify(truth, said.predicted, task.labels) if said.predicted else None,
    }


def _best_of(scored: Scored, config: EvaluateConfig) -> dict[int, float]:
    """Return the curve of best-of-n by proxy reward, in gold utility if there is one."""
    proxy, samples = scored.answers.proxy, config.samples_per_prompt
    if proxy is None or samples < 2:
        return {}
    judged = _table(proxy, config)
    worth = judged if scored.gold is None else _table(scored.gold, config)
    return {n: float(best_of_n(judged, worth, n).mean()) for n in powers_up_to(samples)}


def _measure(scored: Scored, reference: Scored, config: EvaluateConfig) -> Measured:
    answers = scored.answers
    gain = win = even = kl = None
    if scored is not reference:
        if scored.gold is not None and reference.gold is not None:
            gain = _interval(_by_prompt(scored.gold, config) - _by_prompt(reference.gold, config), config)
        if scored.judged is not None and reference.judged is not None:
            wins = outcomes(_table(scored.judged, config), _table(reference.judged, config))
            win = _interval(mean_by_prompt(wins), config)
            even = length_controlled_win_rate(
                mean_by_prompt(wins),
                _by_prompt(_lengths(answers), config) - _by_prompt(_lengths(reference.answers), config),
                draws=config.bootstrap_draws,
                confidence=config.confidence,
                seed=config.seed,
            )
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
        loss=None,
        lc_win_rate=even,
    )


def _lengths(answers: Answers) -> list[float]:
    return [float(len(response)) for response in answers.responses]


def _minus(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def _exp(loss: float | None) -> float | None:
    return None if loss is None else math.exp(min(loss, 700.0))


def _table(values: Sequence[float] | Array, config: EvaluateConfig) -> Array:
    return np.asarray(values, dtype=np.float64).reshape(-1, config.samples_per_prompt)


def _by_prompt(values: Sequence[float] | Array, config: EvaluateConfig) -> Array:
    return mean_by_prompt(_table(values, config))


def _interval(values: Array, config: EvaluateConfig) -> Interval:
    return bootstrap_mean(
        values, draws=config.bootstrap_draws, confidence=config.confidence, seed=config.seed
    )
