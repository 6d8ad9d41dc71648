"""Prompts that stand twice: nearly the same prompt in one file, or in a file and its evaluation files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from reward.preferences.checks.rephrased import CharGrams, Nearest
from reward.preferences.checks.result import CheckResult, Example, Verdict
from reward.preferences.checks.settings import CheckSettings
from reward.preferences.near import THRESHOLD, GramSets, similar_between, similar_sets, word_grams
from reward.preferences.records import Prompt, prompt_group, prompt_words

GROUP = "leakage"
REPHRASED = 0.75
"Cosine of character n-grams from which a prompt counts as rephrased."


@dataclass(slots=True)
class PromptSets:
    """The distinct prompts of a file: their grams, and the line where each stands first."""

    groups: dict[str, int] = field(default_factory=dict)
    lines: list[int] = field(default_factory=list)
    grams: GramSets = field(default_factory=GramSets)

    def see(self, prompt: Prompt, line: int, *, group: str | None = None) -> bool:
        """Enter a prompt; False when it is known. group is its name when the caller knows it."""
        group = group or prompt_group(prompt)
        if group in self.groups:
            return False
        self.groups[group] = len(self.lines)
        self.lines.append(line)
        self.grams.append(word_grams(prompt_words(prompt)))
        return True


class Evaluation:
    """One evaluation file, and the prompts of the checked file that are worded much like one of its own."""

    def __init__(self, path: Path) -> None:
        """Read the prompts of a preference file, or of rows with a prompt or messages.

        Raises:
            DataError: the file cannot be read.
        """
        from reward.preferences.prompts import read_prompts

        self.name = path.name
        self.prompts = PromptSets()
        targets = []
        for line, prompt in read_prompts(path):
            if self.prompts.see(prompt, line):
                targets.append(CharGrams.of(prompt_words(prompt)))
        self._nearest = Nearest(targets)
        self.rephrased: list[tuple[int, int, float]] = []
        "Place of the prompt in the checked file, place here, cosine."

    def see(self, place: int, grams: CharGrams) -> None:
        """Compare one distinct prompt of the checked file."""
        found = self._nearest.find(grams)
        if found is not None and found[1] >= REPHRASED:
            self.rephrased.append((place, *found))


def near_prompts(prompts: PromptSets, settings: CheckSettings) -> CheckResult:
    """Find near-duplicate prompts within one file."""
    lines, num_pairs = prompts.lines, 0
    touched: set[int] = set()
    shown: list[tuple[int, int, float]] = []
    for one, other, alike in similar_sets(prompts.grams):
        num_pairs += 1
        touched |= {one, other}
        if len(shown) < settings.num_examples:
            shown.append((one, other, alike))
    return CheckResult(
        "near_duplicate_prompt",
        "consistency",
        "W",
        Verdict.WARN if num_pairs else Verdict.OK,
        len(touched),
        len(lines),
        f"word 3-gram similarity of {THRESHOLD} or more",
        "Split by prompt group, never by row: `triptych data split` keeps these prompts together.",
        tuple(
            Example(lines[other], "prompt", f"{alike:.0%} like the prompt of line {lines[one]}")
            for one, other, alike in shown
        ),
        {"pairs": num_pairs},
    )


def leakage_results(
    prompts: PromptSets, evaluation: Evaluation, settings: CheckSettings
) -> list[CheckResult]:
    """Compare a file's prompts with those of an evaluation file: exact, near and rephrased."""
    theirs, name = evaluation.prompts, evaluation.name
    exact = [
        (prompts.groups[group], place) for group, place in theirs.groups.items() if group in prompts.groups
    ]
    near = list(similar_between(prompts.grams, theirs.grams))
    known = {one for one, _ in exact} | {one for one, _, _ in near}
    rephrased = [item for item in evaluation.rephrased if item[0] not in known]
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
                    prompts.lines[one], "prompt", f"{alike:.0%} like line {theirs.lines[other]} of {name}"
                )
                for one, other, alike in found[: settings.num_examples]
            ),
        )

    exactly = [(one, other, 1.0) for one, other in exact]
    pairs = set(exact)
    only_near = [item for item in near if item[2] < 1 or (item[0], item[1]) not in pairs]
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
