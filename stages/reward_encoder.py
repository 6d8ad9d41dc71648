"""The reward_encoder stage's card: a reward model on an encoder, such as a BERT, with no causal mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from pipeline.config.run import TuningConfig
from pipeline.contract import ArtifactKind, InputSlot, StageCheck, StageContext, StageResult, StageSpec
from pipeline.errors import Finding
from pipeline.memory.work import Workload
from stages.data_report import with_data_report
from stages.pair_check import check_pairs
from stages.reward import SPEC as REWARD
from stages.reward import RewardConfig


class EncoderRewardConfig(RewardConfig):
    """Settings of the reward_encoder stage."""

    ensemble: Literal[1] = Field(1)
    "An encoder has one member."
    shared_prompts: Literal[False] = Field(False)
    "Every token of an encoder sees what follows, so a prompt cannot be shared and rows are padded."
    max_length: int = Field(512, ge=2)
    "Tokens a sequence may have, prompt and response together; most encoders have positions for 512."


def run(ctx: StageContext) -> StageResult:
    """Train the reward model of role `reward_model` and write its report card."""
    from stages.trainers.reward_encoder import train_encoder

    return with_data_report(ctx, train_encoder)


def check(stage: StageCheck) -> Sequence[Finding]:
    """Read the preference files, and see that the tuning is one that an encoder can have."""
    return [*tuning_findings(stage.name, stage.config), *check_pairs(stage)]


def tuning_findings(name: str, config: EncoderRewardConfig) -> list[Finding]:
    """Say which settings of the tuning an encoder cannot have."""
    usual = TuningConfig()
    return [
        Finding(
            f"tuning.{key} is {getattr(config.tuning, key)}; an encoder has {getattr(usual, key)} only",
            f"stages.{name}.tuning.{key}",
            f"tuning: {{{key}: {getattr(usual, key)}}} in this stage",
            "tuning-of-encoder",
        )
        for key in _PLAIN_ONLY
        if getattr(config.tuning, key) != getattr(usual, key)
    ]


def memory(stage: StageCheck) -> Workload:
    """Say what training holds: one adapter and the encoder's own head, over padded rows."""
    config: EncoderRewardConfig = stage.config
    step = config.largest_pass(answers=False)
    return Workload(config.model, config.tuning, step, trained=1, own_head=True)


_PLAIN_ONLY = ("method", "lora_init", "frozen_layers", "frozen_modules")


SPEC = StageSpec(
    kind="reward_encoder",
    version=1,
    config_type=EncoderRewardConfig,
    inputs={
        "base": InputSlot((ArtifactKind.FULL_MODEL,), help="the encoder: AutoModelForSequenceClassification"),
        **{role: REWARD.inputs[role] for role in ("preferences", "held_out", "mapping")},
    },
    outputs=REWARD.outputs,
    run=run,
    memory=memory,
    check=check,
    summary="reward model on an encoder: Bradley-Terry loss on preference pairs, with a report card",
    metrics=REWARD.metrics,
)
