"""The evaluation from start to end: answers, numbers, table and samples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.contract import StageContext, StageResult
from stages.evaluate import EvaluateConfig
from stages.evaluation.answers import Task, collect, prompt_text
from stages.evaluation.measures import Measured, Scored, measure, with_gold
from stages.ops.intervals import Interval
from stages.runtime.score_function import load_score_function


def evaluate(ctx: StageContext) -> StageResult:
    """Compare every model of a stage's inputs and write `table` and `samples`."""
    config: EvaluateConfig = ctx.config
    task, given = collect(ctx)
    gold = load_score_function(ctx.inputs["gold"]) if "gold" in ctx.inputs else None
    scored = [with_gold(answers, task, gold) for answers in given]
    measured = measure(scored, config)
    metrics = {name: value for row in measured for name, value in row.metrics().items()}
    ctx.logger.log(metrics, step=1)
    judge = "gold" if gold else "reward" if "reward" in ctx.inputs else None
    outputs = {"table": ctx.output_dir / "table", "samples": ctx.output_dir / "samples"}
    write_table(outputs["table"], measured, config, notes=_notes(task, config, judge))
    write_samples(outputs["samples"], task, scored, config=config)
    return StageResult(outputs, metrics, task.notes)


def write_table(
    folder: Path, measured: Sequence[Measured], config: EvaluateConfig, *, notes: list[str]
) -> Path:
    """Write table.json; columns that hold nothing for any model are left out."""
    shown = {name: [cell(row) for row in measured] for name, cell in _columns(config.reference).items()}
    kept = {name: cells for name, cells in shown.items() if any(cell is not None for cell in cells)}
    document = {
        "title": "Models on the same held-out prompts",
        "columns": list(kept),
        "rows": [list(row) for row in zip(*kept.values(), strict=True)],
        "notes": list(notes),
    }
    folder.mkdir(parents=True)
    path = folder / "table.json"
    path.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return path


def write_samples(folder: Path, task: Task, given: Sequence[Scored], *, config: EvaluateConfig) -> Path:
    """Write samples.jsonl: the first response of each model to the first prompts, with its scores."""
    folder.mkdir(parents=True)
    path = folder / "samples.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number, row in enumerate(task.rows[: config.num_samples_shown]):
            at = number * config.samples_per_prompt
            by = {
                scored.answers.name: {"text": scored.answers.texts[at], "scores": _scores(scored, at)}
                for scored in given
            }
            line = {"id": row.id, "prompt": prompt_text(row.prompt), "by": by}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return path


def _scores(scored: Scored, at: int) -> dict[str, float]:
    found = {"gold": scored.gold, "proxy": scored.answers.proxy}
    return {name: round(values[at], 4) for name, values in found.items() if values is not None}


def _columns(reference: str) -> dict[str, Any]:
    """Return the columns of the table and what each shows of a model."""
    return {
        "model": lambda row: row.name,
        "gold utility": lambda row: _shown(row.gold, 2),
        f"gold - {reference}": lambda row: _shown(row.gold_gain, 2, sign="+"),
        f"win rate vs {reference}": lambda row: _shown(row.win_rate, 2),
        "proxy reward": lambda row: _shown(row.proxy, 2),
        f"KL to {reference}": lambda row: _shown(row.kl, 2),
        "length": lambda row: round(row.length, 1),
        "EOS rate": lambda row: round(row.eos_rate, 2),
        "distinct-2": lambda row: round(row.distinct_2, 2),
        "perplexity": lambda row: None if row.perplexity is None else round(row.perplexity, 3),
    }


def _shown(interval: Interval | None, digits: int, *, sign: str = "") -> str | None:
    if interval is None:
        return None
    form = f"{sign}.{digits}f"
    return f"{interval.mean:{form}} [{interval.low:{form}}, {interval.high:{form}}]"


def _notes(task: Task, config: EvaluateConfig, judge: str | None) -> list[str]:
    share = f"{config.confidence:.0%}"
    samples = "1 sample" if config.samples_per_prompt == 1 else f"{config.samples_per_prompt} samples"
    notes = [
        f"{len(task.rows)} prompts, {samples} each, temperature {config.temperature:g}, seed {config.seed}; "
        "every model draws the same random numbers.",
        f"In brackets: {share} bootstrap intervals over prompts ({config.bootstrap_draws} draws), paired "
        "where two models are compared.",
    ]
    if judge:
        notes.append(f"Win rates are judged by the {judge} score of each response; equal scores count half.")
    if config.temperature > 0:
        notes.append("KL: nats a response, mean of log policy - log reference on the model's own samples.")
    if task.shots:
        notes.append(f"base few-shot: the base with {len(task.shots)} worked examples before each prompt.")
    return [*notes, *task.notes]
