"""What pays a response beside the reward adapter: functions of the user, and an outside reward model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipeline.contract import ArtifactKind, StageContext
from stages.ppo import OUTSIDE, PPOConfig
from stages.runtime.ranks import ONE, Ranks, open_ranks
from stages.runtime.score_function import ScoreFunction, load_score_function
from stages.runtime.text.chat import ChatText
from stages.trainers.ppo.outside import load_outside_reward
from stages.trainers.ppo.rollout import Rollouts

WATCH = "watch"

TextScorer = Callable[[Sequence[object], Sequence[str]], Sequence[float]]
"Prompts and responses to one number each."


@dataclass(frozen=True, slots=True)
class Sources:
    """Who is asked about the text of a response. The reward adapter reads token ids and is a role."""

    functions: Mapping[str, ScoreFunction] = field(default_factory=dict)
    "By role; their weighted scores are paid."
    outside: TextScorer | None = None
    "A whole reward model with a tokenizer of its own; its weighted score is paid."
    watch: ScoreFunction | None = None
    "Watched and never paid."
    ranks: Ranks = ONE
    "Rank 0 asks; what it was told goes to all, so that a function need not say the same twice."

    def scores(self, rollouts: Rollouts, chat: ChatText) -> dict[str, Tensor]:
        """Return what each source but the watched one says of every response, (batch,), by role."""
        if self.ranks.count == 1:
            return self._scores(rollouts, chat)
        told = self.ranks.from_main(
            lambda: {role: said.tolist() for role, said in self._scores(rollouts, chat).items()}
        )
        return {role: torch.tensor(said, device=rollouts.mask.device) for role, said in told.items()}

    def _scores(self, rollouts: Rollouts, chat: ChatText) -> dict[str, Tensor]:
        found = {role: _function_scores(each, rollouts, chat) for role, each in self.functions.items()}
        if self.outside is not None:
            prompts = [prompt.row.prompt for prompt in rollouts.prompts]
            said = self.outside(prompts, [chat.decode(episode.response) for episode in rollouts.episodes])
            found[OUTSIDE] = torch.tensor(said, dtype=torch.float32, device=rollouts.mask.device)
        return found

    def watched(self, rollouts: Rollouts, chat: ChatText) -> Tensor | None:
        """Return what the watched function says of every response, (batch,)."""
        watch = self.watch
        if watch is None or self.ranks.count == 1:
            return None if watch is None else _function_scores(watch, rollouts, chat)
        told = self.ranks.from_main(lambda: _function_scores(watch, rollouts, chat).tolist())
        return torch.tensor(told, device=rollouts.mask.device)


def open_sources(ctx: StageContext) -> Sources:
    """Open every function and the outside reward model that the inputs name.

    Raises:
        DataError: a function cannot be run.
        ModelError: the outside reward model cannot be opened, or gives more than one number.
    """
    config: PPOConfig = ctx.config
    functions = {
        role: load_score_function(source)
        for role, source in sorted(ctx.inputs.items())
        if source.kind == ArtifactKind.FUNCTION
    }
    watch = functions.pop(WATCH, None)
    outside = None
    if OUTSIDE in ctx.inputs and ctx.place.is_main:
        outside = load_outside_reward(
            ctx.inputs[OUTSIDE], config.model, batch_size=config.per_device_train_batch_size
        )
    return Sources(functions, outside, watch, open_ranks(ctx))


def _function_scores(function: ScoreFunction, rollouts: Rollouts, chat: ChatText) -> Tensor:
    scores = [
        function(prompt.row.prompt, chat.decode(episode.response), {"id": prompt.row.id, **prompt.row.meta})
        for prompt, episode in zip(rollouts.prompts, rollouts.episodes, strict=True)
    ]
    return torch.tensor(scores, dtype=torch.float32, device=rollouts.mask.device)
