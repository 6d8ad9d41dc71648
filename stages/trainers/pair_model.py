"""The model of a pair stage: one frozen base, the parent's adapter as its start, packed where it can be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from pipeline.contract import StageContext
from pipeline.errors import ModelError
from stages.config import TrainingConfig
from stages.pair_config import PairTrainingConfig
from stages.runtime.adapters import load_adapter
from stages.runtime.computing import computing_of
from stages.runtime.handover import HandOver, prove_hand_over
from stages.runtime.loading import (
    backbone,
    causal_lm_of,
    load_base,
    load_tokenizer,
    position_findings,
    vocabulary_findings,
)
from stages.runtime.output_head import OutputHead
from stages.runtime.ranks import open_ranks
from stages.runtime.segment_check import supports_segments
from stages.runtime.segments import segment_model
from stages.runtime.switch import AdapterSwitch, enable_checkpointing
from stages.runtime.text.chat import ChatText, check_same_text, generation_eos
from stages.runtime.trained_head import Head, TrainedHead
from stages.runtime.whole_model import NoAdapters, computing, open_whole
from stages.trainers.pair_data import TokenPair
from stages.trainers.pairs import PairBatch

POLICY, REFERENCE, REWARD = "policy", "ref", "reward"
_OFF = "shared_prompts is off"


@dataclass(frozen=True, slots=True)
class PairModel:
    """A base with its adapters, and how batches are laid out for it."""

    model: Any
    "A base with adapters, or a whole model."
    switch: AdapterSwitch | NoAdapters
    tokenizer: PreTrainedTokenizerBase
    chat: ChatText
    hand_over: HandOver
    "What was proven before the first step."
    unpacked_because: str | None
    "Why rows are padded; None when prompts are shared."
    autocast: str | None = None
    "model.dtype of a whole model, whose float32 weights compute in another precision; None for adapters."

    @property
    def packed(self) -> bool:
        """Whether batches are packed rows."""
        return self.unpacked_because is None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of how the model is run."""
        if self.unpacked_because is None:
            return ()
        return (f"prompts are not shared and rows are padded: {self.unpacked_because}",)

    def computing(self, config: TrainingConfig) -> dict[str, str]:
        """Return how the model was held and computed, for the record."""
        whole = self.autocast is not None
        return computing_of(self.model, config.model, config.tuning, autocast=whole, packed=self.packed)

    def hidden(self, batch: PairBatch) -> Tensor:
        """Return last hidden states (positions, hidden) of a batch on the model's device."""
        with nullcontext() if self.autocast is None else computing(self.model, self.autocast):
            output = backbone(self.model)(input_ids=batch.input_ids, use_cache=False, **batch.options)
        return output.last_hidden_state.flatten(0, 1)

    def output_head(self) -> Head:
        """Return the head that gives log-probabilities; with gradients to itself where it is trained."""
        head = OutputHead.of(self.model, backbone=backbone(self.model))
        return head if self.autocast is None else TrainedHead(head)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Set the attention that the batches need, for forward and backward passes."""
        with segment_model(self.model) if self.packed else nullcontext():
            yield


@dataclass(frozen=True, slots=True)
class Parent:
    """A base with the parent's adapter on it, trainable, and its text."""

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    chat: ChatText


def open_parent(ctx: StageContext, *, name: str) -> Parent:
    """Open the base and put the parent's adapter on it under a name.

    Raises:
        HandOverError: the adapter does not fit this base, or its chat text differs.
        ModelError: a model, tokenizer or adapter that cannot be read.
    """
    config: TrainingConfig = ctx.config
    base, policy = ctx.inputs["base"], ctx.inputs["policy"]
    causal_lm = load_base(base, config.model, config.tuning, ranks=open_ranks(ctx))
    tokenizer = load_tokenizer(policy, config.model)
    stops = generation_eos(causal_lm)
    check_same_text(policy.path, tokenizer, base=base, generation_eos=stops, where=ctx.name)
    model = load_adapter(causal_lm, policy, name=name, trainable=True, tuning=config.tuning)
    return Parent(model, tokenizer, ChatText(tokenizer, generation_eos=stops))


def open_pair_model(ctx: StageContext, *, name: str, with_reference: bool) -> PairModel:
    """Open the base, put the parent's adapter on it and prove that the policy is the parent.

    Args:
        ctx: inputs `base` and `policy`, and the stage's settings.
        name: what the trained adapter is called inside the model.
        with_reference: also load the parent's adapter a second time, frozen, as the reference.

    Raises:
        HandOverError: the policy is not the parent, the reference is not the policy, or the
            chat text differs from the parent's.
        ModelError: a model, tokenizer or adapter that cannot be read.
    """
    config: PairTrainingConfig = ctx.config
    if config.tuning.method == "full":
        return open_whole_pair_model(ctx)
    parent, policy = open_parent(ctx, name=name), ctx.inputs["policy"]
    model = parent.model
    if with_reference:
        # At the policy's own rank: other sums would round differently in bf16.
        model = load_adapter(model, policy, name=REFERENCE, trainable=False, tuning=config.tuning)
    switch = AdapterSwitch(model)
    switch.self_test(open_ranks(ctx))
    proof = prove_hand_over(
        model,
        policy,
        policy=name,
        reference=REFERENCE if with_reference else None,
        has_reference=with_reference,
    )
    switch.use(name)
    packable = supports_segments(model, backbone=backbone(model)) if config.shared_prompts else _OFF
    if config.tuning.gradient_checkpointing:
        enable_checkpointing(model, switch)
        recompute_layers(causal_lm_of(model))
    return PairModel(model, switch, parent.tokenizer, parent.chat, proof, packable)


def open_whole_pair_model(ctx: StageContext) -> PairModel:
    """Open the policy as a model of its own; the reference is the same model before its first step."""
    config: PairTrainingConfig = ctx.config
    policy = ctx.inputs["policy"]
    model, proof = open_whole(policy, config.model, config.tuning)
    tokenizer = load_tokenizer(policy, config.model)
    stops = generation_eos(model)
    check_same_text(policy.path, tokenizer, generation_eos=stops, where=ctx.name)
    packable = supports_segments(model, backbone=backbone(model)) if config.shared_prompts else _OFF
    if config.tuning.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        recompute_layers(model)
    chat = ChatText(tokenizer, generation_eos=stops)
    return PairModel(model, NoAdapters(), tokenizer, chat, proof, packable, config.model.dtype)


def refuse_unfit(parts: PairModel, pairs: Sequence[TokenPair]) -> None:
    """Check that the base has a row for every token id and a position for every token.

    Raises:
        ModelError: it has not.
    """
    longest = max(len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) for pair in pairs)
    findings = [*vocabulary_findings(parts.tokenizer, parts.model), *position_findings(parts.model, longest)]
    if findings:
        raise ModelError.from_findings(findings)


def recompute_layers(model: nn.Module) -> None:
    """Let layers recompute their activations while everything else, dropout above all, stays in eval()."""
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True
