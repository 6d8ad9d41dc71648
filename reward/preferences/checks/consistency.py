"""Checks of votes against one another: repeats, contradictions, cycles, pairs of rankings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reward.preferences.checks.pair_graph import strong_components, three_cycles
from reward.preferences.checks.result import CheckResult, Example, Verdict
from reward.preferences.checks.settings import CheckSettings
from reward.preferences.ledger import Ledger, Votes

if TYPE_CHECKING:
    import numpy as np

GROUP = "consistency"


def consistency_results(ledger: Ledger, votes: Votes, settings: CheckSettings) -> list[CheckResult]:
    """Return the results of all checks of this group."""
    return [
        *_repeats(votes, settings),
        cycles(votes, settings),
        _rankings(votes),
        boilerplate(ledger, votes, settings),
    ]


def _repeats(votes: Votes, settings: CheckSettings) -> list[CheckResult]:
    """Find the same pair judged twice by one person, or twice by nobody in particular."""
    import numpy as np

    place = np.flatnonzero(votes.counted)
    order = place[np.lexsort((place, votes.person[place], votes.pair[place]))]
    pair, person = votes.pair[order], votes.person[order]
    again = (
        np.flatnonzero((pair[1:] == pair[:-1]) & (person[1:] == person[:-1])) + 1
        if order.size
        else np.empty(0, int)
    )
    start = np.ones(len(order), dtype=bool)
    start[again] = False
    group = np.cumsum(start) - 1
    values = votes.value[order]
    low = np.full(int(group[-1]) + 1 if order.size else 0, 2)
    high = np.full_like(low, -2)
    np.minimum.at(low, group, values)
    np.maximum.at(high, group, values)
    sizes = np.bincount(group, minlength=len(low)) if order.size else np.empty(0, int)
    repeated = sizes > 1
    against = repeated & (low == -1) & (high == 1)
    duplicates = [place for place in again if not against[group[place]]]
    first_line = votes.line[order[np.flatnonzero(start)]] if order.size else np.empty(0, int)
    return [
        CheckResult(
            "duplicate_exact",
            GROUP,
            "W",
            Verdict.WARN if duplicates else Verdict.OK,
            len(duplicates),
            int(order.size),
            "any",
            "Remove the repeats with `triptych data prepare --dedupe`, or they weigh double in training.",
            tuple(
                Example(
                    int(votes.line[order[place]]),
                    "",
                    f"repeats the judgement of line {first_line[group[place]]}",
                )
                for place in duplicates[: settings.num_examples]
            ),
        ),
        _contradictions(votes, order, group, against, repeated, settings),
    ]


def _contradictions(
    votes: Votes,
    order: np.ndarray,
    group: np.ndarray,
    against: np.ndarray,
    repeated: np.ndarray,
    settings: CheckSettings,
) -> CheckResult:
    import numpy as np

    found = np.flatnonzero(against)
    lines = [
        sorted(set(votes.line[order[group == number]].tolist())) for number in found[: settings.num_examples]
    ]
    share = len(found) / max(int(repeated.sum()), 1)
    bad = share > settings.contradiction_share
    verdict = (Verdict.FAIL if bad else Verdict.WARN) if len(found) else Verdict.OK
    return CheckResult(
        "contradiction",
        GROUP,
        "W",
        verdict,
        len(found),
        int(repeated.sum()),
        f"fail above {settings.contradiction_share:.0%} of the repeated pairs",
        "Ask the annotator to judge these pairs again: the same pair got opposite answers.",
        tuple(
            Example(
                int(where[0]),
                "",
                f"answered both ways in lines {', '.join(map(str, where))}"
                if len(where) > 1
                else "answered both ways",
            )
            for where in lines
        ),
    )


def cycles(votes: Votes, settings: CheckSettings) -> CheckResult:
    """Find prompts whose majorities run in a circle: A over B, B over C, C over A."""
    import numpy as np

    winners = votes.winners()
    decided = np.flatnonzero(winners)
    first = votes.pair_first[decided] * 1
    second = votes.pair_second[decided] * 1
    swap = winners[decided] < 0
    first, second = np.where(swap, second, first), np.where(swap, first, second)
    prompt = votes.pair_prompt[decided]
    edges = [
        ((p, a), (p, b)) for p, a, b in zip(prompt.tolist(), first.tolist(), second.tolist(), strict=True)
    ]
    components = strong_components(edges)
    home = {node: number for number, component in enumerate(components) for node in component}
    inside = [
        place for place, (one, other) in enumerate(edges) if one in home and home[one] == home.get(other)
    ]
    lines: dict[int, int] = {}
    for place in inside:
        lines.setdefault(home[edges[place][0]], int(votes.pair_line[decided[place]]))
    return CheckResult(
        "cycle",
        GROUP,
        "W",
        Verdict.WARN if components else Verdict.OK,
        len(inside),
        len(edges),
        "any",
        "No score can satisfy a circle: have the pairs in it judged again, or expect lower accuracy there.",
        tuple(
            Example(line, "", f"{len(components[number])} responses in a circle")
            for number, line in list(lines.items())[: settings.num_examples]
        ),
        {
            "components": len(components),
            "largest": max((len(component) for component in components), default=0),
            "three_cycles": three_cycles([edges[place] for place in inside]),
        },
    )


def _rankings(votes: Votes) -> CheckResult:
    """Say how many pairs come from rankings of three or more."""
    import numpy as np

    judged = np.unique(np.stack([votes.judgement, votes.pair], axis=1), axis=0) if votes.pair.size else None
    sizes = np.bincount(judged[:, 0]) if judged is not None else np.empty(0, int)
    num_pairs = int(sizes[sizes > 1].sum())
    return CheckResult(
        "pair_explosion",
        GROUP,
        "F",
        Verdict.INFO if num_pairs else Verdict.OK,
        num_pairs,
        int(sizes.sum()),
        "information",
        "Pairs of one ranking weigh 1 / (number of its pairs) and stay on one side of every split.",
        measured={"rankings": int((sizes > 1).sum()), "largest": int(sizes.max()) if sizes.size else 0},
    )


def boilerplate(ledger: Ledger, votes: Votes, settings: CheckSettings) -> CheckResult:
    """Find response texts that answer many different prompts."""
    import numpy as np

    sides = np.concatenate(
        [
            np.stack([votes.pair_first, votes.pair_prompt], axis=1),
            np.stack([votes.pair_second, votes.pair_prompt], axis=1),
        ]
    )
    unique = np.unique(sides, axis=0)
    prompts = np.bincount(unique[:, 0]) if unique.size else np.empty(0, int)
    num_prompts = len(ledger.prompts)
    limit = max(settings.boilerplate_min_prompts, settings.boilerplate_share * num_prompts)
    found = np.flatnonzero(prompts >= limit)
    found = found[np.argsort(-prompts[found], kind="stable")]
    examples = []
    for response in found[: settings.num_examples].tolist():
        where = np.flatnonzero((votes.pair_first == response) | (votes.pair_second == response))[0]
        chars = ledger.response_chars[response]
        text = f"the same response of {chars} characters answers {prompts[response]} prompts"
        examples.append(Example(int(votes.pair_line[where]), "", text))
    return CheckResult(
        "boilerplate",
        GROUP,
        "W",
        Verdict.WARN if found.size else Verdict.OK,
        int(found.size),
        len(prompts),
        f"one text for {limit:.0f} or more prompts",
        "A text that answers everything teaches the model a phrase, not a preference; consider removing it.",
        tuple(examples),
    )
