"""Trains a reward model: the parent's adapter and a new score head, on pairs with shared prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.contract import StageContext, StageResult
from reward.card import headline
from reward.loss import bradley_terry_loss
from reward.model import ScoreHead
from stages.reward import RewardConfig
from stages.runtime.adapters import named_adapter_parameters, save_adapter
from stages.trainers.loop import LossOutput, train
from stages.trainers.pair_data import PairData, TokenPair, open_pair_data
from stages.trainers.pair_model import REWARD, PairModel, open_pair_model, refuse_unfit
from stages.trainers.pairs import PairBatch, PairSchedule, make_batches
from stages.trainers.reward_card import make_card, write_card


@dataclass(frozen=True, slots=True)
class RewardTrainer:
    """A model that scores, its head and how it learns from a batch."""

    parts: PairModel
    head: ScoreHead
    config: RewardConfig

    def scores(self, batch: PairBatch) -> Tensor:
        """Return the score of every answer of a batch, read at its last token, (answers,)."""
        return self.head(self.parts.hidden(batch)[batch.last])

    def loss(self, batch: PairBatch) -> LossOutput:
        """Return the batch's share of the step's loss, and its metrics."""
        batch = batch.to(self.parts.device)
        scores = self.scores(batch)
        chosen, rejected = scores[batch.chosen], scores[batch.rejected]
        losses = bradley_terry_loss(
            chosen,
            rejected,
            labels=batch.labels,
            margins=batch.margins if self.config.use_margins else None,
            label_smoothing=self.config.label_smoothing,
            centering=self.config.center_rewards_coefficient,
        )
        loss = (losses * batch.weights).sum()
        return LossOutput(loss, reward_metrics(chosen, rejected), tokens=batch.input_ids.numel())

    @torch.no_grad()
    def score_pairs(self, pairs: Sequence[TokenPair]) -> tuple[list[float], list[float]]:
        """Return the scores of the chosen and of the rejected responses, in the order given."""
        chosen, rejected = torch.zeros(len(pairs)), torch.zeros(len(pairs))
        for batch in make_batches(
            pairs, range(len(pairs)), max_tokens=self.config.token_budget, packed=self.parts.packed
        ):
            moved = batch.to(self.parts.device)
            scores = self.scores(moved)
            chosen[batch.numbers] = scores[moved.chosen].cpu()
            rejected[batch.numbers] = scores[moved.rejected].cpu()
        return chosen.tolist(), rejected.tolist()


def train_reward(ctx: StageContext) -> StageResult:
    """Run the reward stage: read, prove, train, measure, write."""
    config: RewardConfig = ctx.config
    parts = open_pair_model(ctx, name=REWARD, with_reference=False)
    data = open_pair_data(ctx.inputs, config, parts.chat)
    refuse_unfit(parts, [*data.train, *data.held_out])
    hidden_size = parts.model.get_input_embeddings().embedding_dim
    head = ScoreHead.seeded(hidden_size, seed=config.seed).to(parts.device)
    trainer = RewardTrainer(parts, head, config)
    schedule = PairSchedule(data.train, config, packed=parts.packed)
    parameters = [*named_adapter_parameters(parts.model, REWARD), ("score.weight", head.weight)]
    with parts.running():
        summary = train(
            parameters=parameters,
            config=config,
            total_steps=schedule.total_steps,
            batches=schedule.batches,
            loss=trainer.loss,
            ctx=ctx,
            prefix="reward",
            evaluate=lambda: _held_out_metrics(trainer, data),
            eval_steps=config.eval_steps,
        )
        card = make_card(trainer.score_pairs, data, parts.chat, num_probes=config.num_probes)
    folder = save_adapter(
        parts.model,
        ctx.output_dir / "reward_model",
        name=REWARD,
        base=ctx.inputs["base"],
        tokenizer=parts.tokenizer,
        head=head.tensors(),
    )
    outputs = {"reward_model": folder, "card": ctx.output_dir / "card"}
    write_card(card, model_folder=folder, table_folder=outputs["card"])
    metrics = {**summary.metrics, **parts.hand_over.metrics(), **headline(card), **data.counts}
    notes = (*parts.notes, *data.notes, *card["flags"], *summary.notes)
    return StageResult(outputs, {k: float(v) for k, v in metrics.items()}, notes)


def reward_metrics(chosen: Tensor, rejected: Tensor) -> dict[str, tuple[float, float]]:
    """Return TRL's names for the rewards of a batch, as (sum, count)."""
    chosen, rejected = chosen.detach(), rejected.detach()
    count = float(len(chosen))
    wins = (chosen > rejected).float() + 0.5 * (chosen == rejected).float()
    return {
        "rewards/chosen": (float(chosen.sum()), count),
        "rewards/rejected": (float(rejected.sum()), count),
        "rewards/margins": (float((chosen - rejected).sum()), count),
        "rewards/accuracies": (float(wins.sum()), count),
    }


def _held_out_metrics(trainer: RewardTrainer, data: PairData) -> dict[str, float]:
    if not data.held_out:
        return {}
    chosen, rejected = (torch.tensor(scores) for scores in trainer.score_pairs(data.held_out))
    losses = bradley_terry_loss(chosen, rejected, labels=torch.tensor([pair.label for pair in data.held_out]))
    means = {name: total / count for name, (total, count) in reward_metrics(chosen, rejected).items()}
    return {f"eval_{name}": value for name, value in means.items()} | {"eval_loss": float(losses.mean())}
