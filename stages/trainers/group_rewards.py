"""What pays a sampled response: the reward model on the policy's own base, and functions of the user."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel

from pipeline.contract import StageContext
from reward.model import ScoreHead
from reward.scoring import score
from stages.data import PromptRow
from stages.group_config import GroupConfig
from stages.runtime.ensemble import load_members
from stages.runtime.loading import backbone
from stages.runtime.modes import evaluating
from stages.runtime.score_function import ScoreFunction, load_score_function
from stages.runtime.switch import AdapterSwitch
from stages.runtime.text.chat import ChatText

REWARD = "reward"


@dataclass(frozen=True, slots=True)
class SampledPrompt:
    """A prompt as the policy reads it, and the row that functions are given."""

    row: PromptRow
    ids: list[int]


@dataclass(frozen=True, slots=True)
class Reward:
    """One source of reward: its name in the metrics, its weight, and token ids to numbers."""

    name: str
    weight: float
    score: Callable[[Sequence[SampledPrompt], Sequence[Sequence[int]]], list[float]]

    def for_trl(self, prompts: Sequence[SampledPrompt]) -> Callable[..., list[float]]:
        """Return the function that TRL calls; it names a prompt by its number."""

        def pay(*, prompts: Sequence[str], completion_ids: Sequence[list[int]], **_: Any) -> list[float]:
            return self.score([known[int(number)] for number in prompts], completion_ids)

        known = prompts
        pay.__name__ = self.name
        return pay


def open_rewards(ctx: StageContext, model: PeftModel, chat: ChatText) -> list[Reward]:
    """Open every reward of a stage: the reward model as one more adapter, functions as they are.

    Raises:
        DataError: a function cannot be run.
        HandOverError: the reward model belongs to another base, or holds no head.
    """
    config: GroupConfig = ctx.config
    rewards = []
    if "reward" in ctx.inputs:
        _, members = load_members(model, ctx.inputs["reward"], name=REWARD)
        score_members = _model_score(model, members, penalty=config.ensemble_penalty)
        rewards.append(Reward("model", config.reward_weight, score_members))
    for role, name, weight in (
        ("reward_function", "function", config.function_weight),
        ("watch", "watch", 0.0),
    ):
        if role in ctx.inputs:
            function = load_score_function(ctx.inputs[role])
            rewards.append(Reward(name, weight, _function_score(function, chat)))
    return rewards


def _model_score(
    model: PeftModel, members: Sequence[tuple[str, ScoreHead]], *, penalty: float
) -> Callable[[Sequence[SampledPrompt], Sequence[Sequence[int]]], list[float]]:
    """Return the scorer: mean of the members less `penalty` times their standard deviation."""
    switch = AdapterSwitch(model)

    def scored(prompts: Sequence[SampledPrompt], responses: Sequence[Sequence[int]]) -> list[float]:
        ids, by_member = [prompt.ids for prompt in prompts], []
        for adapter, head in members:
            with evaluating(model), switch.on(adapter):
                by_member.append(score(backbone(model), head, ids, responses))
        found = torch.stack(by_member)
        paid: list[float] = (found.mean(0) - penalty * found.std(0, correction=0)).tolist()
        return paid

    return scored


def _function_score(
    function: ScoreFunction, chat: ChatText
) -> Callable[[Sequence[SampledPrompt], Sequence[Sequence[int]]], list[float]]:
    def scored(prompts: Sequence[SampledPrompt], responses: Sequence[Sequence[int]]) -> list[float]:
        return [
            function(prompt.row.prompt, chat.decode(ids), {"id": prompt.row.id, **prompt.row.meta})
            for prompt, ids in zip(prompts, responses, strict=True)
        ]

    return scored
