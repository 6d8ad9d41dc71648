"""One optimizer step of each stage on a given base, through the project's own loss code, and its plan."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from pipeline import registry
from pipeline.config.run import TuningConfig
from pipeline.contract import StageCheck
from pipeline.memory.work import Workload
from reward.model import ScoreHead
from stages.dpo import DPOConfig
from stages.reward import RewardConfig
from stages.runtime.adapters import new_adapter, trained_parameters
from stages.runtime.generation import sample
from stages.runtime.handover import HandOver
from stages.runtime.loading import backbone, causal_lm_of
from stages.runtime.optimizers import make_adamw
from stages.runtime.output_head import OutputHead
from stages.runtime.segment_check import supports_segments
from stages.runtime.segments import segment_model
from stages.runtime.switch import AdapterSwitch, enable_checkpointing
from stages.trainers.dpo import DPOTrainer
from stages.trainers.pair_data import TokenPair
from stages.trainers.pair_model import PairModel, recompute_layers
from stages.trainers.pairs import make_batches
from stages.trainers.ppo.batches import Episode
from stages.trainers.ppo.roles import POLICY, REFERENCE, REWARD, VALUE, Roles
from stages.trainers.reward import RewardTrainer
from stages.trainers.sft_layout import JoinedRows, PaddedRows, answer_logprobs
from tests.pair_fixtures import token_pairs

STAGES = ("sft", "reward", "dpo", "ppo")
_IGNORED = -100


@dataclass(frozen=True)
class Sizes:
    """How much one micro-batch holds."""

    rows: int = 4
    prompt: int = 768
    answer: int = 256

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return self.prompt + self.answer


@dataclass(frozen=True)
class Step:
    """One optimizer step that may be taken again and again."""

    take: Callable[[], None]
    sample: Callable[[], None] | None
    "The sampling of PPO; None elsewhere."
    work: Workload
    "What the plan says it holds."
    tokens: int
    "Positions computed with gradients."
    unpacked_because: str | None


def make_step(stage: str, base: PreTrainedModel, tuning: TuningConfig, sizes: Sizes) -> Step:
    """Put the adapters of a stage on a base and return its step."""
    device = next(base.parameters()).device
    names = {"sft": (POLICY,), "reward": (REWARD,), "dpo": (POLICY, REFERENCE)}
    model: Any = base
    for number, name in enumerate(names.get(stage, (POLICY, REFERENCE, REWARD, VALUE))):
        model = new_adapter(model, tuning, name=name, seed=number)
    for weight in model.parameters():
        weight.requires_grad_(False)
    learning = [name for name in model.peft_config if name in (POLICY, VALUE) or stage == "reward"]
    for name, weight in model.named_parameters():
        if ".lora_" in name and any(f".{one}." in name for one in learning):
            weight.requires_grad_(True)
    switch = AdapterSwitch(model)
    switch.use(learning[0])
    why = supports_segments(model, backbone=backbone(model))
    if tuning.gradient_checkpointing:
        enable_checkpointing(model, switch)
        recompute_layers(causal_lm_of(model))
    parts = _Parts(model, switch, device, tuning, sizes, why)
    return {"sft": _sft, "reward": _reward, "dpo": _dpo, "ppo": _ppo}[stage](parts)


@dataclass(frozen=True)
class _Parts:
    model: Any
    switch: AdapterSwitch
    device: torch.device
    tuning: TuningConfig
    sizes: Sizes
    why: str | None

    def draw(self, seed: int, count: int) -> tuple[int, ...]:
        """Return random token ids."""
        rng = random.Random(seed)
        return tuple(rng.randrange(5, 1000) for _ in range(count))

    def optimizer(self, *names: str, extra: tuple[Any, ...] = ()) -> torch.optim.Optimizer:
        """Make the tuning's optimizer over adapters."""
        weights = [weight for name in names for _, weight in trained_parameters(self.model, name)]
        return make_adamw([{"params": [*weights, *extra]}], self.tuning.optimizer, lr=1e-4)

    def step(self, work: Workload, tokens: int, loss: Any, optimizer: Any, sample: Any = None) -> Step:
        """Return a step over one loss: forward, backward, update."""

        def take() -> None:
            with segment_model(self.model) if self.why is None else ExitStack():
                loss()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return Step(take, sample, work, tokens, self.why)


def _work(kind: str, tuning: TuningConfig, sizes: Sizes, **settings: Any) -> Workload:
    spec = registry.find(kind)
    config = spec.config_type(
        tuning=tuning, per_device_train_batch_size=sizes.rows, max_length=sizes.length, **settings
    )
    assert spec.memory is not None
    return spec.memory(StageCheck(kind, config, {}, ("base", "policy", "reward")))


