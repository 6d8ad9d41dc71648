"""Runs one micro-batch of each trainer and counts what autograd keeps, or the peak of live tensors."""

from __future__ import annotations

import random
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config.run import ModelConfig, TuningConfig
from pipeline.contract import Checkpoint
from reward.model import ScoreHead
from stages.dpo import DPOConfig
from stages.reward import RewardConfig
from stages.runtime.loading import backbone
from stages.runtime.output_head import OutputHead
from stages.runtime.switch import AdapterSwitch, enable_checkpointing
from stages.sft import SftConfig
from stages.trainers.dpo import DPOTrainer
from stages.trainers.pair_data import TokenPair
from stages.trainers.pair_model import open_pair_model
from stages.trainers.pairs import PairBatch, make_batches
from stages.trainers.ppo.batches import Episode
from stages.trainers.ppo.roles import POLICY, load_roles
from stages.trainers.reward import RewardTrainer
from stages.trainers.sft import start_model
from stages.trainers.sft_layout import JoinedRows, answer_logprobs, choose_layout
from tests.benchmarks.live_bytes import LiveBytes
from tests.pair_fixtures import sft_adapter, token_pairs
from tests.ppo_setup import config as ppo_config
from tests.tiny import stage_context, tiny_model, tiny_tokenizer

PROMPT, ANSWER, PAIRS = 48, 32, 3


@dataclass(frozen=True)
class Seen:
    """What the hooks saw, and the sizes that a plan needs."""

    base: Path
    bytes: int
    tokens: int
    row_tokens: int
    answers: int
    key_share: float = 1.0


@contextmanager
def counting(*models: nn.Module) -> Iterator[dict[int, int]]:
    """Count every saved storage once, as long as it lives; weights of the models do not count."""
    weights = {
        value.untyped_storage().data_ptr()
        for model in models
        for value in [*model.parameters(), *model.buffers()]
    }
    found: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        key = storage.data_ptr()
        if key not in weights and key not in found:
            found[key] = storage.nbytes()
            weakref.finalize(storage, found.pop, key, None)
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        yield found


@contextmanager
def watching(options: dict[str, Any], *models: nn.Module) -> Iterator[dict[str, int]]:
    """Count saved tensors; with `peak`, the most bytes of live tensors that the block makes."""
    answer: dict[str, int] = {}
    if options.get("peak"):
        for weight in (w for model in models for w in model.parameters() if w.requires_grad):
            weight.grad = torch.zeros_like(weight)
        with LiveBytes() as live:
            yield answer
        answer["bytes"] = live.peak
        return
    with counting(*models) as found:
        yield answer
        answer["bytes"] = sum(found.values())


def saved_by_sft(root: Path, model_type: str, sizes: dict[str, Any], **options: Any) -> Seen:
    """Joined rows through the compact head."""
    base = tiny_model(root / "base", model_type, **sizes)
    config = SftConfig(model=ModelConfig(dtype=options["dtype"]), tuning=_tuning(options))
    ctx = stage_context(root / "sft", config, {"base": base})
    model, _ = start_model(ctx, tiny_tokenizer(), longest=PROMPT + ANSWER)
    layout = choose_layout(model, config, tiny_tokenizer())
    assert isinstance(layout.collator, JoinedRows)
    draw = _drawing()
    rows = [
        {"input_ids": list(ids), "labels": [-100] * PROMPT + list(ids[PROMPT:])}
        for ids in (draw(PROMPT + ANSWER) for _ in range(PAIRS))
    ]
    inputs = layout.collator(rows)
    casting = torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.get("autocast", False))
    if config.tuning.gradient_checkpointing:
        enable_checkpointing(model, AdapterSwitch(model))
        model.train()
    with layout.attention(model), casting, watching(options, model) as found:
        loss = answer_logprobs(model, layout.head, inputs).logprobs.sum()
        _finish(options, loss)
    tokens = PAIRS * (PROMPT + ANSWER)
    return Seen(base.path, found["bytes"], tokens, PROMPT + ANSWER, PAIRS * ANSWER)


