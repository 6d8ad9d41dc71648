"""Supervised fine-tuning: a LoRA adapter learns to answer as the demonstrations do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from pipeline.config.strict import NOT_IN_KEY
from pipeline.contract import ArtifactKind, InputSlot, StageCheck, StageContext, StageResult, StageSpec
from pipeline.errors import Finding, UserError
from pipeline.memory.activations import Pass
from pipeline.memory.work import Workload
from stages.config import TrainingConfig
from stages.early_stopping import ANSWER_METRICS, EarlyStoppingConfig, early_stopping_findings
from stages.tuning import POLICY_KINDS, absent_policy, tuning_findings


class SftConfig(TrainingConfig):
    """Settings of supervised fine-tuning."""

    packing: bool = True
    "Lay the rows of a micro-batch one after another in one row, without padding; they never see each other."
    truncation: Literal["drop", "keep_start"] = "drop"
    "Rows longer than max_length: drop leaves them out and counts them; keep_start cuts the answer's end."
    eval_share: float = Field(0.05, ge=0, lt=1)
    "Share of the demonstrations held out by prompt for eval_loss; 0 trains on all of them."
    eval_steps: int | None = Field(None, ge=1, json_schema_extra=NOT_IN_KEY)
    "Optimizer steps between two evaluations; None evaluates before the first and after the last step."
    early_stopping: EarlyStoppingConfig | None = None
    "End when the held-out answers no longer gain, and keep the best weights; None trains every step."
    max_rejected_share: float = Field(0.05, ge=0, le=1)
    "Largest share of unusable rows; more of them stop the stage before a model is loaded."


def run(ctx: StageContext) -> StageResult:
    """Train an adapter on the demonstrations and write it to `adapter`."""
    from stages.trainers.sft import train_sft

    return train_sft(ctx)


def check(stage: StageCheck) -> Sequence[Finding]:
    """Read the demonstrations, without a tokenizer: unreadable files and too many bad rows are found here."""
    from stages.data import read_demonstrations, too_many_rejects

    findings = tuning_findings(stage)
    config: SftConfig = stage.config
    if "lm_head" in config.tuning.target_modules and config.tuning.target_modules != "all-linear":
        findings.append(
            Finding(
                "an adapter on lm_head is never trained: log-probabilities are read from its frozen weight",
                f"stages.{stage.name}.tuning.target_modules",
                "leave lm_head out",
                "adapter-on-head",
            )
        )
    where, held_out = f"stages.{stage.name}.early_stopping", config.eval_share > 0
    findings += early_stopping_findings(
        config.early_stopping, measured=ANSWER_METRICS, held_out=held_out, where=where
    )
    findings += share_findings(stage)
    source = stage.inputs.get("demonstrations")
    if source is None:
        return findings
    try:
        rows, rejects = read_demonstrations(source.path)
    except UserError as error:
        return [*findings, *error.findings]
    return [*findings, *too_many_rejects(rejects, len(rows), config.max_rejected_share, source.path)]


def share_findings(stage: StageCheck) -> list[Finding]:
    """Say whether the processes of a stage can share its optimizer steps."""
    config: SftConfig = stage.config
    count = stage.accelerate.num_processes
    if rows_a_rank(config, count) is not None:
        return []
    micro, accumulated = config.per_device_train_batch_size, config.gradient_accumulation_steps
    rows = f"{micro * accumulated} rows a step ({micro} x {accumulated})"
    hint = "per_device_train_batch_size or gradient_accumulation_steps: a multiple of num_processes"
    where = "per_device_train_batch_size"
    return [Finding(f"{rows} cannot be shared by {count} processes", where, hint, "uneven-step")]


def rows_a_rank(config: SftConfig, count: int) -> int | None:
    """Return the rows of a micro-batch when processes share an optimizer step; None when it does not divide.

    Whole micro-batches are handed out where they divide; else the largest one that fits each share.
    """
    micro, accumulated = config.per_device_train_batch_size, config.gradient_accumulation_steps
    share, left = divmod(micro * accumulated, count)
    if left:
        return None
    return next(size for size in range(min(micro, share), 0, -1) if share % size == 0)


def outlook(stage: StageCheck) -> Sequence[str]:
    """Say when the rows of this stage will be padded."""
    from stages.runtime.packing import packing_note

    note = (
        packing_note(stage.inputs["base"].path) if stage.config.packing and "base" in stage.inputs else None
    )
    return [note] if note else []


def memory(stage: StageCheck) -> Workload:
    """Say what training holds: one adapter, and every token's hidden state may be an answer's."""
    config: SftConfig = stage.config
    tokens = config.per_device_train_batch_size * config.max_length
    step = Pass(tokens, config.max_length, tokens, checkpointing=config.tuning.gradient_checkpointing)
    return Workload(config.model, config.tuning, step, trained=1, autocast=True, with_entropy=True)


SPEC = StageSpec(
    kind="sft",
    version=1,
    config_type=SftConfig,
    inputs={
        "base": InputSlot((ArtifactKind.FULL_MODEL,), help="the frozen model that the adapter is put on"),
        "policy": InputSlot(POLICY_KINDS, required=False, help="adapter to go on from"),
        "demonstrations": InputSlot(
            (ArtifactKind.DEMONSTRATIONS,), help="JSON Lines with prompt and completion, or messages"
        ),
    },
    outputs={"adapter": ArtifactKind.ADAPTER, "model": ArtifactKind.FULL_MODEL},
    absent_outputs=absent_policy,
    run=run,
    memory=memory,
    summary="supervised fine-tuning on demonstrations (TRL's SFTTrainer), loss on the answer only",
    check=check,
    backends=("ddp", "fsdp2"),
    outlook=outlook,
    metrics=("train_loss", "eval_loss", "mean_token_accuracy", "eval_mean_token_accuracy", "num_tokens"),
)
