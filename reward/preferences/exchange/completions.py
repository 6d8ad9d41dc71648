"""From what a policy answered to comparisons worth judging: nothing empty, equal or cut."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from reward.preferences.records import PreferenceRecord, Prompt, Response, normalised


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer of a policy."""

    text: str
    finished: bool
    "False where the length limit cut it."


@dataclass(slots=True)
class Harvest:
    """Comparisons, and an account of every answer that is in none."""

    records: list[PreferenceRecord] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    "empty, cut, equal or spare -> answers."
    unusable: list[str] = field(default_factory=list)
    "Ids of prompts with fewer than two answers left."


def comparisons(
    asked: Iterable[tuple[str, Prompt]],
    answers: Iterable[Sequence[Completion]],
    *,
    source: str,
    most: int | None = None,
) -> Harvest:
    """Return one comparison a prompt out of the answers that people can judge.

    Args:
        asked: id and prompt.
        answers: the answers to each, in the order they were drawn.
        source: name of the policy, kept with each answer and never shown to annotators.
        most: answers of one comparison; further ones are left out as spare.
    """
    harvest = Harvest()
    for (name, prompt), given in zip(asked, answers, strict=True):
        kept: dict[str, Completion] = {}
        for answer in given:
            reason = _reason(answer, kept, most)
            if reason:
                harvest.left_out[reason] += 1
            else:
                kept[normalised(answer.text)] = answer
        if len(kept) < 2:
            harvest.unusable.append(name)
            continue
        responses = tuple(
            Response(f"r{number}", answer.text, source, "stop") for number, answer in enumerate(kept.values())
        )
        harvest.records.append(PreferenceRecord(prompt, responses, id=name))
    return harvest


def _reason(answer: Completion, kept: dict[str, Completion], most: int | None) -> str | None:
    """Return why an answer is left out; None when it is kept."""
    if not answer.text.strip():
        return "empty"
    if not answer.finished:
        return "cut"
    if normalised(answer.text) in kept:
        return "equal"
    return "spare" if most is not None and len(kept) >= most else None
