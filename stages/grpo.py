"""The GRPO stage's card: responses to a prompt are paid by how they compare with each other. No torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.contract import ArtifactKind, StageContext, StageResult, StageSpec
from stages.group_config import GROUP_INPUTS, GroupConfig, check_groups, group_memory


class GRPOConfig(GroupConfig):
    """Settings of the GRPO stage."""

    beta: float = Field(0.04, ge=0)
    "Weight of KL(policy, reference) in the loss; 0 loads no reference. Larger stays closer."
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "dapo"
    "How token losses are averaged: by response, batch, the length limit, or all tokens of the step."
    scale_rewards: Literal["group", "batch", "none"] = "group"
    "Divide advantages by the standard deviation of the group, of the batch, or not."


def run(ctx: StageContext) -> StageResult:
    """Train the policy of role `policy` on groups of its own responses."""
    from stages.trainers.group import train_grpo

    return train_grpo(ctx)


SPEC = StageSpec(
    kind="grpo",
    version=1,
    config_type=GRPOConfig,
    inputs=GROUP_INPUTS,
    outputs={"adapter": ArtifactKind.ADAPTER},
    run=run,
    memory=group_memory,
    check=check_groups,
    summary="GRPO on groups of sampled responses (TRL's GRPOTrainer), the reference being the SFT policy",
    metrics=("reward", "kl", "completions/mean_length", "completions/clipped_ratio"),
)
