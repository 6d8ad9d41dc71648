"""Settings that grpo and rloo share: groups of responses to a prompt, and what pays them. No torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from pydantic import Field, model_validator

from pipeline.contract import ArtifactKind, InputSlot, StageCheck
from pipeline.errors import Finding
from pipeline.memory.work import Decoding, Workload
from stages import rewarded
from stages.config import TrainingConfig
from stages.tuning import refuse_full


class GroupConfig(TrainingConfig):
    """A stage that samples several responses to each prompt; a batch is counted in responses."""

    learning_rate: float = Field(1e-5, gt=0)
    "Peak learning rate of AdamW."
    num_generations: int = Field(4, ge=2)
    "Responses to each prompt, compared with each other. More gives steadier advantages."
    max_new_tokens: int = Field(128, ge=1)
    "Longest response in tokens, the stop token included."
    temperature: float = Field(1.0, gt=0)
    "Divides the logits, in sampling and in every log-prob."
    num_iterations: int = Field(1, ge=1)
    "Passes over each sampled batch."
    epsilon: float = Field(0.2, gt=0, lt=1)
    "How far the probability ratio may move from 1 before its gradient stops."
    reward_weight: float = 1.0
    "Factor of the reward model's score."
    ensemble_penalty: float = Field(0.0, ge=0)
    "Taken off a score: this times the standard deviation of the reward model's members, if it has several."
    function_weight: float = 1.0
    "Factor of the reward function's score."
    mask_truncated_completions: bool = False
    "Leave responses that the length limit cut out of the loss."

    @model_validator(mode="after")
    def _fits_together(self) -> GroupConfig:
        if self.responses_per_step % self.num_generations:
            raise ValueError(
                f"a step of {self.responses_per_step} responses (per_device_train_batch_size * "
                "gradient_accumulation_steps) holds no whole groups of num_generations "
                f"{self.num_generations}"
            )
        if self.max_new_tokens >= self.max_length:
            raise ValueError(
                f"max_new_tokens {self.max_new_tokens} leaves no prompt room in max_length {self.max_length}"
            )
        return self

    @property
    def responses_per_step(self) -> int:
        """Responses of one optimizer step."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    @property
    def prompts_per_step(self) -> int:
        """Different prompts of one optimizer step."""
        return self.responses_per_step // self.num_generations

    @property
    def max_prompt_length(self) -> int:
        """Longest prompt in tokens."""
        return self.max_length - self.max_new_tokens


GROUP_INPUTS: Mapping[str, InputSlot] = MappingProxyType(
    {
        "base": InputSlot((ArtifactKind.FULL_MODEL,), help="the frozen base"),
        "policy": rewarded.POLICY,
        "reward": rewarded.REWARD_MODEL,
        "reward_function": rewarded.REWARD_FUNCTION,
        "watch": rewarded.WATCH,
        "prompts": rewarded.PROMPTS,
    }
)


def check_groups(stage: StageCheck) -> Sequence[Finding]:
    """Read prompts and functions without running anything, and see that there is a reward."""
    findings = reward_findings(stage.name, stage.roles)
    findings += refuse_full(stage, "policy, reference and reward share one frozen base")
    findings += rewarded.function_findings(stage)
    if (prompts := stage.inputs.get("prompts")) is not None:
        count, broken = rewarded.count_prompts(prompts)
        findings += broken or prompt_findings(stage.config, count, where=str(prompts.path))
    return findings


def group_memory(stage: StageCheck) -> Workload:
    """Say what sampling, paying and training hold: a step's responses are all sampled and paid at once."""
    config: Any = stage.config
    responses, paid = config.responses_per_step, "reward" in stage.roles
    return Workload(
        config.model,
        config.tuning,
        rewarded.sampled_pass(config),
        trained=1,
        # The reference, the reward model, and a copy of the start that is compared with at the end.
        frozen=int(config.beta > 0) + int(paid) + 1,
        autocast=True,
        tiled_head=True,
        read_tokens=min(responses * config.max_length, _MOST_PAID_TOKENS) if paid else 0,
        decoding=Decoding(responses, config.max_prompt_length, config.max_new_tokens),
    )


_MOST_PAID_TOKENS = 16_384
"Padded tokens that a reward model scores at once, as reward.scoring does."


def reward_findings(name: str, roles: Collection[str]) -> list[Finding]:
    """Say whether the roles hold a reward."""
    if {"reward", "reward_function"} & set(roles):
        return []
    return [rewarded.no_reward(name)]


def prompt_findings(config: GroupConfig, num_prompts: int, *, where: str) -> list[Finding]:
    """Say whether the prompts fill one step."""
    if num_prompts >= config.prompts_per_step:
        return []
    message = f"{num_prompts} prompts do not fill a step of {config.prompts_per_step}"
    hint = "more prompts, or a smaller per_device_train_batch_size"
    return [Finding(message, where, hint, "too-few-prompts")]
