"""Trains a policy with DPO or one of its family, on pairs with shared prompts.

The reference is the parent adapter itself; its log-probabilities are computed before the first step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pipeline.contract import StageContext, StageResult
from pipeline.errors import HandOverError
from reward.card import ScoredPair, headline, report_card
from stages.dpo import DPOConfig
from stages.ops.preference_losses import REFERENCE_FREE, PairLogps, implicit_rewards, preference_loss
from stages.runtime.adapters import save_adapter, trained_parameters
from stages.runtime.loading import causal_lm_of
from stages.runtime.ranks import ONE, Ranks, open_ranks
from stages.runtime.trained_head import Head
from stages.runtime.whole_model import save_whole
from stages.trainers.early_stopping import EarlyStopping
from stages.trainers.loop import LossOutput, train
from stages.trainers.pair_data import PairData, TokenPair, open_pair_data
from stages.trainers.pair_model import POLICY, REFERENCE, PairModel, open_pair_model, refuse_unfit
from stages.trainers.pairs import PairBatch, PairSchedule, make_batches
from stages.trainers.reference import Logps, reference_key, reference_logps
from stages.trainers.reward import reward_metrics
from stages.tuning import ADAPTER, MODEL

START_TOLERANCE = {torch.float32: 1e-4}
"How far the first DPO loss may be from ln 2; half precision rounds the cached sums on its own."
HALF_START_TOLERANCE = 2e-2


@dataclass(frozen=True, slots=True)
class DPOTrainer:
    """A policy, its reference's log-probabilities and how it learns from a batch."""

    parts: PairModel
    output_head: Head
    config: DPOConfig
    reference: Logps | None
    "Of the pairs that batches number; None for the members that need none."
    ranks: Ranks = ONE
    "The processes that share what is measured."

    def logps(self, batch: PairBatch) -> Tensor:
        """Return the summed log-probability of every answer, (answers,), under the adapter in effect."""
        hidden = self.parts.hidden(batch)[batch.before]
        logprobs, _ = self.output_head.logprobs(hidden, batch.targets, temperature=1.0)
        return logprobs.new_zeros(len(batch.lengths)).index_add(0, batch.owner, logprobs)

    def pair_logps(self, batch: PairBatch) -> PairLogps:
        """Return what the loss needs of a batch on the model's device."""
        logps = self.logps(batch)
        ref = None if self.reference is None else {k: v.to(logps.device) for k, v in self.reference.items()}
        return PairLogps(
            chosen=logps[batch.chosen],
            rejected=logps[batch.rejected],
            chosen_lengths=batch.lengths[batch.chosen],
            rejected_lengths=batch.lengths[batch.rejected],
            ref_chosen=None if ref is None else ref["chosen"][batch.numbers],
            ref_rejected=None if ref is None else ref["rejected"][batch.numbers],
        )

    def losses(self, batch: PairBatch, logps: PairLogps) -> Tensor:
        """Return the loss of each pair, (pairs,)."""
        config = self.config
        return preference_loss(
            config.loss_type,
            logps,
            beta=config.beta,
            labels=batch.labels,
            label_smoothing=config.label_smoothing,
            simpo_gamma=config.simpo_gamma,
            sft_coef=config.sft_coef,
        )

    def loss(self, batch: PairBatch) -> LossOutput:
        """Return the batch's share of the step's loss, and its metrics."""
        batch = batch.to(self.parts.device)
        logps = self.pair_logps(batch)
        loss = (self.losses(batch, logps) * batch.weights).sum()
        chosen, rejected = implicit_rewards(self.config.loss_type, logps, beta=self.config.beta)
        count = float(len(chosen))
        metrics = reward_metrics(chosen, rejected) | {
            "logps/chosen": (float(logps.chosen.detach().sum()), count),
            "logps/rejected": (float(logps.rejected.detach().sum()), count),
        }
        return LossOutput(loss, metrics, tokens=batch.input_ids.numel())

    @torch.no_grad()
    def measure(self, pairs: Sequence[TokenPair], numbers: Sequence[int]) -> tuple[Tensor, Tensor, float]:
        """Return implied rewards of chosen and rejected and the mean loss of some of the pairs."""
        chosen, rejected, total = torch.zeros(len(numbers)), torch.zeros(len(numbers)), 0.0
        places = {number: place for place, number in enumerate(numbers)}
        batches = make_batches(pairs, numbers, max_tokens=self.config.token_budget, packed=self.parts.packed)
        ranks = self.ranks.readers
        for batch in ranks.share(batches):
            moved = batch.to(self.parts.device)
            logps = self.pair_logps(moved)
            total += float((self.losses(moved, logps) * moved.weights).sum())
            one, other = implicit_rewards(self.config.loss_type, logps, beta=self.config.beta)
            where = [places[int(number)] for number in batch.numbers]
            chosen[where], rejected[where] = one.cpu(), other.cpu()
        ranks.add(chosen, rejected)
        return chosen, rejected, sum(ranks.gathered(total))


