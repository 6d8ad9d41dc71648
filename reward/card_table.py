"""The report card as a table for people: what a run prints and the HTML report shows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

COLUMNS = ("measure", "value", "remark")
_FLOORS = {"chance": "a coin", "length": "length alone", "majority": "what the same text won in training"}


def card_table(card: Mapping[str, Any], *, title: str = "Reward model on held-out pairs") -> dict[str, Any]:
    """Return a card as {title, columns, rows, notes}; measures without a value are left out."""
    rows = [list(row) for row in _rows(card) if row[1] is not None]
    return {"title": title, "columns": list(COLUMNS), "rows": rows, "notes": list(card["flags"])}


def _rows(card: Mapping[str, Any]) -> Iterator[Sequence[str | None]]:
    interval = f"95 %: {card['accuracy_low']:.3f} to {card['accuracy_high']:.3f}, {card['num_pairs']} pairs"
    yield "accuracy", _number(card["accuracy"]), interval
    for name, floor in card["floors"].items():
        yield f"floor: {name}", _number(floor), _FLOORS[name]
    yield "ceiling: people", _number(card["ceiling"]), "one judge against the others of the same pair"
    yield "of the ceiling", _number(card.get("of_ceiling")), "(accuracy - 0.5) / (ceiling - 0.5)"
    yield from _calibration(card.get("calibration", {}))
    margins = card.get("margins")
    if margins:
        yield (
            "margin",
            _number(margins["mean"]),
            f"sd {margins['sd']:.3g}, 5-95 %: {margins['p05']:.3g} to {margins['p95']:.3g}",
        )
    yield from _groups(card)
    for point in card.get("coverage", ()):
        if point["coverage"] in (0.5, 0.25):
            yield f"surest {point['coverage']:.0%}", _number(point["accuracy"]), f"{point['num_pairs']} pairs"
    yield from _ensemble(card.get("ensemble"))
    yield from _best_of(card.get("best_of"))
    for name, probe in card.get("probes", {}).items():
        should = "should score lower" if probe["should"] == "lose" else "should score the same"
        yield f"probe: {name}", f"{probe['shift']:+.3f}", f"higher in {probe['preferred']:.0%}; {should}"


def _best_of(block: Mapping[str, Any] | None) -> Iterator[Sequence[str | None]]:
    if not block:
        return
    chance = _number(block["chance"])
    remark = f"{block['num_groups']} prompts with three responses or more; a coin {chance}"
    yield "top response right", _number(block["top_accuracy"]), remark
    for point in block["curve"]:
        remark = f"win share of the best of {point['n']} by score, KL at most {point['kl']:.2f} nats"
        yield f"best of {point['n']}", _number(point["gold"]), remark


def _ensemble(block: Mapping[str, Any] | None) -> Iterator[Sequence[str | None]]:
    if not block:
        return
    alone = ", ".join(_number(share) or "-" for share in block["accuracies"])
    yield "members", str(block["members"]), f"accuracy of each alone: {alone}"
    right, wrong = _number(block["spread_right"]) or "-", _number(block["spread_wrong"]) or "-"
    yield (
        "spread",
        _number(block["spread"]),
        f"of the members' margins; {right} where right, {wrong} where wrong",
    )
    divided = _number(block["accuracy_divided"]) or "-"
    remark = f"all members agree in {block['united']:.0%} of pairs; elsewhere {divided}"
    yield "accuracy, united", _number(block["accuracy_united"]), remark


def _calibration(block: Mapping[str, Any]) -> Iterator[Sequence[str | None]]:
    remarks = {
        "auc": "chosen scores above rejected, across prompts",
        "ece": "distance of confidence and accuracy, 15 equal groups",
        "brier": "squared error of the probability; a coin gives 0.25",
        "log_loss": "nats; a coin gives 0.693",
        "temperature": "above 1: surer than right",
    }
    for name, remark in remarks.items():
        if name in block:
            yield name.replace("_", "-"), _number(block[name]), remark


def _groups(card: Mapping[str, Any]) -> Iterator[Sequence[str | None]]:
    parts = {
        "longer is right": card.get("length", {}).get("longer_is_right"),
        "longer is wrong": card.get("length", {}).get("longer_is_wrong"),
        **{f"votes {share}": part for share, part in card.get("by_vote_share", {}).items()},
        **{f"subset {name}": part for name, part in card.get("by_subset", {}).items()},
        **{f"by {name}": part for name, part in card.get("by_annotator", {}).items()},
    }
    for name, part in parts.items():
        if part and part["num_pairs"]:
            spread = f"95 %: {part['accuracy_low']:.3f} to {part['accuracy_high']:.3f}"
            yield f"accuracy, {name}", _number(part["accuracy"]), f"{spread}, {part['num_pairs']} pairs"


def _number(value: Any) -> str | None:
    """Return a number as text; None for what is not finite, which a stored card holds as a string."""
    return f"{value:.3f}" if isinstance(value, float | int) and math.isfinite(value) else None
