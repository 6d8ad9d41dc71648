"""The models that are compared: one base in memory, adapters switched; other full models one at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.contract import ArtifactKind, Checkpoint
from pipeline.errors import HandOverError, ModelError
from reward.model import ScoreHead
from reward.scoring import score
from stages.evaluate import FIXED_ROLES, EvaluateConfig
from stages.runtime.adapters import load_adapter, load_head
from stages.runtime.computing import computing_of
from stages.runtime.generation import Rollout, sample
from stages.runtime.loading import backbone, load_base, load_tokenizer
from stages.runtime.output_head import OutputHead
from stages.runtime.switch import AdapterSwitch
from stages.runtime.text.chat import ChatText, TextContract, check_same_text, generation_eos
from stages.trainers.ppo.batches import Episode, padded_batch

BASE, FEWSHOT = "base", "base few-shot"
REWARD = "reward"


@dataclass(frozen=True, slots=True)
class Contestant:
    """One model under the name that the run file gives it."""

    name: str
    source: Checkpoint | None
    "None is the base itself."

    @property
    def is_adapter(self) -> bool:
        """Whether the base carries it."""
        return self.source is not None and self.source.kind is ArtifactKind.ADAPTER

    @property
    def is_full_model(self) -> bool:
        """Whether it has to be opened on its own."""
        return self.source is not None and self.source.kind is ArtifactKind.FULL_MODEL


def contestants(inputs: Mapping[str, Checkpoint]) -> list[Contestant]:
    """Return the base and then every model in the order of the run file."""
    others = [
        Contestant(role, source)
        for role, source in inputs.items()
        if role != BASE and role not in FIXED_ROLES
    ]
    return [Contestant(BASE, None), *others]


class Reader:
    """One causal model in memory and the ways to ask it."""

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, config: EvaluateConfig) -> None:
        self._model = model
        self._config = config
        self._pad_token_id = int(tokenizer.pad_token_id)
        self._head = OutputHead.of(model, backbone=backbone(model))
        self.chat = ChatText(tokenizer, generation_eos=generation_eos(model))

    @property
    def model(self) -> nn.Module:
        """The model, with the adapter in effect that was chosen last."""
        return self._model

    def sample(self, prompt_ids: Sequence[Sequence[int]], *, seed: int) -> Rollout:
        """Sample one response a prompt; the same seed gives every model the same random numbers."""
        return sample(
            self._model,
            prompt_ids,
            max_new_tokens=self._config.max_new_tokens,
            stop_token_ids=self.chat.stop_token_ids,
            temperature=self._config.temperature,
            generator=torch.Generator().manual_seed(seed),
            pad_token_id=self._pad_token_id,
            batch_size=self._config.generation_batch_size,
        )

    @torch.no_grad()
    def logps(
        self, prompt_ids: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], *, temperature: float
    ) -> list[float]:
        """Return the log-probability of each response, summed over its tokens."""
        episodes = [Episode(prompt, response) for prompt, response in zip(prompt_ids, responses, strict=True)]
        device = next(self._model.parameters()).device
        size = self._config.generation_batch_size
        totals: list[float] = []
        for start in range(0, len(episodes), size):
            part = episodes[start : start + size]
            batch = padded_batch(part, device)
            hidden = backbone(self._model)(input_ids=batch.input_ids, use_cache=False).last_hidden_state
            states = hidden.flatten(0, 1)[batch.before]
            logprobs, _ = self._head.logprobs(states, batch.targets, temperature=temperature)
            split = logprobs.split([len(episode.response) for episode in part])
            totals.extend(float(row.sum()) for row in split)
        return totals


class Panel(Reader):
    """The base with every adapter of the evaluation on it, and the reward model if there is one."""

    def __init__(
        self, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: EvaluateConfig
    ) -> None:
        super().__init__(base, tokenizer, config)
        self._switch: AdapterSwitch | None = None
        self._reward_head: ScoreHead | None = None

    def add(self, name: str, source: Checkpoint) -> None:
        """Put an adapter on the base.

        Raises:
            HandOverError: it belongs to another base.
        """
        self._model = load_adapter(self._model, source, name=name, trainable=False)
        if source.kind is ArtifactKind.REWARD_MODEL:
            self._reward_head = ScoreHead.from_tensors(load_head(source)).requires_grad_(False)
            self._reward_head.to(next(self._model.parameters()).device)
        self._switch = AdapterSwitch(self._model)

    def computing(self) -> dict[str, str]:
        """Return how the base is held and computes, for the record."""
        return computing_of(self._model, self._config.model, None)

    def use(self, name: str | None) -> None:
        """Put an adapter in effect, or the base alone."""
        if self._switch is not None:
            self._switch.use(name)

    def proxy(
        self, prompt_ids: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
    ) -> list[float] | None:
        """Return the reward model's score of each response; None without a reward model."""
        if self._reward_head is None:
            return None
        self.use(REWARD)
        return score(backbone(self._model), self._reward_head, prompt_ids, responses).tolist()


def open_panel(inputs: Mapping[str, Checkpoint], config: EvaluateConfig) -> Panel:
    """Open the base and put every adapter on it.

    Raises:
        ModelError: the base or an adapter cannot be read.
        HandOverError: an adapter belongs to another base or makes token ids in another way.
    """
    tokenizer = load_tokenizer(inputs[BASE], config.model)
    panel = Panel(load_base(inputs[BASE], config.model, config.tuning), tokenizer, config)
    for role, source in inputs.items():
        if source.kind in (ArtifactKind.ADAPTER, ArtifactKind.REWARD_MODEL):
            check_same_text(source.path, tokenizer, base=inputs[BASE], where=role)
            panel.add(role, source)
    panel.use(None)
    return panel


def open_full_model(contestant: Contestant, config: EvaluateConfig, *, like: Panel) -> Reader:
    """Open another full model beside the panel.

    Raises:
        HandOverError: its token ids mean something else than the base's.
    """
    source = contestant.source
    if source is None:
        raise ValueError("the base is on the panel already")
    tokenizer = load_tokenizer(source, config.model)
    model = load_base(source, config.model, config.tuning)
    own = TextContract.from_tokenizer(tokenizer, generation_eos=generation_eos(model))
    theirs = TextContract.from_tokenizer(like.chat.tokenizer)
    found = own.differences(theirs, where=contestant.name, other_name="base")
    if found:
        raise HandOverError.from_findings(found)
    return Reader(model, tokenizer, config)


def check_reference(found: Sequence[Contestant], reference: str) -> None:
    """Refuse a reference that is not among the models.

    Raises:
        ModelError: with the names to choose from.
    """
    names = [contestant.name for contestant in found]
    if reference not in names:
        raise ModelError(
            f"reference is {reference!r}, which is not a model of this evaluation",
            where="reference",
            hint=f"one of {', '.join(names)}",
            code="unknown-model",
        )
