"""From a preference file to token ids: read, tokenised once, split by prompt, every loss counted."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pipeline.contract import Checkpoint
from pipeline.errors import DataError
from reward.preferences.pairs import Pair, PairSet, load_pairs
from reward.preferences.records import Prompt, prompt_text
from reward.preferences.split import split_groups
from stages.pair_check import leak_findings, set_findings
from stages.pair_config import PairTrainingConfig

LOGGER = logging.getLogger(__name__)


class PairText(Protocol):
    """What turns a pair's texts into token ids."""

    def prompt_ids(self, prompt: Prompt, /) -> list[int]:
        """Return the ids of a prompt; raises DataError when it cannot be written."""

    def response_ids(self, prompt: Prompt, response: str, /) -> list[int]:
        """Return the ids of a response, its stop token last; raises DataError when it cannot be written."""


@dataclass(frozen=True, slots=True)
class TokenPair:
    """One pair as token ids."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    "The response with its stop token."
    rejected: tuple[int, ...]
    label: float = 1.0
    "Probability that chosen is better."
    margin: float = 0.0
    weight: float = 1.0
    unit: int = 0
    "Pairs of one comparison share it and stay in one step."
    chosen_text: str = ""
    rejected_text: str = ""
    share: float = 1.0
    "Share of the votes for chosen, whatever the label became."
    votes: int = 1
    source: Prompt = ""
    "The prompt as the file gives it."
    subset: str = ""
    "Part of the data that the row names."
    judges: tuple[tuple[str, float], ...] = ()
    "Named annotators and the share of their votes for chosen."


@dataclass(frozen=True, slots=True)
class PairData:
    """What a stage trains and measures on."""

    train: list[TokenPair]
    held_out: list[TokenPair]
    counts: dict[str, int] = field(default_factory=dict)
    "Rows read and set aside, pairs dropped and why, as metrics `num_*`."
    notes: tuple[str, ...] = ()


def open_pair_data(inputs: Mapping[str, Checkpoint], config: PairTrainingConfig, chat: PairText) -> PairData:
    """Load the preference files of a stage; see load_pair_data."""
    optional = {role: inputs[role].path for role in ("mapping", "held_out") if role in inputs}
    return load_pair_data(inputs["preferences"].path, config, chat, **optional)


def load_pair_data(
    path: Path,
    config: PairTrainingConfig,
    chat: PairText,
    *,
    mapping: Path | None = None,
    held_out: Path | None = None,
) -> PairData:
    """Read, tokenise and split a preference file; with a held-out file, that one is measured on.

    Pairs longer than max_length on either side are dropped, never cut: a cut response is not
    what a person judged. Pairs with equal token ids are set aside.

    Raises:
        DataError: a file cannot be read, has too many bad rows or no pair left to train on, or a
            prompt stands in both files.
    """
    found = load_pairs(path, mapping=mapping)
    findings = set_findings(found, config, path)
    pairs = _labelled(found, config)
    if held_out is None:
        train, measured = split_groups(pairs, config.eval_share, config.seed)
    else:
        measured_set = load_pairs(held_out, mapping=mapping)
        findings += [
            *set_findings(measured_set, config, held_out),
            *leak_findings(found, measured_set, held_out),
        ]
        others = _labelled(measured_set, config)
        train, measured = list(range(len(pairs))), list(range(len(pairs), len(pairs) + len(others)))
        pairs = [*pairs, *others]
    if findings:
        raise DataError.from_findings(findings)
    tokenised, dropped = _tokenise(pairs, config, chat)
    kept = {number: pair for number, pair in enumerate(tokenised) if pair is not None}
    data = PairData(
        train=[kept[number] for number in train if number in kept],
        held_out=[kept[number] for number in measured if number in kept],
        counts=_counts(found, dropped),
        notes=_notes(found, dropped, config),
    )
    if not data.train:
        reasons = "; ".join(data.notes) or "the file holds no pair with a preference"
        raise DataError(
            f"no pair of {path.name} can be trained on: {reasons}", where=str(path), code="no-pairs"
        )
    return data


def _labelled(found: PairSet, config: PairTrainingConfig) -> list[Pair]:
    return [*found.pairs, *(found.ties if config.include_ties and config.soft_labels else [])]


def _tokenise(
    pairs: Sequence[Pair], config: PairTrainingConfig, chat: PairText
) -> tuple[list[TokenPair | None], dict[str, int]]:
    dropped = {"too_long": 0, "identical": 0, "unwritable": 0}
    units: dict[tuple[int, str], int] = {}
    prompts: dict[str, tuple[int, ...]] = {}
    result: list[TokenPair | None] = []
    for pair in pairs:
        unit = units.setdefault((pair.line, pair.group), len(units))
        try:
            text = prompt_text(pair.prompt)
            if text not in prompts:
                prompts[text] = tuple(chat.prompt_ids(pair.prompt))
            tokens = _token_pair(pair, prompts[text], config, chat, unit=unit)
        except DataError as error:
            LOGGER.warning("line %d is set aside: %s", pair.line, error)
            dropped["unwritable"] += 1
            result.append(None)
            continue
        reason = _unusable(tokens, config.max_length)
        if reason:
            dropped[reason] += 1
        result.append(None if reason else tokens)
    return result, dropped


def _unusable(tokens: TokenPair, max_length: int) -> str | None:
    if tokens.chosen == tokens.rejected:
        return "identical"
    longest = len(tokens.prompt) + max(len(tokens.chosen), len(tokens.rejected))
    return "too_long" if longest > max_length else None


def _token_pair(
    pair: Pair, prompt: tuple[int, ...], config: PairTrainingConfig, chat: PairText, *, unit: int
) -> TokenPair:
    return TokenPair(
        prompt=prompt,
        chosen=tuple(chat.response_ids(pair.prompt, pair.chosen)),
        rejected=tuple(chat.response_ids(pair.prompt, pair.rejected)),
        label=pair.label if config.soft_labels else 1.0,
        margin=pair.margin or 0.0,
        weight=pair.weight,
        unit=unit,
        chosen_text=pair.chosen,
        rejected_text=pair.rejected,
        share=pair.label,
        votes=pair.votes,
        source=pair.prompt,
        subset=pair.subset,
        judges=pair.judges,
    )


def _counts(found: PairSet, dropped: dict[str, int]) -> dict[str, int]:
    report = found.report
    return {
        "num_read": report.read,
        "num_rejected": report.rejected,
        "num_even_votes": report.ties,
        "num_too_long": dropped["too_long"],
        "num_identical": dropped["identical"],
        "num_unwritable": dropped["unwritable"],
    }


def _notes(found: PairSet, dropped: dict[str, int], config: PairTrainingConfig) -> tuple[str, ...]:
    notes = []
    if found.rejects:
        reasons = ", ".join(f"{count} {check}" for check, count in found.report.rejected_by.items())
        lines = ", ".join(str(reject.line) for reject in found.rejects[:10])
        more = " ..." if len(found.rejects) > 10 else ""
        notes.append(
            f"{len(found.rejects)} of {found.report.read} rows set aside ({reasons}), lines {lines}{more}"
        )
    if found.ties and not (config.include_ties and config.soft_labels):
        notes.append(f"{len(found.ties)} pairs with even votes left out")
    if dropped["too_long"]:
        notes.append(f"{dropped['too_long']} pairs longer than max_length {config.max_length} dropped")
    if dropped["identical"]:
        notes.append(f"{dropped['identical']} pairs with equal token ids set aside")
    if dropped["unwritable"]:
        notes.append(
            f"{dropped['unwritable']} pairs that the chat template cannot write set aside; see the log"
        )
    return tuple(notes)
