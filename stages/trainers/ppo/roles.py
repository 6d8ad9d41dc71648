"""Four roles on one frozen base: policy, reference, reward and value, each an adapter of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from peft import PeftModel
from torch import Tensor, nn

from pipeline.contract import Checkpoint
from reward.model import ScoreHead
from stages.ppo import PPOConfig
from stages.runtime.adapters import load_adapter, load_head, trained_parameters
from stages.runtime.ensemble import load_members
from stages.runtime.loading import backbone, load_base
from stages.runtime.output_head import OutputHead
from stages.runtime.ranks import ONE, Ranks
from stages.runtime.segment_check import supports_segments
from stages.runtime.segments import segment_model
from stages.runtime.switch import AdapterSwitch, enable_checkpointing
from stages.trainers.ppo.batches import Collate, Episode, TokenBatch, packed_batch, padded_batch

POLICY, REFERENCE, REWARD, VALUE = "policy", "ref", "reward", "value"


@dataclass(frozen=True, slots=True)
class PolicyReading:
    """What the policy says of every action of a batch, each (actions,)."""

    logprobs: Tensor
    "At the sampling temperature."
    entropies: Tensor | None
    "None unless asked for."
    values: Tensor | None
    "Of the state before, in fp32; None unless the value head sits on the policy."


@dataclass(frozen=True, slots=True)
class Roles:
    """The base, its adapters and heads, and the one way in which each role is asked."""

    model: PeftModel
    switch: AdapterSwitch
    output_head: OutputHead
    reward_members: Sequence[tuple[str, ScoreHead]]
    "Adapter and frozen head of each member of the reward model; none without one."
    ensemble_penalty: float
    "Deviations of the members that a score loses."
    value_head: ScoreHead | None
    value_on: Literal["adapter", "trunk"] | None
    "Whose hidden states the value head reads: an adapter of its own, the policy's, or there is none."
    temperature: float
    unpacked_because: str | None
    "Why rows are padded; None when they are packed."

    @property
    def device(self) -> torch.device:
        """Where the base is."""
        return next(self.model.parameters()).device

    @property
    def reward_head(self) -> ScoreHead | None:
        """The head of the reward model's first member; None without a reward model."""
        return self.reward_members[0][1] if self.reward_members else None

    @property
    def num_readers(self) -> int:
        """Roles that pass over every rollout before an update."""
        return 2 + (self.value_on == "adapter") + len(self.reward_members)

    @property
    def collate(self) -> Collate:
        """How episodes become a batch that this model can read."""
        return packed_batch if self.unpacked_because is None else padded_batch

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Hold the model ready for collated batches, backward passes included; sampling stays outside."""
        with segment_model(self.model) if self.unpacked_because is None else nullcontext():
            yield

    @contextmanager
    def recomputing(self) -> Iterator[None]:
        """Let activation checkpointing act, while everything else, dropout too, stays in eval()."""
        layers = [part for part in self.model.modules() if getattr(part, "gradient_checkpointing", False)]
        for layer in layers:
            layer.training = True
        try:
            yield
        finally:
            for layer in layers:
                layer.training = False

    def batch(self, episodes: list[Episode]) -> TokenBatch:
        """Collate episodes on the model's device."""
        return self.collate(episodes, self.device)

    def read_policy(self, batch: TokenBatch, *, with_entropy: bool = False) -> PolicyReading:
        """Return what the policy says of every action, from one forward pass."""
        hidden = self._hidden(POLICY, batch)[batch.before]
        logprobs, entropies = self.output_head.logprobs(
            hidden, batch.targets, temperature=self.temperature, with_entropy=with_entropy
        )
        values = None
        if self.value_head is not None and self.value_on == "trunk":
            values = self.value_head(hidden)
        return PolicyReading(logprobs, entropies, values)

    def logprobs(self, role: str, batch: TokenBatch) -> Tensor:
        """Return the log-prob of every action at the sampling temperature, (actions,)."""
        hidden = self._hidden(role, batch)[batch.before]
        return self.output_head.logprobs(hidden, batch.targets, temperature=self.temperature)[0]

    def values(self, batch: TokenBatch) -> Tensor:
        """Return the value adapter's value of the state before every action, (actions,), in fp32."""
        if self.value_head is None:
            raise ValueError("no value function was loaded")
        return self.value_head(self._hidden(VALUE, batch)[batch.before])

    def scores(self, batch: TokenBatch) -> Tensor:
        """Return the reward model's score of every episode, read at its last token, (rows,), in fp32.

        Of several members it is the mean less `ensemble_penalty` times their population deviation.
        """
        if not self.reward_members:
            raise ValueError("no reward model was loaded")
        said = torch.stack(
            [head(self._hidden(name, batch)[batch.last]) for name, head in self.reward_members]
        )
        return said.mean(0) - self.ensemble_penalty * said.std(0, correction=0)

    def policy_parameters(self) -> dict[str, nn.Parameter]:
        """Return what the policy loss trains, by name."""
        return dict(trained_parameters(self.model, POLICY))

    def value_parameters(self) -> dict[str, nn.Parameter]:
        """Return what the value loss alone trains, by name: its adapter, if it has one, and its head."""
        if self.value_head is None:
            return {}
        head = {f"head.{name}": parameter for name, parameter in self.value_head.named_parameters()}
        own = trained_parameters(self.model, VALUE) if self.value_on == "adapter" else ()
        return {**dict(own), **head}

    def _hidden(self, role: str, batch: TokenBatch) -> Tensor:
        """Return the last hidden states under a role's adapter, (positions, hidden), flattened."""
        self.switch.use(role)
        output = backbone(self.model)(input_ids=batch.input_ids, use_cache=False, **batch.options)
        return output.last_hidden_state.flatten(0, 1)


