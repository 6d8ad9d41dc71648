"""What PPO opens before its first iteration: roles, text, prompts and the reward sources."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from pipeline.contract import StageContext
from pipeline.errors import ConfigError, DataError, ModelError
from stages.data import read_prompts
from stages.ppo import PPOConfig, reward_findings
from stages.runtime.adapters import save_adapter
from stages.runtime.backends import Backend, ContinuousBatching, OwnSampler
from stages.runtime.loading import (
    base_dtype,
    causal_lm_of,
    load_tokenizer,
    position_findings,
    vocabulary_findings,
)
from stages.runtime.ranks import ONE, Ranks, open_ranks
from stages.runtime.text.chat import ChatText, check_same_text, generation_eos
from stages.trainers.ppo.roles import POLICY, Roles, load_roles
from stages.trainers.ppo.rollout import EncodedPrompt
from stages.trainers.ppo.sources import Sources, open_sources

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Setting:
    """What stays the same for the whole stage."""

    config: PPOConfig
    roles: Roles
    tokenizer: PreTrainedTokenizerBase
    chat: ChatText
    prompts: Sequence[EncodedPrompt]
    sources: Sources
    backend: Backend
    "Who samples."
    dropped: int
    "Prompts set aside for their length."
    ranks: Ranks = ONE
    "The processes that train together."


def open_setting(ctx: StageContext) -> Setting:
    """Open everything that the stage reads.

    Raises:
        ConfigError: there is no reward source, or the value function is to start from one that is not given.
        DataError: a prompt or the reward function cannot be used, or no prompt is short enough.
        HandOverError: an adapter belongs to another base, or was trained on other text.
        ModelError: the base cannot be read, or is too small for these prompts.
    """
    config: PPOConfig = ctx.config
    findings = reward_findings(ctx.name, config, ctx.inputs)
    if findings:
        raise ConfigError.from_findings(findings)
    ranks = open_ranks(ctx)
    sources = open_sources(ctx)
    rows = read_prompts(ctx.inputs["prompts"].path)
    tokenizer = load_tokenizer(ctx.inputs["policy"], config.model)
    roles = load_roles(ctx.inputs, config, ranks=ranks)
    if roles.unpacked_because is not None:
        LOGGER.warning("rows are padded: %s", roles.unpacked_because)
    stops = generation_eos(causal_lm_of(roles.model))
    _check_text(ctx, tokenizer, stops)
    chat = ChatText(tokenizer, generation_eos=stops)
    encoded = [EncodedPrompt(row, tuple(chat.prompt_ids(row.prompt))) for row in rows]
    kept = _short_enough(encoded, config, where=str(ctx.inputs["prompts"].path))
    longest = max(len(prompt.ids) for prompt in kept) + config.max_new_tokens
    unfit = [*vocabulary_findings(tokenizer, roles.model), *position_findings(roles.model, longest)]
    if unfit:
        raise ModelError.from_findings(unfit)
    backend = _open_backend(ctx, roles, tokenizer)
    dropped = len(encoded) - len(kept)
    return Setting(config, roles, tokenizer, chat, kept, sources, backend, dropped, ranks)


def _open_backend(ctx: StageContext, roles: Roles, tokenizer: PreTrainedTokenizerBase) -> Backend:
    config: PPOConfig = ctx.config
    pad, rows = int(tokenizer.pad_token_id), config.generation_batch_size
    if config.generation_backend == "sampler":
        return OwnSampler(roles.model, pad, rows, open_ranks(ctx).readers)
    if config.generation_backend == "transformers":
        return ContinuousBatching(roles.model, pad, rows)
    from stages.runtime.vllm_backend import VllmBackend

    base = ctx.inputs["base"]

    def write(folder: Path) -> Path:
        return save_adapter(roles.model, folder, name=POLICY, base=base, tokenizer=tokenizer)

    return VllmBackend(
        str(base.path) if base.path.is_dir() else base.source,
        write_adapter=write,
        scratch=ctx.scratch_dir,
        rank=config.tuning.lora_r,
        dtype=str(base_dtype(config.model)).removeprefix("torch."),
        max_length=config.max_length,
        batch_size=rows,
        memory_share=config.vllm_memory_share,
    )


def _check_text(ctx: StageContext, tokenizer: PreTrainedTokenizerBase, stops: Sequence[int]) -> None:
    """Check that token ids mean the same here as they did to the policy and to the reward model.

    Raises:
        HandOverError: template, vocabulary or special ids differ; every difference is named.
    """
    for role in ("policy", "reward"):
        if role in ctx.inputs:
            check_same_text(
                ctx.inputs[role].path,
                tokenizer,
                base=ctx.inputs["base"],
                generation_eos=stops,
                where=f"stages.{ctx.name}.inputs.{role}",
            )


def _short_enough(encoded: Sequence[EncodedPrompt], config: PPOConfig, *, where: str) -> list[EncodedPrompt]:
    kept = [prompt for prompt in encoded if len(prompt.ids) <= config.max_prompt_length]
    if not kept:
        shortest = min(len(prompt.ids) for prompt in encoded)
        raise DataError(
            f"no prompt has {config.max_prompt_length} tokens or less; the shortest has {shortest}",
            where=where,
            hint=f"max_length: {shortest + config.max_new_tokens} or more, or a smaller max_new_tokens",
            code="prompts-too-long",
        )
    return kept
