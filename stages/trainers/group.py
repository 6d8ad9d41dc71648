"""Trains a policy with TRL's GRPOTrainer or RLOOTrainer; policy and reference are the parent."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from trl.trainer.grpo_config import GRPOConfig as TRLGRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_config import RLOOConfig as TRLRLOOConfig
from trl.trainer.rloo_trainer import RLOOTrainer

from pipeline.contract import StageContext, StageResult
from pipeline.errors import ConfigError, DataError, ModelError
from stages.data import read_prompts
from stages.group_config import GroupConfig, prompt_findings, reward_findings
from stages.grpo import GRPOConfig
from stages.rloo import RLOOConfig
from stages.runtime.loading import causal_lm_of, position_findings, vocabulary_findings
from stages.runtime.text.chat import ChatText, check_same_text, generation_eos
from stages.trainers.group_rewards import Reward, SampledPrompt, open_rewards
from stages.trainers.pair_model import Parent, open_parent
from stages.trainers.trl_arguments import shared_arguments
from stages.trainers.trl_policy import POLICY, PolicyCheckpoints, policy_result, train_policy, with_parent


class NumberedPrompts(PolicyCheckpoints):
    """Part of a TRL trainer whose prompts are numbers of rows that are already token ids."""

    sampled: Sequence[SampledPrompt] = ()

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [self.sampled[int(number)].ids for number in prompts], None, {}


class GRPOPolicyTrainer(NumberedPrompts, GRPOTrainer):
    """TRL's GRPO on our prompt ids, with checkpoints of the policy alone."""


class RLOOPolicyTrainer(NumberedPrompts, RLOOTrainer):
    """TRL's RLOO on our prompt ids, with checkpoints of the policy alone."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a stage of groups opens before its first step."""

    parent: Parent
    prompts: list[SampledPrompt]
    rewards: list[Reward]
    num_too_long: int


def train_grpo(ctx: StageContext) -> StageResult:
    """Run the GRPO stage; see train_groups."""
    config: GRPOConfig = ctx.config
    own = {"loss_type": config.loss_type, "scale_rewards": config.scale_rewards}
    return train_groups(ctx, GRPOPolicyTrainer, lambda shared: TRLGRPOConfig(**shared, **own), text="grpo")


def train_rloo(ctx: StageContext) -> StageResult:
    """Run the RLOO stage; see train_groups."""
    config: RLOOConfig = ctx.config
    own = {"normalize_advantages": config.normalize_advantages}
    return train_groups(ctx, RLOOPolicyTrainer, lambda shared: TRLRLOOConfig(**shared, **own), text="rloo")


def train_groups(
    ctx: StageContext, trainer_type: type[Any], make_arguments: Callable[[dict[str, Any]], Any], *, text: str
) -> StageResult:
    """Run a stage of groups: open, prove, train, write.

    Raises:
        ConfigError: there is nothing to reward.
        DataError: a prompt or a function cannot be used, or too few prompts are short enough.
        HandOverError: the policy is not the parent, or the reference is not the policy.
        Interrupted: the stage was asked to stop; the last checkpoint is sealed.
    """
    config: GroupConfig = ctx.config
    setting = open_setting(ctx)
    parent = setting.parent
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is deprecated and will be removed in v6")
        arguments = make_arguments(_arguments(ctx, setting))
    trainer = with_parent(
        parent.model,
        lambda: trainer_type(
            parent.model,
            reward_funcs=[reward.for_trl(setting.prompts) for reward in setting.rewards],
            args=arguments,
            train_dataset=Dataset.from_dict({"prompt": [str(n) for n in range(len(setting.prompts))]}),
            processing_class=parent.tokenizer,
        ),
    )
    trainer.sampled = setting.prompts
    proof, damages = train_policy(trainer, ctx, text=text, has_reference=config.beta > 0)  # type: ignore[attr-defined]
    counts = {"num_prompts": float(len(setting.prompts)), "num_too_long": float(setting.num_too_long)}
    return policy_result(trainer, ctx, proof, counts, damages)


def open_setting(ctx: StageContext) -> Setting:
    """Open everything that the stage reads."""
    config: GroupConfig = ctx.config
    findings = reward_findings(ctx.name, ctx.inputs)
    if findings:
        raise ConfigError.from_findings(findings)
    parent = open_parent(ctx, name=POLICY)
    causal_lm = causal_lm_of(parent.model)
    if "reward" in ctx.inputs:
        stops = generation_eos(causal_lm)
        base = ctx.inputs["base"]
        where = f"stages.{ctx.name}.inputs.reward"
        check_same_text(
            ctx.inputs["reward"].path, parent.tokenizer, base=base, generation_eos=stops, where=where
        )
    prompts, num_too_long = _prompts(ctx, config, parent.chat)
    longest = max(len(prompt.ids) for prompt in prompts) + config.max_new_tokens
    unfit = [*vocabulary_findings(parent.tokenizer, parent.model), *position_findings(parent.model, longest)]
    if unfit:
        raise ModelError.from_findings(unfit)
    rewards = open_rewards(ctx, parent.model, parent.chat)
    # TRL ends a response at these ids and no others.
    causal_lm.generation_config.eos_token_id = list(parent.chat.stop_token_ids)
    return Setting(parent, prompts, rewards, num_too_long)


def num_steps(config: GroupConfig, num_prompts: int) -> int:
    """Return the optimizer steps: max_steps, or num_train_epochs of whole steps of prompts."""
    if config.max_steps is not None:
        return config.max_steps
    whole = num_prompts // config.prompts_per_step
    return max(1, math.ceil(config.num_train_epochs * whole * config.num_iterations))


def _prompts(ctx: StageContext, config: GroupConfig, chat: ChatText) -> tuple[list[SampledPrompt], int]:
    source = ctx.inputs["prompts"]
    encoded = [SampledPrompt(row, chat.prompt_ids(row.prompt)) for row in read_prompts(source.path)]
    kept = [prompt for prompt in encoded if len(prompt.ids) <= config.max_prompt_length]
    findings = prompt_findings(config, len(kept), where=str(source.path))
    if findings:
        raise DataError.from_findings(findings)
    return kept, len(encoded) - len(kept)


def _arguments(ctx: StageContext, setting: Setting) -> dict[str, Any]:
    """Return the arguments that GRPO and RLOO share: every step samples anew, so that a resume is exact."""
    config: GroupConfig = ctx.config
    steps = num_steps(config, len(setting.prompts))
    shared = shared_arguments(config, steps=steps, folder=ctx.scratch_dir / "trainer")
    return shared | dict(
        beta=config.beta,  # type: ignore[attr-defined]
        num_generations=config.num_generations,
        max_completion_length=config.max_new_tokens,
        temperature=config.temperature,
        top_p=1.0,
        top_k=0,
        min_p=None,
        repetition_penalty=1.0,
        num_iterations=config.num_iterations,
        steps_per_generation=config.gradient_accumulation_steps,
        epsilon=config.epsilon,
        reward_weights=[reward.weight for reward in setting.rewards],
        mask_truncated_completions=config.mask_truncated_completions,
        shuffle_dataset=True,
        router_aux_loss_coef=0.0,
        sync_ref_model=False,
        disable_dropout=True,
        use_vllm=False,
        log_completions=False,
        pad_to_multiple_of=None,
    )
