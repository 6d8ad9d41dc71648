"""Prompts that stand twice: nearly the same prompt in one file, or in a file and its evaluation files."""

from __future__ import annotations

import math
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from reward.preferences.checks.result import CheckResult, Example, Verdict
from reward.preferences.checks.settings import CheckSettings
from reward.preferences.near import THRESHOLD, Shingler, similar_sets
from reward.preferences.records import Prompt, normalised, prompt_group, prompt_words

if TYPE_CHECKING:
    import numpy as np

GROUP = "leakage"
REPHRASED = 0.75
"Cosine of character n-grams from which a prompt counts as rephrased."
GRAM_SIZES = (3, 4, 5)
NUM_BUCKETS = 1 << 20
MAX_CHARS = 2000


@dataclass(slots=True)
class PromptSets:
    """The distinct prompts of a file: their grams, and the line where each stands first."""

    groups: dict[str, int] = field(default_factory=dict)
    lines: list[int] = field(default_factory=list)
    grams: list[np.ndarray] = field(default_factory=list)
    profiles: list[np.ndarray] = field(default_factory=list)
    "Hashed character n-grams with repeats, for prompts that are compared with evaluation files."
    profiled: bool = False
    shingler: Shingler = field(default_factory=Shingler)

    def see(self, prompt: Prompt, line: int, *, group: str | None = None) -> None:
        """Enter a prompt unless it is known; group is its name when the caller knows it."""
        group = group or prompt_group(prompt)
        if group in self.groups:
            return
        self.groups[group] = len(self.lines)
        self.lines.append(line)
        words = prompt_words(prompt)
        self.grams.append(self.shingler.grams(words))
        if self.profiled:
            self.profiles.append(char_grams(words))


def near_prompts(prompts: PromptSets, settings: CheckSettings) -> CheckResult:
    """Find near-duplicate prompts within one file."""
    found = list(similar_sets(prompts.grams))
    lines = prompts.lines
    touched = {place for one, other, _ in found for place in (one, other)}
    return CheckResult(
        "near_duplicate_prompt",
        "consistency",
        "W",
        Verdict.WARN if found else Verdict.OK,
        len(touched),
        len(lines),
        f"word 3-gram similarity of {THRESHOLD} or more",
        "Split by prompt group, never by row: `triptych data split` keeps these prompts together.",
        tuple(
            Example(lines[other], "prompt", f"{alike:.0%} like the prompt of line {lines[one]}")
            for one, other, alike in found[: settings.num_examples]
        ),
        {"pairs": len(found)},
    )


def leakage_results(
    prompts: PromptSets, evaluation: PromptSets, name: str, settings: CheckSettings
) -> list[CheckResult]:
    """Compare a file's prompts with those of an evaluation file: exact, near and rephrased."""
    exact = [
        (prompts.groups[group], place)
        for group, place in evaluation.groups.items()
        if group in prompts.groups
    ]
    near = _across(prompts, evaluation)
    known = {one for one, _ in exact} | {one for one, _, _ in near}
    rephrased = [
        (one, other, alike)
        for one, other, alike in nearest(prompts.profiles, evaluation.profiles)
        if alike >= REPHRASED and one not in known
    ]
    of = len(prompts.lines)

    def result(
        kind: str, found: Sequence[tuple[int, int, float]], verdict: Verdict, advice: str
    ) -> CheckResult:
        return CheckResult(
            f"{kind}:{name}",
            GROUP,
            "F" if kind == "split_leakage" else "W",
            verdict if found else Verdict.OK,
            len({one for one, _, _ in found}),
            of,
            "fail at one" if verdict is Verdict.FAIL else "warn at one",
            advice,
            tuple(
                Example(
                    prompts.lines[one], "prompt", f"{alike:.0%} like line {evaluation.lines[other]} of {name}"
                )
                for one, other, alike in found[: settings.num_examples]
            ),
        )

    exactly = [(one, other, 1.0) for one, other in exact]
    only_near = [item for item in near if item[2] < 1 or (item[0], item[1]) not in set(exact)]
    return [
        result(
            "split_leakage",
            exactly,
            Verdict.FAIL,
            "Take these prompts out of training: they are evaluated on.",
        ),
        result(
            "near_leakage", only_near, Verdict.WARN, "Take these prompts out of training: nearly the same."
        ),
        result("rephrased_leakage", rephrased, Verdict.WARN, "Look at these by hand: worded almost alike."),
    ]


def _across(prompts: PromptSets, evaluation: PromptSets) -> list[tuple[int, int, float]]:
    """Return near-duplicates with one prompt on each side."""
    border = len(prompts.grams)
    return [
        (one, other - border, alike)
        for one, other, alike in similar_sets([*prompts.grams, *evaluation.grams])
        if one < border <= other
    ]


def char_grams(text: str) -> np.ndarray:
    """Return hashed character 3- to 5-grams of the words of a text, each word between blanks."""
    import numpy as np

    hashed: list[int] = []
    for word in normalised(text).lower()[:MAX_CHARS].split():
        padded = f" {word} ".encode("utf-8", "surrogatepass")
        for size in GRAM_SIZES:
            hashed += [
                zlib.crc32(padded[place : place + size]) % NUM_BUCKETS
                for place in range(max(1, len(padded) - size + 1))
            ]
    return np.array(hashed, dtype=np.int64)


def nearest(texts: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> Iterable[tuple[int, int, float]]:
    """Yield for each text its nearest target and their TF-IDF cosine.

    Grams of more than a tenth of 200 or more targets say little and are left out of the search.
    """
    import numpy as np

    postings: dict[int, list[tuple[int, float]]] = defaultdict(list)
    counted = [np.unique(target, return_counts=True) for target in targets]
    frequency: dict[int, int] = defaultdict(int)
    for grams, _ in counted:
        for gram in grams.tolist():
            frequency[gram] += 1
    num_targets = len(targets)
    weight = {gram: math.log((1 + num_targets) / (1 + times)) + 1 for gram, times in frequency.items()}
    rare = math.log(1 + num_targets) + 1
    index: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for number, (grams, times) in enumerate(counted):
        values = [count * weight[gram] for gram, count in zip(grams.tolist(), times.tolist(), strict=True)]
        norm = math.sqrt(sum(value * value for value in values)) or 1.0
        for gram, value in zip(grams.tolist(), values, strict=True):
            if num_targets < 200 or frequency[gram] * 10 <= num_targets:
                postings[gram].append((number, value / norm))
    for gram, found in postings.items():
        index[gram] = np.array([place for place, _ in found]), np.array([value for _, value in found])
    for number, text in enumerate(texts):
        grams, times = np.unique(text, return_counts=True)
        score = np.zeros(num_targets)
        norm = 0.0
        for gram, count in zip(grams.tolist(), times.tolist(), strict=True):
            value = count * weight.get(gram, rare)
            norm += value * value
            if gram in index:
                places, shares = index[gram]
                score[places] += value * shares
        if norm and num_targets:
            best = int(score.argmax())
            yield number, best, float(score[best] / math.sqrt(norm))