def train_dpo(ctx: StageContext) -> StageResult:
    """Run the DPO stage: read, prove, train, measure, write."""
    config: DPOConfig = ctx.config
    needs_reference = config.loss_type not in REFERENCE_FREE
    ranks = open_ranks(ctx)
    parts = open_pair_model(ctx, name=POLICY, with_reference=needs_reference)
    data = open_pair_data(ctx.inputs, config, parts.chat)
    refuse_unfit(parts, [*data.train, *data.held_out])
    pairs = [*data.train, *data.held_out]
    held_out = range(len(data.train), len(pairs))
    output_head = parts.output_head()
    schedule = PairSchedule(data.train, config, packed=parts.packed, ranks=ranks.count)
    start: dict[str, float] = {}
    with parts.running():
        trainer = DPOTrainer(parts, output_head, config, None, ranks)
        if needs_reference:
            logps = ranks.readers.from_main(partial(_reference, ctx, trainer, pairs))
            trainer = DPOTrainer(parts, output_head, config, logps, ranks)
            start = {"handover/loss_minus_ln2": _prove_start(trainer, schedule.batches(0))}
        parameters = trained_parameters(parts.model, POLICY)
        early = EarlyStopping.of(
            config.early_stopping,
            parameters,
            rows=range(len(data.train)),
            held_out=held_out,
            measure=partial(_metrics_on, trainer, pairs),
            seed=config.seed,
        )
        summary = train(
            parameters=parameters,
            config=config,
            total_steps=schedule.total_steps,
            batches=schedule.batches,
            loss=trainer.loss,
            ctx=ctx,
            prefix="dpo",
            evaluate=lambda: _metrics_on(trainer, pairs, held_out),
            eval_steps=config.eval_steps,
            early=early,
        )
        final = _final_metrics(trainer, data, pairs)
    if not ranks.is_main:
        return StageResult({})
    if config.tuning.method == "full":
        role, folder = MODEL, save_whole(parts.model, ctx.output_dir / MODEL, tokenizer=parts.tokenizer)
    else:
        base, tokenizer = ctx.inputs["base"], parts.tokenizer
        role, folder = ADAPTER, ctx.output_dir / ADAPTER
        save_adapter(parts.model, folder, name=POLICY, base=base, tokenizer=tokenizer)
    metrics = {**summary.metrics, **parts.hand_over.metrics(), **start, **final, **data.counts}
    notes = (*parts.notes, *data.notes, *summary.notes)
    return StageResult(
        {role: folder}, {k: float(v) for k, v in metrics.items()}, notes, computing=parts.computing(config)
    )


