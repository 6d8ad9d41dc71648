"""Trains a reward model: the parent's adapter and a new score head, on pairs with shared prompts.

An ensemble is several such members on one base, trained one after another with seeds of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.contract import MetricLogger, StageContext, StageResult
from reward.card import headline
from reward.loss import bradley_terry_loss
from reward.model import ScoreHead
from reward.spread import spread_report
from stages.reward import RewardConfig
from stages.runtime.adapters import load_adapter, save_adapter, trained_parameters
from stages.runtime.ensemble import member_name, save_members
from stages.runtime.ranks import ONE, Ranks, open_ranks
from stages.runtime.saving.training_state import NamedParameters
from stages.runtime.whole_model import save_whole
from stages.trainers.early_stopping import EarlyStopping
from stages.trainers.loop import LossOutput, TrainSummary, train
from stages.trainers.order import seed_of
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
    adapter: str | None = None
    "Put in effect for every pass; None leaves the one that is."
    ranks: Ranks = ONE
    "The processes that share what is scored."

    def in_effect(self) -> AbstractContextManager[None]:
        """Return the context in which this member's adapter acts."""
        return nullcontext() if self.adapter is None else self.parts.switch.on(self.adapter)

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
        batches = make_batches(
            pairs, range(len(pairs)), max_tokens=self.config.token_budget, packed=self.parts.packed
        )
        ranks = self.ranks.readers
        with self.in_effect():
            for batch in ranks.share(batches):
                moved = batch.to(self.parts.device)
                scores = self.scores(moved)
                chosen[batch.numbers] = scores[moved.chosen].cpu()
                rejected[batch.numbers] = scores[moved.rejected].cpu()
        ranks.add(chosen, rejected)
        return chosen.tolist(), rejected.tolist()


@dataclass(frozen=True, slots=True)
class RewardEnsemble:
    """Members that score the same pairs; their mean is the ensemble's score."""

    members: Sequence[RewardTrainer]

    def score_members(self, pairs: Sequence[TokenPair]) -> Tensor:
        """Return the scores of chosen and rejected responses by member, (members, 2, pairs)."""
        return torch.tensor([member.score_pairs(pairs) for member in self.members], dtype=torch.float64)

    def score_pairs(self, pairs: Sequence[TokenPair]) -> tuple[list[float], list[float]]:
        """Return the mean scores of the chosen and of the rejected responses."""
        chosen, rejected = self.score_members(pairs).mean(0).tolist()
        return chosen, rejected

    def spread(self, pairs: Sequence[TokenPair]) -> dict[str, object] | None:
        """Return how far the members are apart on pairs with a preference; None for a single member."""
        decided = [pair for pair in pairs if pair.share > 0.5]
        if len(self.members) < 2 or not decided:
            return None
        scores = self.score_members(decided)
        return spread_report((scores[:, 0] - scores[:, 1]).numpy())


def train_reward(ctx: StageContext) -> StageResult:
    """Run the reward stage: read, prove, train every member, measure, write."""
    config: RewardConfig = ctx.config
    ranks = open_ranks(ctx)
    parts = open_pair_model(ctx, name=REWARD, with_reference=False)
    data = open_pair_data(ctx.inputs, config, parts.chat)
    refuse_unfit(parts, [*data.train, *data.held_out])
    members = [open_member(ctx, parts, number) for number in range(config.ensemble)]
    with parts.running():
        summaries = [_train_member(member, data, ctx, number) for number, member in enumerate(members)]
        ensemble = RewardEnsemble(members)
        card = make_card(ensemble.score_pairs, data, parts.chat, num_probes=config.num_probes)
        card |= {"ensemble": spread} if (spread := ensemble.spread(data.held_out)) else {}
    if not ranks.is_main:
        return StageResult({})
    if config.tuning.method == "full":
        role, head = "full_reward_model", members[0].head
        folder = save_whole(parts.model, ctx.output_dir / role, tokenizer=parts.tokenizer, head=head)
        return _finish(ctx, folder, role, card=card, parts=parts, data=data, summaries=summaries)
    folder = save_adapter(
        parts.model,
        ctx.output_dir / "reward_model",
        name=REWARD,
        base=ctx.inputs["base"],
        tokenizer=parts.tokenizer,
        head=members[0].head.tensors(),
    )
    heads = [(str(member.adapter), member.head) for member in members]
    save_members(parts.model, folder, heads, base=ctx.inputs["base"])
    return _finish(ctx, folder, "reward_model", card=card, parts=parts, data=data, summaries=summaries)


