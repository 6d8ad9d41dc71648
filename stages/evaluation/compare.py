"""The evaluation from start to end: answers, numbers, table and samples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.contract import StageContext, StageResult
from stages.evaluate import EvaluateConfig
from stages.evaluation.answers import Answers, Task, collect, prompt_text
from stages.evaluation.judge import Judged, judge
from stages.evaluation.judge_client import JudgeClient
from stages.evaluation.measures import Scored, measure, with_gold
from stages.evaluation.tables import harness_tables, notes_of, write_table
from stages.runtime.score_function import load_score_function


def evaluate(ctx: StageContext) -> StageResult:
    """Compare every model of a stage's inputs and write `table` and `samples`."""
    config: EvaluateConfig = ctx.config
    task, given = collect(ctx)
    gold = load_score_function(ctx.inputs["gold"]) if "gold" in ctx.inputs else None
    scored = [with_gold(answers, task, gold) for answers in given]
    measured = measure(scored, task, config)
    metrics = {name: value for row in measured for name, value in row.metrics().items()}
    metrics["num_tokens"] = float(_num_tokens(task, scored))
    for answers in given:
        metrics |= answers.harness.metrics(answers.name) if answers.harness else {}
    judged = _judged(ctx, task, given)
    metrics |= judged.metrics
    measured = [replace(row, judge_win_rate=judged.win_rates.get(row.name)) for row in measured]
    ctx.logger.log(metrics, step=1)
    scorer = "gold" if gold else "reward" if "reward" in ctx.inputs else None
    outputs = {"table": ctx.output_dir / "table", "samples": ctx.output_dir / "samples"}
    taken = {answers.name: answers.harness for answers in given if answers.harness}
    notes = notes_of(task, config, judge=scorer)
    write_table(outputs["table"], measured, config, notes=notes, more=harness_tables(taken))
    write_samples(outputs["samples"], task, scored, config=config)
    said = [result.said for result in taken.values()][:1]
    return StageResult(outputs, metrics, (*task.notes, *said), computing=task.computing)


def _judged(ctx: StageContext, task: Task, given: Sequence[Answers]) -> Judged:
    """Ask the judge, if the settings name one; its replies are kept for the whole store."""
    config: EvaluateConfig = ctx.config
    if config.judge is None:
        return Judged()
    client = JudgeClient(config.judge, (ctx.cache_dir or ctx.scratch_dir) / "judge")
    return judge(given, task, config, client, stopped=lambda: ctx.stop.requested)


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


def _num_tokens(task: Task, given: Sequence[Scored]) -> int:
    """Return the tokens of all sampled dialogues, prompts included."""
    prompts = sum(map(len, task.prompts))
    return sum(
        prompts * (len(scored.answers.responses) // len(task.prompts))
        + sum(map(len, scored.answers.responses))
        for scored in given
    )


def _scores(scored: Scored, at: int) -> dict[str, float]:
    found = {"gold": scored.gold, "proxy": scored.answers.proxy}
    return {name: round(values[at], 4) for name, values in found.items() if values is not None}
