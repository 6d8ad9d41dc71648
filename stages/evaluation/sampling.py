"""Lets one policy answer a file of prompts and keeps what people can judge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from pipeline.contract import StageContext, StageResult
from pipeline.errors import DataError, Interrupted
from reward.preferences.exchange.completions import Completion, Harvest, comparisons
from reward.preferences.writers import write_records
from stages.committed import Committed
from stages.data import PromptRow, read_prompts
from stages.evaluation.speaker import Speaker, Voice
from stages.sample import SampleConfig

PROMPTS_AT_ONCE = 64
"Prompts between two looks at the stop flag; each such part has its own seed, whatever the batch size."


def sample_comparisons(ctx: StageContext) -> StageResult:
    """Run the sample stage: draw, leave out what cannot be judged, write comparisons.

    Raises:
        DataError: the prompts cannot be used, or no comparison is left.
        Interrupted: the stage was asked to stop.
    """
    config: SampleConfig = ctx.config
    policy = ctx.inputs.get("policy")
    source = policy or ctx.inputs["base"]
    speaker = Speaker(Committed(ctx.name, ctx.name, ctx.inputs["base"], policy, config.model, config.tuning))
    rows = read_prompts(ctx.inputs["prompts"].path)[: config.max_prompts]
    fitting = [row for row in rows if _fits(row, speaker, config)]
    if not fitting:
        raise DataError(
            f"no prompt leaves room for max_new_tokens {config.max_new_tokens} in max_length "
            f"{config.max_length}",
            where=str(ctx.inputs["prompts"].path),
            hint="raise max_length",
            code="too-long",
        )
    harvest = comparisons(
        ((row.id, row.prompt) for row in fitting),
        _answers(ctx, speaker, fitting, config),
        # The content of the policy, not a name that a run may give to another one tomorrow.
        source=f"{source.producer or source.source}@{source.fingerprint[:12]}",
        most=config.responses_per_prompt,
    )
    made = _result(ctx, harvest, num_prompts=len(rows), num_too_long=len(rows) - len(fitting))
    return replace(made, computing=speaker.computing())


def _result(ctx: StageContext, harvest: Harvest, *, num_prompts: int, num_too_long: int) -> StageResult:
    if not harvest.records:
        reasons = ", ".join(f"{count} {reason}" for reason, count in harvest.left_out.items())
        raise DataError(
            f"no prompt has two answers that people could judge ({reasons})",
            hint="a higher temperature, more samples_per_prompt, or more max_new_tokens",
            code="no-comparison",
        )
    path = ctx.output_dir / "comparisons.jsonl"
    write_records(path, harvest.records)
    metrics = {
        "num_prompts": float(num_prompts),
        "num_comparisons": float(len(harvest.records)),
        "num_unusable": float(len(harvest.unusable)),
        "num_too_long": float(num_too_long),
        **{f"num_{reason}": float(count) for reason, count in sorted(harvest.left_out.items())},
    }
    ctx.logger.log(metrics, step=1)
    notes = []
    if harvest.unusable:
        names = ", ".join(harvest.unusable[:5])
        notes.append(f"{len(harvest.unusable)} prompts have fewer than two usable answers: {names}")
    if num_too_long:
        notes.append(f"{num_too_long} prompts were too long and set aside")
    return StageResult({"comparisons": path}, metrics, tuple(notes))


def _fits(row: PromptRow, speaker: Speaker, config: SampleConfig) -> bool:
    return len(speaker.chat.prompt_ids(row.prompt)) + config.max_new_tokens <= config.max_length


def _answers(
    ctx: StageContext, speaker: Speaker, rows: Sequence[PromptRow], config: SampleConfig
) -> Iterator[list[Completion]]:
    """Yield the answers to each prompt, part by part."""
    for start in range(0, len(rows), PROMPTS_AT_ONCE):
        if ctx.stop.requested:
            raise Interrupted("stopped before every prompt was answered", hint="run the same command again")
        ctx.logger.progress(start, len(rows), "prompts")
        part = rows[start : start + PROMPTS_AT_ONCE]
        voice = Voice(
            config.max_new_tokens,
            config.temperature,
            config.top_p,
            # Parts must not repeat one another's random numbers, nor those of a neighbouring seed.
            seed=config.seed * 1_000_003 + start,
            batch_size=config.generation_batch_size,
        )
        prompts = [row.prompt for row in part]
        for given in speaker.answer(prompts, voice, per_prompt=config.samples_per_prompt):
            yield [Completion(said.text, said.finished) for said in given]