def _reference(ctx: StageContext, trainer: DPOTrainer, pairs: Sequence[TokenPair]) -> Logps:
    """Return the reference's log-probabilities of all pairs, from the store's cache when they are there."""
    parts, config = trainer.parts, trainer.config
    method = config.tuning.method
    rank = 0 if method == "full" else parts.model.peft_config[REFERENCE].r
    attention = f"padded {config.model.attn_implementation}"
    key = partial(
        reference_key,
        base=ctx.inputs["base"].fingerprint,
        adapter=ctx.inputs["policy"].fingerprint,
        dtype=f"{causal_lm_of(parts.model).dtype} {method} {rank} {parts.device.type}",
        layout=f"{'packed' if parts.packed else attention} {config.token_budget}",
    )
    began = time.perf_counter()
    compute = partial(_compute_reference, ctx, trainer)
    folder = ctx.cache_dir or ctx.scratch_dir / "cache"
    ranks = trainer.ranks if trainer.ranks.place.in_parts else ONE
    logps, computed = reference_logps(folder, pairs, key, compute, ranks=ranks)
    seconds = time.perf_counter() - began if computed else 0.0
    ctx.logger.log({"reference/computed_pairs": float(computed), "reference/seconds": seconds}, step=0)
    return logps


@torch.no_grad()
def _compute_reference(ctx: StageContext, trainer: DPOTrainer, pairs: Sequence[TokenPair]) -> Logps:
    parts, logps = trainer.parts, {name: torch.zeros(len(pairs)) for name in ("chosen", "rejected")}
    batches = make_batches(
        pairs, range(len(pairs)), max_tokens=trainer.config.token_budget, packed=parts.packed
    )
    with parts.switch.on(REFERENCE):
        for number, batch in enumerate(batches, 1):
            moved = batch.to(parts.device)
            answers = trainer.logps(moved)
            logps["chosen"][batch.numbers] = answers[moved.chosen].cpu()
            logps["rejected"][batch.numbers] = answers[moved.rejected].cpu()
            ctx.logger.progress(number, len(batches), "reference")
    return logps


@torch.no_grad()
def _prove_start(trainer: DPOTrainer, batches: Sequence[PairBatch]) -> float:
    """Check on the first step that the policy's log-probabilities are the reference's: DPO's loss is ln 2.

    Raises:
        HandOverError: they differ.
    """
    batch = batches[0].to(trainer.parts.device)
    logps = trainer.pair_logps(batch)
    start = preference_loss("sigmoid", logps, beta=trainer.config.beta)
    difference = float((start - math.log(2)).abs().max())
    dtype = causal_lm_of(trainer.parts.model).dtype
    if difference <= START_TOLERANCE.get(dtype, HALF_START_TOLERANCE):
        return difference
    raise HandOverError(
        f"the first DPO loss is {math.log(2) + difference:.5f}, not ln 2 = 0.69315: "
        "the policy at step 0 is not the reference",
        where="policy",
        hint="delete the stage's scratch folder if it was edited; else this base is not deterministic",
        code="reference-is-not-parent",
    )


def _metrics_on(trainer: DPOTrainer, pairs: Sequence[TokenPair], numbers: Sequence[int]) -> dict[str, float]:
    """Return TRL's names for some of the pairs, and their loss; empty without any."""
    if not numbers:
        return {}
    chosen, rejected, loss = trainer.measure(pairs, numbers)
    means = {name: total / count for name, (total, count) in reward_metrics(chosen, rejected).items()}
    return {f"eval_{name}": value for name, value in means.items()} | {"eval_loss": loss}


def _final_metrics(trainer: DPOTrainer, data: PairData, pairs: Sequence[TokenPair]) -> dict[str, float]:
    """Return how well the implied rewards order the held-out pairs."""
    chosen, rejected, _ = trainer.measure(pairs, range(len(data.train), len(pairs)))
    scored = [
        ScoredPair(
            one, other, len(pair.chosen_text), len(pair.rejected_text), share=pair.share, votes=pair.votes
        )
        for pair, one, other in zip(data.held_out, chosen.tolist(), rejected.tolist(), strict=True)
    ]
    return headline(report_card(scored))
