"""Trains an encoder as a reward model: rows padded, every token sees every other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.contract import Checkpoint, StageContext, StageResult
from pipeline.errors import ConfigError, ModelError
from reward.card import headline
from stages.reward_encoder import EncoderRewardConfig, tuning_findings
from stages.runtime.computing import computing_of
from stages.runtime.encoder import Encoder, load_encoder, open_encoder, save_encoder
from stages.trainers.loop import train
from stages.trainers.pair_data import PairData, TokenPair, load_pair_data, open_pair_data
from stages.trainers.pair_model import recompute_layers
from stages.trainers.pairs import PairBatch, PairSchedule
from stages.trainers.reward import RewardTrainer, held_out_metrics, watch_pairs
from stages.trainers.reward_card import make_card, plain_card, write_card


@dataclass(frozen=True, slots=True)
class EncoderParts:
    """What a RewardTrainer asks of its model."""

    encoder: Encoder
    packed: bool = False

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.encoder.device


@dataclass(frozen=True, slots=True)
class EncoderTrainer(RewardTrainer):
    """A reward trainer whose scores come from a sequence classifier."""

    def scores(self, batch: PairBatch) -> Tensor:
        """Return the score of every answer of a batch, (answers,)."""
        rows, width = batch.input_ids.shape
        places = torch.arange(width, device=batch.input_ids.device)[None]
        ends = batch.last - torch.arange(rows, device=batch.last.device) * width
        mask = places <= ends[:, None]
        token_types = (mask & (places > (ends - batch.lengths)[:, None])).long()
        parts: Any = self.parts
        found: Tensor = parts.encoder.scores(batch.input_ids, mask, token_types)
        return found


def train_encoder(ctx: StageContext) -> StageResult:
    """Run the reward_encoder stage: read, train, measure, write.

    Raises:
        ConfigError: the tuning is not LoRA.
        DataError: no usable pair.
        ModelError: the encoder cannot be opened, or has too few positions.
    """
    config: EncoderRewardConfig = ctx.config
    findings = tuning_findings(ctx.name, config)
    if findings:
        raise ConfigError.from_findings(findings)
    encoder = open_encoder(ctx.inputs["base"], config.model, config.tuning, seed=config.seed)
    data = open_pair_data(ctx.inputs, config, encoder.text)
    _refuse_too_long(encoder, [*data.train, *data.held_out])
    if config.tuning.gradient_checkpointing:
        options = {"use_reentrant": False}
        encoder.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
        recompute_layers(encoder.model)
    trainer = _trainer(encoder, config)
    schedule = PairSchedule(data.train, config, packed=False)
    parameters = encoder.parameters()
    summary = train(
        parameters=parameters,
        config=config,
        total_steps=schedule.total_steps,
        batches=schedule.batches,
        loss=trainer.loss,
        ctx=ctx,
        prefix="reward",
        evaluate=lambda: held_out_metrics(trainer, data),
        eval_steps=config.eval_steps,
        early=watch_pairs(trainer, data, parameters),
    )
    card = make_card(trainer.score_pairs, data, encoder.text, num_probes=config.num_probes)
    folder = save_encoder(encoder, ctx.output_dir / "reward_model", base=ctx.inputs["base"])
    outputs = {"reward_model": folder, "card": ctx.output_dir / "card"}
    write_card(card, model_folder=folder, table_folder=outputs["card"])
    metrics = {**summary.metrics, **headline(card), **data.counts}
    notes = (*data.notes, *card["flags"], *summary.notes)
    computing = computing_of(encoder.model, config.model, config.tuning)
    return StageResult(outputs, {k: float(v) for k, v in metrics.items()}, notes, computing=computing)


def measure_encoder(
    base: Checkpoint,
    reward_model: Checkpoint,
    config: EncoderRewardConfig,
    path: Path,
    *,
    mapping: Path | None = None,
) -> dict[str, Any]:
    """Return the report card of an encoder on all pairs of a preference file.

    Raises:
        DataError: the file has no usable pair.
        HandOverError: the reward model belongs to another base.
    """
    encoder = load_encoder(base, reward_model, config.model, config.tuning)
    everything = config.model_copy(update={"eval_share": 0.0})
    pairs = load_pair_data(path, everything, encoder.text, mapping=mapping)
    trainer = _trainer(encoder, config)
    data = PairData([], pairs.train)
    card = make_card(trainer.score_pairs, data, encoder.text, num_probes=config.num_probes)
    del card["floors"]["majority"]  # no training pairs are at hand to take a majority of
    card["flags"] += pairs.notes
    return plain_card(card)


def _trainer(encoder: Encoder, config: EncoderRewardConfig) -> EncoderTrainer:
    parts: Any = EncoderParts(encoder)
    no_head: Any = None
    return EncoderTrainer(parts, no_head, config)


def _refuse_too_long(encoder: Encoder, pairs: Sequence[TokenPair]) -> None:
    longest = max(len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) for pair in pairs)
    limit = getattr(encoder.model.config, "max_position_embeddings", None)
    if isinstance(limit, int) and longest > limit:
        message = f"the longest row has {longest} tokens, but the encoder has positions for {limit}"
        raise ModelError(message, where="max_length", hint=f"max_length: {limit}", code="too-few-positions")
