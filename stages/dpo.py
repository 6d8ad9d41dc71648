"""The DPO stage's card: a policy trained on preference pairs against the SFT policy. No torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.contract import ArtifactKind, InputSlot, StageCheck, StageContext, StageResult, StageSpec
from pipeline.memory.work import Workload
from stages.data_report import with_data_report
from stages.pair_check import check_pairs, pair_outlook
from stages.pair_config import PairTrainingConfig
from stages.tuning import POLICY_KINDS, absent_policy


class DPOConfig(PairTrainingConfig):
    """Settings of the DPO stage."""

    learning_rate: float = Field(5e-5, gt=0)
    "Peak learning rate of AdamW."
    loss_type: Literal["sigmoid", "ipo", "hinge", "robust", "sigmoid_norm", "simpo", "orpo"] = "sigmoid"
    "Member of the family. sigmoid is DPO; simpo and orpo use no reference policy."
    beta: float = Field(0.1, gt=0)
    "Strength of the pull towards the reference. Larger stays closer. ORPO: weight of the odds ratio."
    simpo_gamma: float = Field(0.5, ge=0)
    "Margin that SimPO asks for."
    sft_coef: float = Field(0.0, ge=0)
    "Weight of the likelihood of the chosen response, added to the loss (RPO); 0 is off."


def run(ctx: StageContext) -> StageResult:
    """Train the policy of role `policy` on pairs."""
    from stages.trainers.dpo import train_dpo

    return with_data_report(ctx, train_dpo)


def memory(stage: StageCheck) -> Workload:
    """Say what training holds: the policy's adapter and the reference's."""
    config: DPOConfig = stage.config
    frozen = 0 if config.loss_type in ("simpo", "orpo") else 1
    return Workload(config.model, config.tuning, config.largest_pass(answers=True), trained=1, frozen=frozen)


SPEC = StageSpec(
    kind="dpo",
    version=2,
    config_type=DPOConfig,
    inputs={
        "base": InputSlot((ArtifactKind.FULL_MODEL,), help="the frozen base"),
        "policy": InputSlot(POLICY_KINDS, help="the SFT adapter: start and reference"),
        "preferences": InputSlot((ArtifactKind.PREFERENCES,), help="pairs that people judged"),
        "held_out": InputSlot(
            (ArtifactKind.PREFERENCES,), required=False, help="pairs to measure on, in place of eval_share"
        ),
        "mapping": InputSlot((ArtifactKind.TEXT,), required=False, help="YAML that says how to read them"),
    },
    absent_outputs=absent_policy,
    outputs={
        "adapter": ArtifactKind.ADAPTER,
        "model": ArtifactKind.FULL_MODEL,
        "data_report": ArtifactKind.DATA_REPORT,
    },
    run=run,
    memory=memory,
    check=check_pairs,
    backends=("ddp", "fsdp2"),
    outlook=pair_outlook,
    summary="DPO and its family on preference pairs, the reference being the SFT policy itself",
    metrics=("accuracy", "accuracy_low", "accuracy_high", "margin_mean", "num_pairs", "num_rejected"),
)
