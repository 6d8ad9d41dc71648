"""Who samples the responses of a rollout: the sampler here, transformers' continuous batching, or vLLM.

Every backend answers with the adapter that is active now and gives one log-prob a token, so that the
trainer can measure how far the generator is from the model that it trains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn
from transformers import ContinuousBatchingConfig, GenerationConfig

from pipeline.errors import StageFailed
from stages.runtime.generation import Rollout, sample
from stages.runtime.modes import evaluating
from stages.runtime.ranks import ONE, Ranks

PAGE = 64
"Tokens of a page of the cache."


class Backend(Protocol):
    """Samples one response a prompt."""

    def sample(
        self,
        prompt_ids: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop_token_ids: Sequence[int],
        temperature: float,
        generator: torch.Generator,
    ) -> Rollout:
        """Return responses in the order of the prompts; see stages.runtime.generation.sample."""


@dataclass(frozen=True, slots=True)
class OwnSampler:
    """The compacting sampler: bit for bit the same after a resume.

    Several ranks sample some rows each. A row's random numbers are its own, so it gets what one process
    would give it, but for rounding: rows that are decoded together share the width of their padding.
    """

    model: nn.Module
    pad_token_id: int
    batch_size: int
    "Most rows decoded at once."
    ranks: Ranks = ONE

    def sample(
        self,
        prompt_ids: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop_token_ids: Sequence[int],
        temperature: float,
        generator: torch.Generator,
    ) -> Rollout:
        """Sample; every row has random numbers of its own."""
        by_length = sorted(range(len(prompt_ids)), key=lambda row: len(prompt_ids[row]))
        own = self.ranks.share(by_length)
        rollout = sample(
            self.model,
            prompt_ids,
            max_new_tokens=max_new_tokens,
            stop_token_ids=stop_token_ids,
            temperature=temperature,
            generator=generator,
            pad_token_id=self.pad_token_id,
            batch_size=self.batch_size,
            only=None if self.ranks.count == 1 else own,
        )
        return rollout if self.ranks.count == 1 else _together(rollout, own, self.ranks)


@dataclass(frozen=True, slots=True)
class ContinuousBatching:
    """transformers' continuous batching: paged cache, new rows join as others end.

    What a row gets depends on which rows are in flight, so a resumed run is not bit-equal.
    """

    model: nn.Module
    pad_token_id: int
    batch_size: int
    "Most rows in flight at once; bounds the memory of the cache."

    def sample(
        self,
        prompt_ids: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop_token_ids: Sequence[int],
        temperature: float,
        generator: torch.Generator,
    ) -> Rollout:
        """Sample.

        Raises:
            StageFailed: some prompts got no response; transformers logs why and goes on.
        """
        settings = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=True,
            temperature=temperature,
            top_k=0,
            top_p=1.0,
            eos_token_id=list(stop_token_ids),
            pad_token_id=self.pad_token_id,
        )
        longest = max(map(len, prompt_ids))
        batching = ContinuousBatchingConfig(
            return_logprobs=True,
            seed=drawn_seed(generator),
            max_requests_per_batch=self.batch_size,
            page_size=PAGE,
            num_blocks=self.batch_size * (1 + (longest + max_new_tokens) // PAGE),
            use_cuda_graph=False,
        )
        with torch.no_grad(), evaluating(self.model):
            found = self.model.generate_batch(
                [list(prompt) for prompt in prompt_ids],
                generation_config=settings,
                continuous_batching_config=batching,
            )
        answers = list(found.values())
        failed = [answer.error for answer in answers if answer.error is not None]
        if failed or len(answers) != len(prompt_ids):
            raise StageFailed(
                f"continuous batching answered {len(answers) - len(failed)} of {len(prompt_ids)} prompts"
                + (f": {failed[0]}" if failed else ""),
                hint="generation_backend: sampler, or a smaller generation_batch_size",
                code="generation-failed",
            )
        return as_rollout(
            [answer.generated_tokens for answer in answers],
            [answer.logprobs for answer in answers],
            stop_token_ids=stop_token_ids,
        )


def as_rollout(
    responses: Sequence[Sequence[int]], logprobs: Sequence[Sequence[float]], *, stop_token_ids: Sequence[int]
) -> Rollout:
    """Make a rollout of what a generator gave: each response ends at its first stop token.

    Raises:
        StageFailed: a response is empty, or has another number of log-probs than tokens.
    """
    stops = frozenset(stop_token_ids)
    cut: list[list[int]] = []
    kept: list[list[float]] = []
    for tokens, numbers in zip(responses, logprobs, strict=True):
        if not tokens or len(tokens) != len(numbers):
            raise StageFailed(
                f"the generator gave {len(tokens)} tokens and {len(numbers)} log-probs for a prompt",
                hint="generation_backend: sampler",
                code="generation-failed",
            )
        end = next((place + 1 for place, token in enumerate(tokens) if token in stops), len(tokens))
        cut.append(list(tokens[:end]))
        kept.append([float(number) for number in numbers[:end]])
    return Rollout(cut, kept, [tokens[-1] in stops for tokens in cut])


def _together(rollout: Rollout, own: Sequence[int], ranks: Ranks) -> Rollout:
    """Return the rows that all ranks sampled, in the order of the prompts."""
    part = [(row, rollout.responses[row], rollout.logprobs[row], rollout.finished[row]) for row in own]
    rows = sorted(row for given in ranks.gathered(part) for row in given)
    return Rollout([row[1] for row in rows], [row[2] for row in rows], [row[3] for row in rows])


def drawn_seed(generator: torch.Generator) -> int:
    """Return a seed for a generator that takes no torch.Generator."""
    return int(torch.randint(2**31 - 1, (), generator=generator))
