"""The RLOO stage's card: each response is paid against the mean of the others to its prompt. No torch."""

from __future__ import annotations

from pydantic import Field

from pipeline.contract import ArtifactKind, StageContext, StageResult, StageSpec
from stages.group_config import GROUP_INPUTS, GroupConfig, check_groups, group_memory


class RLOOConfig(GroupConfig):
    """Settings of the RLOO stage."""

    beta: float = Field(0.05, ge=0)
    "Price of a nat of KL to the reference, taken off a response's reward. Larger stays closer."
    normalize_advantages: bool = False
    "Scale the advantages of a sampled batch to mean 0 and standard deviation 1."


def run(ctx: StageContext) -> StageResult:
    """Train the policy of role `policy` on groups of its own responses."""
    from stages.trainers.group import train_rloo

    return train_rloo(ctx)


SPEC = StageSpec(
    kind="rloo",
    version=1,
    config_type=RLOOConfig,
    inputs=GROUP_INPUTS,
    outputs={"adapter": ArtifactKind.ADAPTER},
    run=run,
    memory=group_memory,
    check=check_groups,
    summary="RLOO on groups of sampled responses (TRL's RLOOTrainer), the reference being the SFT policy",
    metrics=("reward", "kl", "completions/mean_length", "completions/clipped_ratio"),
)