def _finish(
    ctx: StageContext,
    folder: Path,
    role: str,
    *,
    card: dict[str, Any],
    parts: PairModel,
    data: PairData,
    summaries: Sequence[TrainSummary],
) -> StageResult:
    """Write the card and say what the stage gave."""
    outputs = {role: folder, "card": ctx.output_dir / "card"}
    write_card(card, model_folder=folder, table_folder=outputs["card"])
    metrics = {**summaries[0].metrics, **parts.hand_over.metrics(), **headline(card), **data.counts}
    notes = [*parts.notes, *data.notes, *card["flags"], *(note for s in summaries for note in s.notes)]
    if len(summaries) > 1:
        notes.append(f"{len(summaries)} members; policies are paid by their mean")
    computing = parts.computing(ctx.config)
    return StageResult(outputs, {k: float(v) for k, v in metrics.items()}, tuple(notes), computing=computing)


def open_member(ctx: StageContext, parts: PairModel, number: int) -> RewardTrainer:
    """Return a member as it starts: the parent's adapter and a head of its own seed.

    The first member is the one that a stage without an ensemble trains.
    """
    config: RewardConfig = ctx.config
    name = member_name(REWARD, number)
    if number:
        config = config.model_copy(update={"seed": seed_of(config.seed, "member", number) % 2**31})
        policy = ctx.inputs["policy"]
        load_adapter(parts.model, policy, name=name, trainable=True, tuning=config.tuning)
    hidden_size = parts.model.get_input_embeddings().embedding_dim
    head = ScoreHead.seeded(hidden_size, seed=config.seed).to(parts.device)
    return RewardTrainer(parts, head, config, name, open_ranks(ctx))


def _train_member(member: RewardTrainer, data: PairData, ctx: StageContext, number: int) -> TrainSummary:
    """Train one member with checkpoints of its own; metrics of further members bear their number."""
    config, parts = member.config, member.parts
    if number:
        scratch = ctx.scratch_dir / f"member-{number}"
        scratch.mkdir(exist_ok=True)
        ctx = replace(ctx, scratch_dir=scratch, logger=_MemberLogger(ctx.logger, number))
    schedule = PairSchedule(data.train, config, packed=parts.packed, ranks=member.ranks.count)
    parameters = [
        *trained_parameters(parts.model, str(member.adapter)),
        ("score.weight", member.head.weight),
    ]
    with member.in_effect():
        return train(
            parameters=parameters,
            config=config,
            total_steps=schedule.total_steps,
            batches=schedule.batches,
            loss=member.loss,
            ctx=ctx,
            prefix=member_name("reward", number),
            evaluate=lambda: held_out_metrics(member, data),
            eval_steps=config.eval_steps,
            early=watch_pairs(member, data, parameters),
        )


def watch_pairs(trainer: RewardTrainer, data: PairData, parameters: NamedParameters) -> EarlyStopping | None:
    """Return what ends the training early, if the settings ask for it."""
    return EarlyStopping.of(
        trainer.config.early_stopping,
        parameters,
        rows=data.train,
        held_out=data.held_out,
        measure=lambda pairs: held_out_metrics(trainer, PairData([], list(pairs))),
        seed=trainer.config.seed,
    )


@dataclass(frozen=True, slots=True)
class _MemberLogger:
    """Writes the metrics of a further member under its own names."""

    logger: MetricLogger
    number: int

    def log(self, metrics: Mapping[str, float], *, step: int, epoch: float | None = None) -> None:
        named = {f"member_{self.number}/{name}": value for name, value in metrics.items()}
        self.logger.log(named, step=step, epoch=epoch)

    def progress(self, step: int, total: int, text: str = "") -> None:
        self.logger.progress(step, total, text)


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


def held_out_metrics(trainer: RewardTrainer, data: PairData) -> dict[str, float]:
    """Return TRL's names for the held-out pairs, and their loss; empty without any."""
    if not data.held_out:
        return {}
    chosen, rejected = (torch.tensor(scores) for scores in trainer.score_pairs(data.held_out))
    losses = bradley_terry_loss(chosen, rejected, labels=torch.tensor([pair.label for pair in data.held_out]))
    means = {name: total / count for name, (total, count) in reward_metrics(chosen, rejected).items()}
    return {f"eval_{name}": value for name, value in means.items()} | {"eval_loss": float(losses.mean())}