def load_roles(inputs: Mapping[str, Checkpoint], config: PPOConfig, *, ranks: Ranks = ONE) -> Roles:
    """Open the base once and put the adapters of all roles on it.

    The policy and the reference are two copies of one SFT adapter; the value function is a
    copy of the reward model, or of the policy with a head of zeros, or a head of zeros on the
    policy itself, or there is none.

    Raises:
        ModelError: the base or an adapter cannot be read.
        HandOverError: an adapter belongs to another base, or does not fit.
    """
    base = load_base(inputs["base"], config.model, config.tuning, ranks=ranks)
    model = load_adapter(base, inputs["policy"], name=POLICY, trainable=True, tuning=config.tuning)
    # At the policy's own rank: other sums would round differently in bf16.
    load_adapter(model, inputs["policy"], name=REFERENCE, trainable=False, tuning=config.tuning)
    output_head = OutputHead.of(model, backbone=backbone(model))
    hidden_size, device = output_head.weight.shape[1], output_head.weight.device
    stored = load_head(inputs["reward"]) if "reward" in inputs else {}
    members: Sequence[tuple[str, ScoreHead]] = ()
    if "reward" in inputs:
        _, members = load_members(model, inputs["reward"], name=REWARD)
    value_head = None
    if config.value_on is not None:
        start = value_start(inputs, config)
        if config.value_on == "adapter":
            load_adapter(model, inputs[start], name=VALUE, trainable=True, tuning=config.tuning)
        value_head = ScoreHead.from_tensors(stored) if start == "reward" else ScoreHead(hidden_size)
        value_head.to(device)
    switch = AdapterSwitch(model)
    switch.self_test(ranks)
    if config.tuning.gradient_checkpointing:
        enable_checkpointing(model, switch)
    switch.use(POLICY)
    because = supports_segments(model, backbone=backbone(model))
    return Roles(
        model,
        switch,
        output_head,
        members,
        config.ensemble_penalty,
        value_head,
        value_on=config.value_on,
        temperature=config.temperature,
        unpacked_because=because,
    )


def value_start(inputs: Mapping[str, Checkpoint], config: PPOConfig) -> str:
    """Return the input that the value function starts from: `reward` or `policy`."""
    if config.value_on == "trunk":
        return "policy"
    if config.value_init == "auto":
        return "reward" if "reward" in inputs else "policy"
    return config.value_init
