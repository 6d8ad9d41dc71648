"""Measures a trained reward model on its held-out pairs and writes the card."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.canonical import finite
from pipeline.errors import DataError
from reward.card import ScoredPair, length_wins, report_card
from reward.card_table import card_table
from reward.probes import probe_flags, probe_report, probe_texts
from reward.ranking import ResponseGroup, best_of_report, win_shares
from stages.trainers.pair_data import PairData, PairText, TokenPair

CARD_FILE = "card.json"
ScorePairs = Callable[[Sequence[TokenPair]], tuple[list[float], list[float]]]
"Pairs -> scores of the chosen and of the rejected responses."


def make_card(score_pairs: ScorePairs, data: PairData, chat: PairText, *, num_probes: int) -> dict[str, Any]:
    """Measure on the held-out pairs, against what the training pairs alone would say.

    Args:
        score_pairs: the model.
        data: training pairs give the floors, held-out pairs the measures.
        chat: writes probes as the model reads text.
        num_probes: held-out responses that probes are made from.

    Raises:
        ModelError: a score is not finite.
    """
    chosen, rejected = score_pairs(data.held_out)
    majority = majority_rule(data.train)
    scored = [
        ScoredPair(
            chosen_score=one,
            rejected_score=other,
            chosen_length=len(pair.chosen_text),
            rejected_length=len(pair.rejected_text),
            share=pair.share,
            majority=_prefers(majority, pair),
            votes=pair.votes,
            subset=pair.subset,
            judges=pair.judges,
        )
        for pair, one, other in zip(data.held_out, chosen, rejected, strict=True)
    ]
    card = report_card(scored, longer_is_better=_longer_is_better(data.train))
    groups = response_groups(data.held_out, chosen, rejected)
    card |= {"best_of": best} if (best := best_of_report(groups)) else {}
    card["probes"] = _probes(score_pairs, data.held_out[:num_probes], chat)
    card["flags"] += probe_flags(card["probes"])
    return card


def response_groups(
    pairs: Sequence[TokenPair], chosen: Sequence[float], rejected: Sequence[float]
) -> list[ResponseGroup]:
    """Gather the responses of each comparison: score, win share among people, and whether none beats it."""
    units: dict[int, list[int]] = defaultdict(list)
    for number, pair in enumerate(pairs):
        units[pair.unit].append(number)
    groups: list[ResponseGroup] = []
    for numbers in units.values():
        scores: dict[str, float] = {}
        outcomes = [(pairs[n].chosen_text, pairs[n].rejected_text, pairs[n].share) for n in numbers]
        for n in numbers:
            scores.setdefault(pairs[n].chosen_text, chosen[n])
            scores.setdefault(pairs[n].rejected_text, rejected[n])
        beaten = {text for _, text, share in outcomes if share > 0.5}
        shares = win_shares(outcomes)
        groups.append([(scores[text], shares[text], text not in beaten) for text in scores])
    return groups


def _longer_is_better(pairs: Sequence[TokenPair]) -> bool | None:
    """Return the direction of the length rule on training pairs; None without any."""
    decided = [(len(pair.chosen_text), len(pair.rejected_text)) for pair in pairs if pair.share > 0.5]
    return length_wins(decided) >= 0.5 if decided else None


def majority_rule(pairs: Sequence[TokenPair]) -> dict[str, float]:
    """Return the share of its votes that each response text won in the training pairs."""
    wins: dict[str, list[float]] = defaultdict(list)
    for pair in pairs:
        wins[pair.chosen_text].append(pair.share)
        wins[pair.rejected_text].append(1 - pair.share)
    return {text: sum(shares) / len(shares) for text, shares in wins.items()}


def write_card(card: Mapping[str, Any], *, model_folder: Path, table_folder: Path) -> None:
    """Write the card as JSON beside the weights, and as a table; NaN and infinities become strings."""
    text = json.dumps(plain_card(card), indent=1, sort_keys=True)
    (model_folder / CARD_FILE).write_text(text + "\n", encoding="utf-8")
    table_folder.mkdir(parents=True)
    table = json.dumps(card_table(card), ensure_ascii=False, indent=1)
    (table_folder / "table.json").write_text(table + "\n", encoding="utf-8")


def _prefers(majority: Mapping[str, float], pair: TokenPair) -> float:
    """Return 1 when the rule prefers chosen, 0 when rejected, 0.5 when it has nothing to say."""
    chosen, rejected = majority.get(pair.chosen_text, 0.5), majority.get(pair.rejected_text, 0.5)
    return 0.5 if chosen == rejected else float(chosen > rejected)


def _probes(score_pairs: ScorePairs, pairs: Sequence[TokenPair], chat: PairText) -> dict[str, Any]:
    """Score every probe beside the chosen response that it was made from."""
    originals = score_pairs(pairs)[0]
    report: dict[str, Sequence[float]] = {}
    for name, texts in probe_texts([pair.chosen_text for pair in pairs]).items():
        made = [_with_probe(pair, text, chat) for pair, text in zip(pairs, texts, strict=True)]
        places = [place for place, pair in enumerate(made) if pair is not None]
        scores = score_pairs([pair for pair in made if pair is not None])[1]
        row = [float("nan")] * len(pairs)
        for place, value in zip(places, scores, strict=True):
            row[place] = value
        report[name] = row
    return probe_report(originals, report)


def _with_probe(pair: TokenPair, text: str, chat: PairText) -> TokenPair | None:
    """Return the pair with the probe as its second response; None when it reads as the first."""
    try:
        ids = tuple(chat.response_ids(pair.source, text))
    except DataError:
        return None
    return None if ids == pair.chosen else replace(pair, rejected=ids)


def plain_card(card: Mapping[str, Any]) -> dict[str, Any]:
    """Return a card as JSON can hold it: NaN and infinities become strings."""
    return {key: _plain(value) for key, value in card.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return plain_card(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return finite(value) if isinstance(value, float) else value
