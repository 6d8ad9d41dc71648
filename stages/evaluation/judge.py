"""Win rates by a judge: every pair is shown in both orders, so that a taste for a place cancels out."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from pipeline.errors import Interrupted
from stages.evaluate import EvaluateConfig
from stages.evaluation.answers import Answers, Task, prompt_text
from stages.evaluation.judge_client import JudgeClient, Reply
from stages.judge_config import JudgeConfig
from stages.ops.intervals import Interval, bootstrap_mean

QUESTION = "[Prompt]\n{prompt}\n\n[Answer A]\n{a}\n\n[Answer B]\n{b}\n\n[Which is better: A, B or TIE?]"
_VERDICT = re.compile(r"\b(A|B|TIE)\b", re.IGNORECASE)


@dataclass(slots=True)
class Bill:
    """What the judge said and what it took, over all models."""

    calls: int = 0
    cached: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    unclear: int = 0
    "Replies without A, B or TIE; they count as ties."
    first: float = 0.0
    "Verdicts for the answer shown first, ties counting half."

    def add(self, reply: Reply, verdict: float | None) -> None:
        """Count one reply. What comes from the cache costs nothing."""
        if reply.cached:
            self.cached += 1
        else:
            self.calls += 1
            self.input_tokens += reply.input_tokens
            self.output_tokens += reply.output_tokens
        self.unclear += verdict is None
        self.first += 0.5 if verdict is None else verdict

    def metrics(self, config: JudgeConfig) -> dict[str, float]:
        """Return counts, and the price of the calls that were made."""
        price = self.input_tokens * config.input_price + self.output_tokens * config.output_price
        replies = self.calls + self.cached
        return {
            "judge/calls": float(self.calls),
            "judge/cached": float(self.cached),
            "judge/input_tokens": float(self.input_tokens),
            "judge/output_tokens": float(self.output_tokens),
            "judge/unclear": float(self.unclear),
            "judge/price": price / 1e6,
            **({"judge/first_share": self.first / replies} if replies else {}),
        }


@dataclass(frozen=True, slots=True)
class Judged:
    """Win rates by model, and the bill."""

    win_rates: dict[str, Interval] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


def judge(
    given: Sequence[Answers],
    task: Task,
    config: EvaluateConfig,
    client: JudgeClient,
    *,
    stopped: Callable[[], bool],
) -> Judged:
    """Compare the first answer of every model with the reference's, on the first prompts.

    Raises:
        DataError: the judge does not answer.
        Interrupted: the stage was asked to stop; replies so far are kept.
    """
    setting = config.judge
    if setting is None:
        return Judged()
    reference = next(answers for answers in given if answers.name == config.reference)
    rows = range(len(task.rows))[: setting.max_prompts]
    bill, rates = Bill(), {}
    with ThreadPoolExecutor(setting.parallel) as pool:
        for answers in given:
            if answers is reference:
                continue
            wins = []
            for start in range(0, len(rows), setting.parallel):
                if stopped():
                    raise Interrupted("stopped while judging", hint="run the same command again")
                part = rows[start : start + setting.parallel]
                pairs = [_pair(answers, reference, task, row=row, config=config) for row in part]
                wins += [_score(found, bill) for found in pool.map(lambda pair: _ask(client, pair), pairs)]
            rates[answers.name] = bootstrap_mean(
                np.array(wins), draws=config.bootstrap_draws, confidence=config.confidence, seed=config.seed
            )
    named = {
        f"judge_win_rate{part}/{name.replace(' ', '_')}": value
        for name, rate in rates.items()
        for part, value in (("", rate.mean), ("_low", rate.low), ("_high", rate.high))
    }
    return Judged(rates, {**named, **bill.metrics(setting)})


def verdict_of(text: str) -> float | None:
    """Return 1 for A, 0 for B, 1/2 for a tie; None when the reply says none or contradicts itself."""
    found = {word.upper() for word in _VERDICT.findall(text.strip())}
    # "a" is also an article: a single word decides, else capitals only.
    if len(found) > 1:
        found = set(re.findall(r"\b(A|B|TIE)\b", text))
    return {"A": 1.0, "B": 0.0, "TIE": 0.5}[found.pop()] if len(found) == 1 else None


def _pair(
    answers: Answers, reference: Answers, task: Task, *, row: int, config: EvaluateConfig
) -> tuple[str, str, str]:
    at = row * config.samples_per_prompt
    return prompt_text(task.rows[row].prompt), answers.texts[at], reference.texts[at]


def _ask(client: JudgeClient, pair: tuple[str, str, str]) -> list[Reply]:
    """Return the replies to both orders; equal answers need no judge."""
    prompt, own, other = pair
    if own == other:
        return []
    return [
        client.ask(QUESTION.format(prompt=prompt, a=first, b=second))
        for first, second in ((own, other), (other, own))
    ]


def _score(replies: Sequence[Reply], bill: Bill) -> float:
    """Return the mean of both orders as the model's own win; count the replies."""
    if not replies:
        return 0.5
    verdicts = [verdict_of(reply.text) for reply in replies]
    for reply, verdict in zip(replies, verdicts, strict=True):
        bill.add(reply, verdict)
    own, swapped = (0.5 if verdict is None else verdict for verdict in verdicts)
    return (own + 1 - swapped) / 2
