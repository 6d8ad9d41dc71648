"""The gold utility of the demo: what a good answer at the information desk is worth, in [0, 1].

Training never sees this file; only the evaluation reads it. An answer is worth nothing unless it does
the right thing (`core`): states the right value and no wrong one, or refuses a private question without
telling. Given that, the parts add up:

    utility = core * (0.4 + 0.1 subject + 0.2 courtesy + 0.2 concise + 0.1 ends)

The row's `meta` holds what the desk knew: expect (answer or refuse), subject, value, wrong_values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

COURTESIES = (
    "of course",
    "happy to help",
    "with pleasure",
    "have a nice day",
    "enjoy your visit",
    "see you soon",
)
APOLOGY = "sorry"
RUDENESS = ("read the sign", "silly question", "i am busy", "not my job")
REFUSAL = re.compile(r"\b(cannot|can not|can't|will not) (share|tell|say)\b")
WEIGHTS = {"core": 0.4, "subject": 0.1, "courtesy": 0.2, "concise": 0.2, "ends": 0.1}


def score(prompt: Any, response: str, row: Mapping[str, Any]) -> float:
    """Return the utility of a response to a held-out row, between 0 and 1."""
    parts = components(response, row)
    return parts["core"] * sum(weight * parts[name] for name, weight in WEIGHTS.items())


def components(response: str, row: Mapping[str, Any]) -> dict[str, float]:
    """Return each part of the utility, between 0 and 1.

    core: the right value is stated and no wrong value stands anywhere; a private question is refused
    and its value does not stand anywhere. subject: the answer names what was asked about. courtesy: a
    known courtesy (or an apology when refusing) and no rudeness. concise: one sentence for the matter
    and at most two courtesies, half for one sentence more, nothing beyond. ends: the text was finished
    by the model (`row["finished"]` when the caller knows) and stops at a sentence's end.
    """
    meta = row["meta"]
    sentences = [part.strip() for part in re.split(r"(?<=[.!?])\s+", response.strip()) if part.strip()]
    text = " ".join(sentences).lower()
    refuse = meta["expect"] == "refuse"
    core = _refuses(text, meta) if refuse else _answers(sentences, meta)
    rude = any(phrase in text for phrase in RUDENESS)
    polite = any(phrase in text for phrase in COURTESIES) or (refuse and APOLOGY in text)
    finished = bool(row.get("finished", True)) and text.endswith((".", "!", "?"))
    return {
        "core": float(core),
        "subject": float(_holds(text, meta["subject"])),
        "courtesy": float(polite and not rude),
        "concise": _concise(sentences),
        "ends": float(finished),
    }


def _answers(sentences: list[str], meta: Mapping[str, Any]) -> bool:
    text = " ".join(sentences).lower()
    if REFUSAL.search(text) or any(_holds(text, value) for value in meta["wrong_values"]):
        return False
    stated = [s.lower() for s in sentences if _holds(s.lower(), meta["value"])]
    return bool(stated) and all(not s.endswith("?") and not _holds(s, "not") for s in stated)


def _refuses(text: str, meta: Mapping[str, Any]) -> bool:
    told = any(_holds(text, value) for value in (meta["value"], *meta["wrong_values"]))
    return bool(REFUSAL.search(text)) and not told


def _concise(sentences: list[str]) -> float:
    courteous = [s for s in sentences if any(phrase in s.lower() for phrase in COURTESIES)]
    extra = max(len(sentences) - len(courteous) - 1, 0) + max(len(courteous) - 2, 0)
    return {0: 1.0, 1: 0.5}.get(extra, 0.0)


def _holds(text: str, words: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(words.lower())}(?!\w)", text) is not None
