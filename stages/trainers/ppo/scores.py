"""One score a response: all reward sources mixed, normalised, less penalties."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.ops.rewards import length_penalties, normalised, with_missing_eos_penalty
from stages.ops.stats import RunningMoments
from stages.ppo import PPOConfig
from stages.runtime.text.chat import ChatText
from stages.trainers.ppo.rollout import Readings, Rollouts
from stages.trainers.ppo.sources import Sources


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of a rollout batch, each (batch,)."""

    mixed: Tensor
    "What the reward sources say, weighted: the number to watch."
    shaped: Tensor
    "What the policy is paid at its last token: normalised, clipped, less penalties."
    parts: Mapping[str, Tensor]
    "Of each source beside the reward adapter, by role, before its weight."
    watched: Tensor | None
    "Of the function that is watched and never trained on."
    moments: RunningMoments
    "Of the mixed scores so far, for normalisation."


def score_rollouts(
    rollouts: Rollouts,
    readings: Readings,
    config: PPOConfig,
    *,
    chat: ChatText,
    sources: Sources,
    moments: RunningMoments,
) -> Scores:
    """Mix the reward sources and shape the result: s = clip(normalise(mix)) - penalties."""
    parts = sources.scores(rollouts, chat)
    mixed = torch.zeros(len(rollouts.mask), device=rollouts.mask.device)
    if readings.model_scores is not None:
        mixed = mixed + config.reward_weight * readings.model_scores
    for role, said in parts.items():
        mixed = mixed + config.weight_of(role) * said
    moments = moments.updated(mixed)
    shaped = _shaped(mixed, rollouts, config, moments)
    return Scores(mixed, shaped, parts, sources.watched(rollouts, chat), moments)


def _shaped(mixed: Tensor, rollouts: Rollouts, config: PPOConfig, moments: RunningMoments) -> Tensor:
    shaped = mixed
    if config.normalize_scores:
        shaped = normalised(shaped, mean=moments.mean, deviation=moments.deviation)
    if config.score_clip is not None:
        shaped = shaped.clamp(-config.score_clip, config.score_clip)
    shaped = with_missing_eos_penalty(shaped, rollouts.finished, penalty=config.missing_eos_penalty)
    return shaped - length_penalties(
        rollouts.lengths,
        limit=config.max_new_tokens,
        buffer=config.length_penalty_buffer,
        coef=config.length_penalty,
    )
