"""One round of experience: responses sampled by the policy, and what every role says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.data import PromptRow
from stages.ops.masks import length_mask
from stages.ppo import PPOConfig
from stages.runtime.backends import Backend
from stages.runtime.ranks import ONE, Ranks
from stages.trainers.ppo.batches import Episode
from stages.trainers.ppo.roles import POLICY, REFERENCE, Roles


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt of the file and its token ids, generation prompt included."""

    row: PromptRow
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rollouts:
    """Sampled responses. Tensors are (batch, response), as wide as the longest one."""

    prompts: Sequence[EncodedPrompt]
    episodes: Sequence[Episode]
    mask: Tensor
    "True where a response token counts, the stop token included."
    finished: Tensor
    "(batch,), True where a stop token ended the response."
    sampled_logprobs: Tensor
    "As the sampler saw them; zero outside the mask."

    @property
    def lengths(self) -> Tensor:
        """Response tokens, (batch,)."""
        return self.mask.sum(1)

    @property
    def total_lengths(self) -> list[int]:
        """Tokens of prompt and response of every row."""
        return [episode.length for episode in self.episodes]

    def take(self, rows: Sequence[int]) -> list[Episode]:
        """Return the episodes of the named rows, in that order."""
        return [self.episodes[row] for row in rows]


@dataclass(frozen=True, slots=True)
class Readings:
    """What the roles say of rollouts before any update; zero outside the mask, no gradient."""

    logprobs: Tensor
    "Of the policy, from the code path and the micro-batches that training uses."
    ref_logprobs: Tensor
    entropies: Tensor
    values: Tensor | None
    "Of the state before each token; None without a value function."
    model_scores: Tensor | None
    "(batch,); None without a reward model."


def sample_rollouts(
    roles: Roles,
    prompts: Sequence[EncodedPrompt],
    config: PPOConfig,
    *,
    backend: Backend,
    stop_token_ids: Sequence[int],
    generator: torch.Generator,
) -> Rollouts:
    """Let the policy answer every prompt once."""
    roles.switch.use(POLICY)
    sampled = backend.sample(
        [prompt.ids for prompt in prompts],
        max_new_tokens=config.max_new_tokens,
        stop_token_ids=stop_token_ids,
        temperature=config.temperature,
        generator=generator,
    )
    lengths = torch.tensor([len(response) for response in sampled.responses], device=roles.device)
    mask = length_mask(lengths, width=int(lengths.max()))
    logprobs = torch.tensor([p for row in sampled.logprobs for p in row], device=roles.device)
    return Rollouts(
        prompts=prompts,
        episodes=[Episode(p.ids, r) for p, r in zip(prompts, sampled.responses, strict=True)],
        mask=mask,
        finished=torch.tensor(sampled.finished, device=roles.device),
        sampled_logprobs=torch.zeros(mask.shape, device=roles.device).masked_scatter(mask, logprobs),
    )


@torch.no_grad()
def read_rollouts(
    roles: Roles, rollouts: Rollouts, micro_batches: Sequence[Sequence[int]], *, ranks: Ranks = ONE
) -> Readings:
    """Ask every role about every rollout; of several ranks each one about its own micro-batches.

    Given the micro-batches of the first training pass, the log-probs are those of that pass
    bit for bit, so that its ratios are exactly 1.
    """
    logprobs, ref_logprobs, values, entropies = (
        torch.zeros(rollouts.mask.shape, device=roles.device) for _ in range(4)
    )
    scores = torch.zeros(len(rollouts.mask), device=roles.device)
    with roles.reading():
        for rows in micro_batches:
            batch = roles.batch(rollouts.take(rows))
            policy = roles.read_policy(batch, with_entropy=True)
            if policy.entropies is None:
                raise ValueError("the policy was read without entropies")
            _place(logprobs, policy.logprobs, rows, rollouts.mask)
            _place(entropies, policy.entropies, rows, rollouts.mask)
            _place(ref_logprobs, roles.logprobs(REFERENCE, batch), rows, rollouts.mask)
            if roles.value_on is not None:
                states = roles.values(batch) if policy.values is None else policy.values
                _place(values, states, rows, rollouts.mask)
            if roles.reward_head is not None:
                scores[list(rows)] = roles.scores(batch)
    ranks.add(logprobs, ref_logprobs, values, entropies, scores)
    model_scores = scores if roles.reward_head is not None else None
    known = None if roles.value_on is None else values
    return Readings(logprobs, ref_logprobs, entropies, known, model_scores)


def _place(grid: Tensor, values: Tensor, rows: Sequence[int], mask: Tensor) -> None:
    """Write one number an action into the named rows of a (batch, response) grid."""
    part = mask[list(rows)]
    grid[list(rows)] = torch.zeros(part.shape, device=grid.device).masked_scatter(part, values)