def saved_by_dpo(root: Path, model_type: str, sizes: dict[str, Any], **options: Any) -> Seen:
    """Pairs with shared prompts, the loss of the policy."""
    config = DPOConfig(model=ModelConfig(dtype=options["dtype"]), tuning=_tuning(options))

    def start(parts: Any) -> Callable[[PairBatch], Tensor]:
        head = OutputHead.of(parts.model, backbone=backbone(parts.model))
        zeros = {name: torch.zeros(PAIRS) for name in ("chosen", "rejected")}
        trainer = DPOTrainer(parts, head, config, zeros)
        return lambda batch: trainer.loss(batch).loss

    return _pairs(root, _base(root, model_type, sizes), config, start, options, answers=2 * PAIRS * ANSWER)


def saved_by_reward(root: Path, model_type: str, sizes: dict[str, Any], **options: Any) -> Seen:
    """Pairs with shared prompts, the Bradley-Terry loss."""
    config = RewardConfig(model=ModelConfig(dtype=options["dtype"]), tuning=_tuning(options))

    def start(parts: Any) -> Callable[[PairBatch], Tensor]:
        head = ScoreHead(parts.model.get_input_embeddings().embedding_dim)
        trainer = RewardTrainer(parts, head, config)
        return lambda batch: trainer.loss(batch).loss

    return _pairs(root, _base(root, model_type, sizes), config, start, options, answers=0)


def saved_by_ppo(root: Path, model_type: str, sizes: dict[str, Any], **options: Any) -> Seen:
    """Packed episodes, the log-probabilities of the policy with their entropy."""
    base = _base(root, model_type, sizes)
    config = ppo_config(model=ModelConfig(dtype=options["dtype"]), tuning=_tuning(options))
    policy = sft_adapter(base, root / "adapter", tuning=_tuning(options))
    roles = load_roles({"base": base, "policy": policy}, config)
    draw = _drawing()
    batch = roles.batch([Episode(draw(PROMPT), draw(ANSWER)) for _ in range(PAIRS)])
    with roles.reading(), roles.recomputing(), watching(options, roles.model, roles.value_head) as found:
        loss = roles.logprobs(POLICY, batch)[0].sum()
        _finish(options, loss)
    tokens = PAIRS * (PROMPT + ANSWER)
    return Seen(base.path, found["bytes"], tokens, PROMPT + ANSWER, PAIRS * ANSWER)


def _finish(options: dict[str, Any], loss: Tensor) -> None:
    if options.get("peak"):
        loss.backward()


def _pairs(
    root: Path,
    base: Checkpoint,
    config: Any,
    start: Callable[[Any], Callable[[PairBatch], Tensor]],
    options: dict[str, Any],
    *,
    answers: int,
) -> Seen:
    policy = sft_adapter(base, root / "adapter", tuning=config.tuning)
    ctx = stage_context(root / "pairs", config, {"base": base, "policy": policy})
    parts = open_pair_model(ctx, name="policy", with_reference=True)
    assert parts.packed
    pairs = [_pair(number) for number in range(PAIRS)]
    (batch,) = make_batches(pairs, range(PAIRS), max_tokens=10_000, packed=True)
    loss = start(parts)
    with parts.running(), watching(options, parts.model) as found:
        total = loss(batch)
        _finish(options, total)
    tokens = PAIRS * (PROMPT + 2 * ANSWER)
    share = PAIRS * 2 * (PROMPT + ANSWER) / tokens
    return Seen(base.path, found["bytes"], tokens, PROMPT + ANSWER, answers, share)


def _pair(number: int) -> TokenPair:
    draw = _drawing(number)
    (example,) = token_pairs(1)
    return replace(example, prompt=draw(PROMPT), chosen=draw(ANSWER), rejected=draw(ANSWER), unit=number)


def _base(root: Path, model_type: str, sizes: dict[str, Any]) -> Checkpoint:
    return tiny_model(root / "base", model_type, **sizes)


def _tuning(options: dict[str, Any]) -> TuningConfig:
    return options.get("tuning") or TuningConfig(lora_r=8, lora_alpha=8)


def _drawing(seed: int = 0) -> Callable[[int], tuple[int, ...]]:
    rng = random.Random(seed)
    return lambda count: tuple(rng.randrange(5, 261) for _ in range(count))
