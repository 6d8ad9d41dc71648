"""Writes what the evaluation found as tables: one row a model, then classes, confusion and best of n."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.evaluate import EvaluateConfig
from stages.evaluation.answers import Task
from stages.evaluation.harness import HarnessResult
from stages.evaluation.measures import Measured
from stages.ops.best_of_n import kl_of_best_of_n
from stages.ops.intervals import Interval


def write_table(
    folder: Path,
    measured: Sequence[Measured],
    config: EvaluateConfig,
    *,
    notes: list[str],
    more: Sequence[dict[str, Any]] = (),
) -> Path:
    """Write table.json; columns that hold nothing for any model are left out."""
    shown = {name: [cell(row) for row in measured] for name, cell in _columns(config.reference).items()}
    kept = {name: cells for name, cells in shown.items() if any(cell is not None for cell in cells)}
    document = {
        "title": "Models on the same held-out prompts",
        "columns": list(kept),
        "rows": [list(row) for row in zip(*kept.values(), strict=True)],
        "notes": list(notes),
        "more": [*_class_tables(measured), *_best_of_tables(measured), *more],
    }
    folder.mkdir(parents=True)
    path = folder / "table.json"
    path.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return path


def notes_of(task: Task, config: EvaluateConfig, *, judge: str | None) -> list[str]:
    """Return what a reader of the table must know."""
    share = f"{config.confidence:.0%}"
    samples = "1 sample" if config.samples_per_prompt == 1 else f"{config.samples_per_prompt} samples"
    notes = [
        f"{len(task.rows)} prompts, {samples} each, temperature {config.temperature:g}, seed {config.seed}; "
        "every model draws the same random numbers.",
        f"In brackets: {share} bootstrap intervals over prompts ({config.bootstrap_draws} draws), paired "
        "where two models are compared.",
    ]
    if judge:
        notes.append(
            f"Win rates are judged by the {judge} score of each response; equal scores count half. At equal "
            "length: what a logistic regression leaves when both answers are equally long."
        )
    if config.temperature > 0:
        notes.append("KL: nats a response, mean of log policy - log reference on the model's own samples.")
    if task.shots:
        notes.append(f"base few-shot: the base with {len(task.shots)} worked examples before each prompt.")
    if config.judge is not None:
        notes.append(
            f"By the judge: {config.judge.model}, every pair in both orders; unclear replies are ties."
        )
    if task.probe:
        notes.append("Forgetting: loss on general text minus the base's, nats a token; above 0 is worse.")
    return [*notes, *task.notes]


def harness_tables(taken: Mapping[str, HarnessResult]) -> list[dict[str, Any]]:
    """Return the table of what every model scored on the tasks of the lm-evaluation-harness."""
    if not taken:
        return []
    first = next(iter(taken.values()))
    shown = [name for name in first.scores if "_stderr" not in name]
    return [
        {
            "title": "Tasks of the lm-evaluation-harness",
            "columns": ["model", *shown],
            "rows": [
                [model, *(_with_error(result.scores, name) for name in shown)]
                for model, result in taken.items()
            ],
            "notes": [first.said, "In brackets: standard error, as the harness computes it."],
        }
    ]


def _with_error(scores: Mapping[str, float], name: str) -> str | None:
    task, _, metric = name.rpartition("/")
    metric, dot, filtered = metric.partition(".")
    value, error = scores.get(name), scores.get(f"{task}/{metric}_stderr{dot}{filtered}")
    if value is None:
        return None
    return f"{value:.3f}" if error is None else f"{value:.3f} ({error:.3f})"


def _columns(reference: str) -> dict[str, Any]:
    """Return the columns of the table and what each shows of a model."""
    return {
        "model": lambda row: row.name,
        "gold utility": lambda row: _shown(row.gold, 2),
        f"gold - {reference}": lambda row: _shown(row.gold_gain, 2, sign="+"),
        f"win rate vs {reference}": lambda row: _shown(row.win_rate, 2),
        "at equal length": lambda row: _shown(row.lc_win_rate, 2),
        "by the judge": lambda row: _shown(row.judge_win_rate, 2),
        "proxy reward": lambda row: _shown(row.proxy, 2),
        f"KL to {reference}": lambda row: _shown(row.kl, 2),
        "length": lambda row: round(row.length, 1),
        "EOS rate": lambda row: round(row.eos_rate, 2),
        "distinct-2": lambda row: round(row.distinct_2, 2),
        "perplexity": lambda row: _rounded(row.perplexity, 3),
        "over-fitting gap": lambda row: _rounded(row.overfitting_gap, 3),
        "forgetting": lambda row: _rounded(row.forgetting, 3),
        "accuracy": lambda row: None if row.classified is None else round(row.classified.accuracy, 3),
        "F1": lambda row: None if row.classified is None else round(row.classified.macro("f1"), 3),
    }


def _class_tables(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """Return precision, recall and F1 of every model and label, and one confusion matrix a model."""
    rows = [
        [f"{row.name}: {of.label}", round(of.precision, 3), round(of.recall, 3), round(of.f1, 3), of.support]
        for row in measured
        if row.classified is not None
        for of in row.classified.classes
    ]
    if not rows:
        return []
    scores = {
        "title": "Classification by label",
        "columns": ["model and label", "precision", "recall", "F1", "rows"],
        "rows": rows,
        "notes": ["A label is chosen by its likelihood as the answer, stop token included."],
    }
    return [scores, *(_confusion(row) for row in measured if row.classified is not None)]


def _confusion(row: Measured) -> dict[str, Any]:
    found = row.classified
    if found is None:
        raise ValueError(f"{row.name} classified nothing")
    return {
        "title": f"Confusion of {row.name}",
        "columns": ["true label", *(f"said {label}" for label in found.labels)],
        "rows": [
            [label, *map(int, counts)] for label, counts in zip(found.labels, found.confusion, strict=True)
        ],
        "notes": [],
    }


def _best_of_tables(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    curves = {row.name: row.best_of for row in measured if row.best_of}
    if not curves:
        return []
    sizes = list(next(iter(curves.values())))
    unit = "gold utility" if any(row.gold is not None for row in measured) else "proxy reward"
    return [
        {
            "title": f"Best of n by proxy reward, in {unit}",
            "columns": ["model", *(f"n = {n}" for n in sizes)],
            "rows": [[name, *(round(curve[n], 3) for n in sizes)] for name, curve in curves.items()],
            "notes": [
                "KL of best of n from plain sampling, at most: "
                + ", ".join(f"{kl_of_best_of_n(n):.2f} nats for n = {n}" for n in sizes[1:])
                + "."
            ],
        }
    ]


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _shown(interval: Interval | None, digits: int, *, sign: str = "") -> str | None:
    if interval is None:
        return None
    form = f"{sign}.{digits}f"
    return f"{interval.mean:{form}} [{interval.low:{form}}, {interval.high:{form}}]"
