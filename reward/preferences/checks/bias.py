"""Checks of what wins beside quality: length, place on the screen, source, ties, refusals."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from reward.preferences.checks.result import CheckResult, Example, Verdict
from reward.preferences.checks.settings import CheckSettings
from reward.preferences.ledger import KINDS, Ledger, Votes
from reward.preferences.records import VoteKind
from reward.preferences.significance import binomial_two_sided, wilson

if TYPE_CHECKING:
    import numpy as np

GROUP = "bias"
_REFUSAL = re.compile(
    r"(?i)\b(?:I(?:'|’)?m sorry,? but|I can(?:no|'|’)t (?:help|assist|do that|provide)"
    r"|I am (?:unable|not able) to|I(?:'|’)m (?:unable|not able) to|I won(?:'|’)t (?:help|do)"
    r"|as an AI(?: language model)?,? I)"
)


def is_refusal(text: str) -> bool:
    """True when the beginning of a text declines to answer."""
    return _REFUSAL.search(text[:300]) is not None


def bias_results(ledger: Ledger, votes: Votes, settings: CheckSettings) -> list[CheckResult]:
    """Return the results of all checks of this group that the ledger can answer."""
    return [
        length_bias(votes, settings),
        position_bias(votes, settings),
        source_confound(ledger, votes, settings),
        tie_rate(votes, settings),
    ]


def length_bias(votes: Votes, settings: CheckSettings) -> CheckResult:
    """Say how often the longer side of a pair is preferred."""
    import numpy as np

    winners = votes.winners()
    difference = np.sign(votes.pair_chars[:, 0] - votes.pair_chars[:, 1])
    usable = (winners != 0) & (difference != 0)
    num_pairs, longer = int(usable.sum()), int((winners[usable] == difference[usable]).sum())
    share = longer / num_pairs if num_pairs else None
    p_value = binomial_two_sided(longer, num_pairs)
    verdict = Verdict.OK
    low, high = settings.length_share
    if share is not None and p_value < settings.bias_p:
        if share > settings.length_share_fail:
            verdict = Verdict.FAIL
        elif not low <= share <= high:
            verdict = Verdict.WARN
    interval = wilson(longer, num_pairs)
    return CheckResult(
        "length_bias",
        GROUP,
        "F",
        verdict,
        longer,
        num_pairs,
        f"warn outside {low:.0%} to {high:.0%}, fail above {settings.length_share_fail:.0%}",
        "A model can win by length alone here: report accuracy by length, and collect pairs of equal length.",
        measured={
            "longer_share": share,
            "low": interval[0] if num_pairs else None,
            "high": interval[1] if num_pairs else None,
            "p_value": p_value,
            "length_only_accuracy": max(share, 1 - share) if share is not None else None,
            "slope_per_doubling": length_slope(votes, winners),
        },
    )


def length_slope(votes: Votes, winners: np.ndarray) -> float | None:
    """Return the change in log-odds of winning when a side is twice as long, by logistic regression."""
    import numpy as np

    usable = (winners != 0) & (votes.pair_chars > 0).all(axis=1)
    if usable.sum() < 10:
        return None
    ratio = np.log2(votes.pair_chars[usable, 0] / votes.pair_chars[usable, 1])
    target = (winners[usable] > 0).astype(float)
    slope = 0.0
    for _ in range(25):
        chance = 1 / (1 + np.exp(-np.clip(slope * ratio, -30, 30)))
        curvature = (chance * (1 - chance) * ratio**2).sum() + 1e-6
        step = ((target - chance) * ratio).sum() / curvature
        slope += float(np.clip(step, -2, 2))
        if abs(step) < 1e-9:
            break
    return slope if math.isfinite(slope) else None


def position_bias(votes: Votes, settings: CheckSettings) -> CheckResult:
    """Say how often the response shown first is preferred; without the order it cannot be measured."""
    known = votes.counted & (votes.shown != 0) & (votes.value != 0)
    num_votes = int(known.sum())
    first = int((votes.value[known] == votes.shown[known]).sum())
    threshold = f"warn beyond 50 % by {settings.position_deviation:.0%} with p < {settings.bias_p:g}"
    advice = "Show the two responses in random order for every annotator, and keep the order in the export."
    if num_votes == 0:
        return CheckResult(
            "position_bias",
            GROUP,
            "F",
            Verdict.INFO,
            0,
            0,
            threshold,
            "Not measurable: the file does not say which response was shown first.",
            measured={"first_share": None},
        )
    p_value = binomial_two_sided(first, num_votes)
    biased = p_value < settings.bias_p and abs(first / num_votes - 0.5) >= settings.position_deviation
    low, high = wilson(first, num_votes)
    flips, swapped = _swap_flips(votes)
    return CheckResult(
        "position_bias",
        GROUP,
        "F",
        Verdict.WARN if biased else Verdict.OK,
        first,
        num_votes,
        threshold,
        advice,
        measured={
            "first_share": first / num_votes,
            "low": low,
            "high": high,
            "p_value": p_value,
            "swap_flip_rate": flips / swapped if swapped else None,
            "swapped_pairs": swapped,
        },
    )


def _swap_flips(votes: Votes) -> tuple[int, int]:
    """Count people who judged one pair in both orders, and how many of them changed sides."""
    import numpy as np

    known = np.flatnonzero(votes.counted & (votes.shown != 0) & (votes.person >= 0))
    order = known[np.lexsort((votes.shown[known], votes.person[known], votes.pair[known]))]
    same = (
        (votes.pair[order[1:]] == votes.pair[order[:-1]])
        & (votes.person[order[1:]] == votes.person[order[:-1]])
        & (votes.shown[order[1:]] != votes.shown[order[:-1]])
    )
    changed = votes.value[order[1:]] != votes.value[order[:-1]]
    return int((same & changed).sum()), int(same.sum())


def source_confound(ledger: Ledger, votes: Votes, settings: CheckSettings) -> CheckResult:
    """Find sources that nearly always win: their style is what a reward model would learn."""
    import numpy as np

    winners = votes.winners()
    known = (winners != 0) & (votes.pair_source >= 0).all(axis=1)
    known &= votes.pair_source[:, 0] != votes.pair_source[:, 1]
    winning = np.where(winners > 0, votes.pair_source[:, 0], votes.pair_source[:, 1])[known]
    losing = np.where(winners > 0, votes.pair_source[:, 1], votes.pair_source[:, 0])[known]
    size = len(ledger.sources)
    wins, losses = np.bincount(winning, minlength=size), np.bincount(losing, minlength=size)
    total = wins + losses
    names = list(ledger.sources)
    found = [
        number
        for number in np.flatnonzero(total >= settings.source_min_pairs).tolist()
        if wins[number] > settings.source_share * total[number]
    ]
    measured: dict[str, float | str | None] = {
        name: float(wins[number] / total[number]) for number, name in enumerate(names[:50]) if total[number]
    }
    return CheckResult(
        "source_confound",
        GROUP,
        "W",
        Verdict.WARN if found else (Verdict.OK if known.any() else Verdict.INFO),
        len(found),
        int((total > 0).sum()),
        f"wins above {settings.source_share:.0%} of {settings.source_min_pairs} or more pairs",
        "Compare responses of one source with one another too, or the model learns whose style it is."
        if known.any()
        else "Not measurable: the file does not name the sources of both responses.",
        tuple(
            Example(0, "", f"{names[number]} wins {wins[number]} of {total[number]} pairs")
            for number in found[: settings.num_examples]
        ),
        measured,
    )


def tie_rate(votes: Votes, settings: CheckSettings) -> CheckResult:
    """Say how many votes are ties, and how many name both as bad."""
    counted = votes.counted
    num_votes, ties = int(counted.sum()), int((votes.value[counted] == 0).sum())
    both_bad = int((votes.kind == KINDS.index(VoteKind.BOTH_BAD)).sum())
    share = ties / num_votes if num_votes else 0.0
    return CheckResult(
        "tie_rate",
        GROUP,
        "F",
        Verdict.WARN if share > settings.tie_share else Verdict.INFO,
        ties,
        num_votes,
        f"warn above {settings.tie_share:.0%}",
        "Many ties mean that the responses are too alike: sample them at a higher temperature.",
        measured={"both_bad": both_bad, "tie_share": share},
    )


class RefusalCounter:
    """Counts refusals on the preferred and on the other side."""

    def __init__(self) -> None:
        self.chosen = self.rejected = self.num_pairs = 0
        self.open_ends = self.num_responses = 0

    def see(self, chosen: str, rejected: str) -> None:
        """Count one decided pair."""
        self.num_pairs += 1
        self.chosen += is_refusal(chosen)
        self.rejected += is_refusal(rejected)

    def result(self, settings: CheckSettings) -> CheckResult:
        """Compare both sides."""
        more, less = max(self.chosen, self.rejected), min(self.chosen, self.rejected)
        skewed = more >= 10 and more > settings.refusal_ratio * max(less, 1)
        return CheckResult(
            "refusal_skew",
            GROUP,
            "F",
            Verdict.WARN if skewed else Verdict.INFO,
            self.chosen + self.rejected,
            2 * self.num_pairs,
            f"warn when one side has more than {settings.refusal_ratio:g} times the other's",
            "Check that refusing is what you want to reward: one side refuses much more often.",
            measured={"chosen": self.chosen, "rejected": self.rejected},
        )
