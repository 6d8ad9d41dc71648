"""What pays a sampled response: the reward model on the policy's own base, and functions of the user."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from peft import PeftModel

from pipeline.contract import StageContext
from reward.model import ScoreHead
from reward.scoring import score
from stages.data import PromptRow
from stages.group_config import GroupConfig
from stages.runtime.adapters import load_adapter, load_head
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
        load_adapter(model, ctx.inputs["reward"], name=REWARD, trainable=False)
        head = ScoreHead.from_tensors(load_head(ctx.inputs["reward"])).requires_grad_(False)
        rewards.append(Reward("model", config.reward_weight, _model_score(model, head.to(model.device))))
    for role, name, weight in (
        ("reward_function", "function", config.function_weight),
        ("watch", "watch", 0.0),
    ):
        if role in ctx.inputs:
            function = load_score_function(ctx.inputs[role])
            rewards.append(Reward(name, weight, _function_score(function, chat)))
    return rewards


def _model_score(
    model: PeftModel, head: ScoreHead
) -> Callable[[Sequence[SampledPrompt], Sequence[Sequence[int]]], list[float]]:
    switch = AdapterSwitch(model)

    def scored(prompts: Sequence[SampledPrompt], responses: Sequence[Sequence[int]]) -> list[float]:
        with evaluating(model), switch.on(REWARD):
            found = score(backbone(model), head, [prompt.ids for prompt in prompts], responses)
        return [float(value) for value in found]

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
