"""The KTO stage's card: a policy trained on single responses that people called good or bad. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from pipeline.contract import ArtifactKind, InputSlot, StageCheck, StageContext, StageResult, StageSpec
from pipeline.errors import Finding, UserError
from pipeline.memory.activations import Pass
from pipeline.memory.work import Workload
from stages.config import TrainingConfig
from stages.data_report import with_data_report
from stages.tuning import refuse_full


class KTOConfig(TrainingConfig):
    """Settings of the KTO stage. A batch is counted in responses."""

    learning_rate: float = Field(5e-5, gt=0)
    "Peak learning rate of AdamW."
    per_device_train_batch_size: int = Field(8, ge=2)
    "Responses a micro-batch; the KL term is a mean over it, so one response is not enough."
    loss_type: Literal["kto", "apo_zero_unpaired"] = "kto"
    "kto is the paper's; apo_zero_unpaired has no KL term and suits data better than the policy."
    beta: float = Field(0.1, gt=0)
    "Strength of the pull towards the reference. Larger stays closer."
    desirable_weight: float = Field(1.0, gt=0)
    "Weight of good responses. weight * count of the two sides should be within 1 to 1.33 of each other."
    undesirable_weight: float = Field(1.0, gt=0)
    "Weight of bad responses."
    eval_share: float = Field(0.1, ge=0, lt=1)
    "Share of the responses held out by prompt; 0 trains on all."
    max_rejected_share: float = Field(0.05, ge=0, le=1)
    "Largest share of rows of a preference file that may be unusable; more of them stop the stage."


def run(ctx: StageContext) -> StageResult:
    """Train the policy of role `policy` on labelled responses."""
    from stages.trainers.kto import train_kto

    return with_data_report(ctx, train_kto)


def check(stage: StageCheck) -> Sequence[Finding]:
    """Read the preference file and say what would stop the stage."""
    from stages.labelled import labelled_findings, read_labelled

    whole = refuse_full(stage, "policy and reference share one frozen base")
    if whole:
        return whole
    source, mapping = stage.inputs.get("preferences"), stage.inputs.get("mapping")
    if source is None:
        return []
    try:
        found = read_labelled(source.path, mapping=mapping.path if mapping else None)
    except UserError as error:
        return error.findings
    return labelled_findings(found, max_rejected_share=stage.config.max_rejected_share)


def memory(stage: StageCheck) -> Workload:
    """Say what training holds: the policy's adapter, the reference's, and a copy of the start."""
    config: KTOConfig = stage.config
    tokens = config.per_device_train_batch_size * config.max_length
    step = Pass(tokens, config.max_length, tokens, checkpointing=config.tuning.gradient_checkpointing)
    return Workload(
        config.model,
        config.tuning,
        step,
        trained=1,
        frozen=2,
        autocast=True,
        tiled_head=True,
        reads_beside=True,
    )


SPEC = StageSpec(
    kind="kto",
    version=2,
    config_type=KTOConfig,
    inputs={
        "base": InputSlot((ArtifactKind.FULL_MODEL,), help="the frozen base"),
        "policy": InputSlot((ArtifactKind.ADAPTER,), help="the SFT adapter: start and reference"),
        "preferences": InputSlot(
            (ArtifactKind.PREFERENCES,), help="responses with a label, or pairs: chosen is good, rejected bad"
        ),
        "mapping": InputSlot((ArtifactKind.TEXT,), required=False, help="YAML that says how to read them"),
    },
    outputs={"adapter": ArtifactKind.ADAPTER, "data_report": ArtifactKind.DATA_REPORT},
    run=run,
    memory=memory,
    check=check,
    summary="KTO on single labelled responses (TRL's KTOTrainer), the reference being the SFT policy itself",
    metrics=("loss", "rewards/margins", "eval_auc", "eval_f1", "eval_precision", "eval_recall"),
)
