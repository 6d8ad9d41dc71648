"""What PPO opens before its first iteration: roles, text, prompts and the reward function."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from pipeline.contract import StageContext
from pipeline.errors import ConfigError, DataError, Finding
from stages.data import read_prompts
from stages.ppo import PPOConfig
from stages.runtime.chat import ChatText, generation_eos
from stages.runtime.loading import causal_lm_of, load_tokenizer
from stages.runtime.score_function import ScoreFunction, load_score_function
from stages.trainers.ppo_roles import Roles, load_roles, value_start
from stages.trainers.ppo_rollout import EncodedPrompt

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Setting:
    """What stays the same for the whole stage."""

    config: PPOConfig
    roles: Roles
    tokenizer: PreTrainedTokenizerBase
    chat: ChatText
    prompts: Sequence[EncodedPrompt]
    function: ScoreFunction | None
    dropped: int
    "Prompts set aside for their length."


def open_setting(ctx: StageContext) -> Setting:
    """Open everything that the stage reads.

    Raises:
        ConfigError: there is no reward source, or the value function is to start from one that is not given.
        DataError: no prompt is short enough.
    """
    config: PPOConfig = ctx.config
    _check_rewards(ctx)
    source = ctx.inputs.get("reward_function")
    function = load_score_function(source) if source is not None else None
    tokenizer = load_tokenizer(ctx.inputs["policy"], config.model)
    roles = load_roles(ctx.inputs, config)
    chat = ChatText(tokenizer, generation_eos=generation_eos(causal_lm_of(roles.model)))
    if roles.unpacked_because is not None:
        LOGGER.warning("rows are padded: %s", roles.unpacked_because)
    rows = read_prompts(ctx.inputs["prompts"].path)
    encoded = [EncodedPrompt(row, tuple(chat.prompt_ids(row.prompt))) for row in rows]
    kept = [prompt for prompt in encoded if len(prompt.ids) <= config.max_prompt_length]
    if not kept:
        shortest = min(len(prompt.ids) for prompt in encoded)
        raise DataError(
            f"no prompt has {config.max_prompt_length} tokens or less; the shortest has {shortest}",
            where=str(ctx.inputs["prompts"].path),
            hint=f"max_length: {shortest + config.max_new_tokens} or more, or a smaller max_new_tokens",
            code="prompts-too-long",
        )
    return Setting(config, roles, tokenizer, chat, kept, function, len(encoded) - len(kept))


def _check_rewards(ctx: StageContext) -> None:
    findings = []
    if not {"reward", "reward_function"} & ctx.inputs.keys():
        message = "there is nothing to reward: neither a reward model nor a reward function is given"
        hint = "inputs: {reward: <a reward stage>} or {reward_function: <a Python file>}"
        findings.append(Finding(message, f"stages.{ctx.name}.inputs", hint, "no-reward"))
    if value_start(ctx.inputs, ctx.config) not in ctx.inputs:
        message = "value_init is reward, but no reward model is given"
        where = f"stages.{ctx.name}.value_init"
        findings.append(Finding(message, where, "value_init: policy", "no-reward"))
    if findings:
        raise ConfigError.from_findings(findings)
