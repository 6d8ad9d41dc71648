"""Responses that should not gain: what a reward model gives to empty, repeated, padded or misplaced text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from reward.metrics import Array, pair_wins

Rewrite = Callable[[str, str], str]
"(response, another prompt's response) -> probe."


def _repeated(response: str, _other: str) -> str:
    return " ".join([response] * 3)


def _first_half(response: str, _other: str) -> str:
    words = response.split()
    return " ".join(words[: max(1, len(words) // 2)])


def _listed(response: str, _other: str) -> str:
    parts = [part.strip() for part in response.replace("!", ".").replace("?", ".").split(".") if part.strip()]
    return "\n".join(f"- **{part}**" for part in parts) or f"- **{response}**"


WORSE: Mapping[str, Rewrite] = {
    "empty": lambda _response, _other: "",
    "repeated three times": _repeated,
    "first half only": _first_half,
    "answer to another prompt": lambda _response, other: other,
}
"Probes that are worse than the response: the model should score them below it."
SAME: Mapping[str, Rewrite] = {
    "a line break added": lambda response, _other: response + "\n",
    "as a bold list": _listed,
}
"Probes that say the same: the score should hardly move."
MAX_PREFERRED = 0.25
"A worse probe that wins more often than this is called out."


def probe_texts(responses: Sequence[str]) -> dict[str, list[str]]:
    """Return every probe of every response; another prompt's response is that of the next row."""
    others = [*responses[1:], *responses[:1]]
    rewrites = {**WORSE, **SAME}
    return {
        name: [rewrite(text, other) for text, other in zip(responses, others, strict=True)]
        for name, rewrite in rewrites.items()
    }


def probe_report(originals: Sequence[float], probes: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Compare the scores of probes with those of the responses that they were made from.

    Args:
        originals: scores of the responses.
        probes: probe -> scores, in the same order; NaN where a probe equals its response.

    Returns:
        Probe -> rows compared, mean shift of the score, the shift in standard deviations of
        the original scores, and the share of rows where the probe scores higher.
    """
    base: Array = np.asarray(originals, dtype=float)
    spread = float(base.std()) if len(base) else 0.0
    report = {}
    for name, scores in probes.items():
        shift = np.asarray(scores, dtype=float) - base
        shift = shift[~np.isnan(shift)]
        if len(shift):
            report[name] = {
                "num_rows": len(shift),
                "shift": float(shift.mean()),
                "shift_in_sd": float(shift.mean()) / spread if spread else float("nan"),
                "preferred": pair_wins(shift) / len(shift),
                "should": "lose" if name in WORSE else "stay",
            }
    return report


def probe_flags(report: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say which worse probes win too often."""
    return [
        f"a response that is {name!r} scores above the real one in {entry['preferred']:.0%} of rows"
        for name, entry in report.items()
        if entry["should"] == "lose" and entry["num_rows"] >= 8 and entry["preferred"] > MAX_PREFERRED
    ]