def _sft(parts: _Parts) -> Step:
    sizes = parts.sizes
    rows = [parts.draw(number, sizes.length) for number in range(sizes.rows)]
    labels = [[_IGNORED] * sizes.prompt + list(row[sizes.prompt :]) for row in rows]
    collate = JoinedRows() if parts.why is None else PaddedRows(0)
    batch = collate([{"input_ids": list(a), "labels": b} for a, b in zip(rows, labels, strict=True)])
    inputs = {name: value.to(parts.device) for name, value in batch.items()}
    head = OutputHead.of(parts.model, backbone=backbone(parts.model))

    def loss() -> None:
        with torch.autocast(parts.device.type, dtype=torch.bfloat16, enabled=parts.device.type == "cuda"):
            answer = answer_logprobs(parts.model, head, inputs)
        (-answer.logprobs.mean()).backward()

    work = _work("sft", parts.tuning, sizes)
    assert work.step is not None
    work = replace(work, step=replace(work.step, answers=sizes.rows * sizes.answer))
    return parts.step(work, sizes.rows * sizes.length, loss, parts.optimizer(POLICY))


def _pair_step(parts: _Parts, kind: str, trainer: Any, optimizer: Any, pair_model: PairModel) -> Step:
    """Pairs whose two answers share a prompt as long as both: P = 2 A, so 2 (P + A) keys over P + 2 A."""
    sizes = parts.sizes
    answer = sizes.length // 4
    (example,) = token_pairs(1)
    pairs: list[TokenPair] = [
        replace(
            example,
            prompt=parts.draw(3 * n, 2 * answer),
            chosen=parts.draw(3 * n + 1, answer),
            rejected=parts.draw(3 * n + 2, answer),
            unit=n,
        )
        for n in range(sizes.rows)
    ]
    (batch,) = make_batches(pairs, range(sizes.rows), max_tokens=10**9, packed=pair_model.packed)
    batch = batch.to(parts.device)
    tokens = batch.input_ids.numel()
    work = _work(kind, parts.tuning, sizes)
    assert work.step is not None
    answers = 2 * answer * sizes.rows if kind == "dpo" else 0
    share = work.step.key_share if pair_model.packed else 1.0
    step = replace(work.step, tokens=tokens, row_tokens=3 * answer, answers=answers, key_share=share)
    return parts.step(
        replace(work, step=step), tokens, lambda: trainer.loss(batch).loss.backward(), optimizer
    )


def _pair_model(parts: _Parts) -> PairModel:
    nothing: Any = None
    return PairModel(parts.model, parts.switch, nothing, nothing, HandOver(0.0, 0.0, 0), parts.why)


def _reward(parts: _Parts) -> Step:
    width = parts.model.get_input_embeddings().embedding_dim
    head = ScoreHead.seeded(width, seed=0).to(parts.device)
    pair_model = _pair_model(parts)
    trainer = RewardTrainer(pair_model, head, RewardConfig(tuning=parts.tuning))
    optimizer = parts.optimizer(REWARD, extra=tuple(head.parameters()))
    return _pair_step(parts, "reward", trainer, optimizer, pair_model)


def _dpo(parts: _Parts) -> Step:
    pair_model = _pair_model(parts)
    zeros = {name: torch.zeros(parts.sizes.rows) for name in ("chosen", "rejected")}
    trainer = DPOTrainer(pair_model, pair_model.output_head(), DPOConfig(tuning=parts.tuning), zeros)
    return _pair_step(parts, "dpo", trainer, parts.optimizer(POLICY), pair_model)


def _ppo(parts: _Parts) -> Step:
    sizes = parts.sizes
    width = parts.model.get_input_embeddings().embedding_dim
    output_head = OutputHead.of(parts.model, backbone=backbone(parts.model))
    value_head = ScoreHead(width).to(parts.device)
    roles = Roles(
        parts.model,
        parts.switch,
        output_head,
        reward_members=(),
        ensemble_penalty=0.0,
        value_head=value_head,
        value_on="adapter",
        temperature=1.0,
        unpacked_because=parts.why,
    )
    prompts = [parts.draw(number, sizes.prompt) for number in range(sizes.rows)]
    episodes = [Episode(prompt, parts.draw(99 + n, sizes.answer)) for n, prompt in enumerate(prompts)]
    batch = roles.batch(episodes)

    def loss() -> None:
        (-roles.logprobs(POLICY, batch)[0].mean()).backward()
        roles.values(batch).square().mean().backward()

    def sampling() -> None:
        parts.switch.use(POLICY)
        sample(
            parts.model,
            prompts,
            max_new_tokens=sizes.answer,
            stop_token_ids=(),
            temperature=1.0,
            generator=torch.Generator().manual_seed(0),
            pad_token_id=0,
            batch_size=sizes.rows,
        )

    settings = {
        "max_new_tokens": sizes.answer,
        "generation_batch_size": sizes.rows,
        "rollout_batch_size": 2 * sizes.rows,
    }
    work = replace(_work("ppo", parts.tuning, sizes, **settings), with_entropy=False)
    optimizer = parts.optimizer(POLICY, VALUE, extra=tuple(value_head.parameters()))
    return parts.step(work, sizes.rows * sizes.length, loss, optimizer, sampling)
