"""The reward stage's card: a scalar head on the SFT adapter, trained on preference pairs. No torch here."""

from __future__ import annotations

from pydantic import Field

from pipeline.contract import ArtifactKind, InputSlot, StageCheck, StageContext, StageResult, StageSpec
from pipeline.memory.work import Workload
from stages.data_report import with_data_report
from stages.pair_check import check_pairs, pair_outlook
from stages.pair_config import PairTrainingConfig
from stages.tuning import POLICY_KINDS, absent_reward


class RewardConfig(PairTrainingConfig):
    """Settings of the reward stage."""

    learning_rate: float = Field(1e-4, gt=0)
    "Peak learning rate of AdamW, for the adapter and the head alike."
    use_margins: bool = True
    "Ask for the margin that a pair's row names, when it names one."
    center_rewards_coefficient: float = Field(0.01, ge=0)
    "Weight of (chosen + rejected)^2, which keeps scores around 0; 0 is off."
    num_probes: int = Field(64, ge=0)
    "Held-out responses that the card's probes (empty, repeated, misplaced ...) are made from; 0 is off."
    ensemble: int = Field(1, ge=1, le=16)
    "Members: adapters with heads of their own on one base, other seeds and row orders; the mean scores."
    include_ties: bool = True
    "Also train on pairs whose votes are even, with label 0.5: their scores are pulled together."


def run(ctx: StageContext) -> StageResult:
    """Train the reward model of role `reward_model` and write its report card."""
    from stages.trainers.reward import train_reward

    return with_data_report(ctx, train_reward)


def memory(stage: StageCheck) -> Workload:
    """Say what training holds: an adapter a member, and the head of the one that learns."""
    config: RewardConfig = stage.config
    step, waiting = config.largest_pass(answers=False), config.ensemble - 1
    return Workload(config.model, config.tuning, step, trained=1, frozen=waiting, heads=1)


SPEC = StageSpec(
    kind="reward",
    version=2,
    config_type=RewardConfig,
    inputs={
        "base": InputSlot((ArtifactKind.FULL_MODEL,), help="the frozen base"),
        "policy": InputSlot(
            POLICY_KINDS,
            help="the SFT adapter that the reward model starts from",
        ),
        "preferences": InputSlot((ArtifactKind.PREFERENCES,), help="pairs that people judged"),
        "held_out": InputSlot(
            (ArtifactKind.PREFERENCES,), required=False, help="pairs to measure on, in place of eval_share"
        ),
        "mapping": InputSlot((ArtifactKind.TEXT,), required=False, help="YAML that says how to read them"),
    },
    outputs={
        "reward_model": ArtifactKind.REWARD_MODEL,
        "full_reward_model": ArtifactKind.FULL_REWARD_MODEL,
        "card": ArtifactKind.TABLE,
        "data_report": ArtifactKind.DATA_REPORT,
    },
    absent_outputs=absent_reward,
    run=run,
    memory=memory,
    check=check_pairs,
    backends=("ddp", "fsdp2"),
    outlook=pair_outlook,
    summary="reward model: Bradley-Terry loss on preference pairs, with a report card",
    metrics=(
        "accuracy",
        "accuracy_low",
        "accuracy_high",
        "length_floor",
        "majority_floor",
        "auc",
        "ece",
        "brier",
        "log_loss",
        "margin_mean",
        "margin_sd",
        "num_pairs",
        "num_rejected",
    ),
)
