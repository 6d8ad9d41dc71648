"""The loss on held-out demonstrations, measured during training without moving it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipeline.contract import StageContext
from stages.trainers.early_stopping import EarlyStopping
from stages.trainers.loop import unchanged_random_state
from stages.trainers.sft_layout import answer_logprobs
from stages.trainers.sft_rows import TokenRow
from stages.trainers.sft_trainer import AnswerTrainer


class HeldOut(TrainerCallback):
    """Measures the loss on held-out demonstrations; random state is put back, so training is not moved.

    With early stopping it measures when that asks for it, and may end the training.
    """

    def __init__(
        self, trainer: AnswerTrainer, rows: Sequence[TokenRow], ctx: StageContext, *, every: int | None
    ) -> None:
        self._trainer, self._ctx, self._every = trainer, ctx, every
        self._rows = rows
        self.early: EarlyStopping | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the start, unless training goes on from a checkpoint."""
        if state.global_step == 0:
            self._log(state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure every `every` steps; the last step is measured by the stage."""
        step = state.global_step
        if self.early:
            self.early.after(step, state.max_steps, self._ctx.logger)
            control.should_training_stop = control.should_training_stop or self.early.stopped
        elif self._every and step % self._every == 0 and step < state.max_steps:
            self._log(state)

    def measure(self, rows: Sequence[TokenRow] | None = None) -> dict[str, float]:
        """Return eval_loss and eval_mean_token_accuracy over answer tokens; empty without rows.

        Args:
            rows: what is measured; None takes the held-out rows.
        """
        rows = self._rows if rows is None else rows
        if not rows:
            return {}
        trainer, size = self._trainer, self._ctx.config.per_device_train_batch_size
        loss, hits, count = 0.0, 0, 0
        was_training = trainer.model.training
        trainer.model.eval()
        with unchanged_random_state(), torch.no_grad(), trainer.accelerator.autocast():
            for start in range(0, len(rows), size):
                part = [
                    {"input_ids": row.input_ids, "labels": row.labels} for row in rows[start : start + size]
                ]
                batch = trainer.data_collator(part)
                answer = answer_logprobs(trainer.model, trainer.head, trainer._prepare_inputs(batch))
                loss -= float(answer.logprobs.double().sum())
                hits += int(answer.hits.sum())
                count += answer.num_tokens
        trainer.model.train(was_training)
        mean = loss / count
        return {
            "eval_loss": mean,
            "eval_perplexity": math.exp(min(mean, 700)),
            "eval_mean_token_accuracy": hits / count,
        }

    def _log(self, state: TrainerState) -> None:
        measured = self.measure()
        if measured:
            self._ctx.logger.log(measured, step=state.global_step, epoch=state.epoch)
