"""The small training loop of pretrain, reward and dpo: AdamW, schedule, clipping, metrics, exact resume.

A run that is stopped and continued gives the same bits on a CPU as one that was not.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.contract import StageContext
from pipeline.errors import Interrupted, StageFailed
from stages.config import OptimizationConfig, TrainingConfig
from stages.runtime.optimizers import make_adamw
from stages.runtime.ranks import open_ranks
from stages.runtime.saving.checkpoints import CheckpointFolder, checkpoint_key
from stages.runtime.saving.training_state import (
    NamedParameters,
    pack_optimizer,
    pack_parameters,
    pack_random_state,
    restore_optimizer,
    restore_parameters,
    restore_random_state,
)
from stages.trainers.early_stopping import EarlyStopping
from stages.trainers.order import seed_of

LOGGER = logging.getLogger(__name__)

Evaluate = Callable[[], Mapping[str, float]]
BETAS = (0.9, 0.999)


@dataclass(frozen=True, slots=True)
class LossOutput:
    """What a micro-batch gives back."""

    loss: Tensor
    "Already weighted by the micro-batch's share of the step: the step's gradient is the plain sum."
    metrics: Mapping[str, tuple[float | Tensor, float]] = field(default_factory=dict)
    "Name -> (sum, count); logged as a mean over all micro-batches since the last line."
    tokens: int = 0
    "Tokens that were computed, for tokens_per_second."


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """What the loop needs to know of a stage's settings."""

    learning_rate: float
    warmup_steps: int
    lr_scheduler_type: str
    weight_decay: float
    adam_epsilon: float
    max_grad_norm: float
    total_steps: int
    logging_steps: int
    save_steps: int
    optimizer: str = "adamw"

    @classmethod
    def from_config(cls, config: OptimizationConfig, total_steps: int) -> LoopSettings:
        """Take the settings of a training stage; warm-up steps are rounded up, as transformers does."""
        return cls(
            learning_rate=config.learning_rate,
            warmup_steps=math.ceil(total_steps * config.warmup_ratio),
            lr_scheduler_type=config.lr_scheduler_type,
            weight_decay=config.weight_decay,
            adam_epsilon=config.adam_epsilon,
            max_grad_norm=config.max_grad_norm,
            total_steps=total_steps,
            logging_steps=config.logging_steps,
            save_steps=config.save_steps,
            optimizer=config.tuning.optimizer if isinstance(config, TrainingConfig) else "adamw",
        )

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0.

        It rises as step / warmup_steps, then falls to 0 at total_steps: transformers' schedules.
        """
        if step < self.warmup_steps:
            return self.learning_rate * step / self.warmup_steps
        if self.lr_scheduler_type == "constant":
            return self.learning_rate
        done = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        factor = 0.5 * (1 + math.cos(math.pi * done)) if self.lr_scheduler_type == "cosine" else 1 - done
        return self.learning_rate * max(0.0, factor)


@dataclass(frozen=True, slots=True)
class TrainSummary:
    """How a finished training went."""

    steps: int
    "Optimizer steps in all, those before an interruption included."
    resumed_from: int
    "The step that training went on from; 0 for a fresh start."
    metrics: Mapping[str, float]
    "The last line of metrics."
    evaluation: Mapping[str, float] = field(default_factory=dict)
    "What evaluate() gave after the last step."
    notes: tuple[str, ...] = ()
    "Damaged checkpoints that were passed over."


def train(
    *,
    parameters: NamedParameters,
    config: OptimizationConfig,
    total_steps: int,
    batches: Callable[[int], Sequence[Any]],
    loss: Callable[[Any], LossOutput],
    ctx: StageContext,
    prefix: str,
    evaluate: Evaluate | None = None,
    eval_steps: int | None = None,
    early: EarlyStopping | None = None,
) -> TrainSummary:
    """Train the given parameters and no others.

    Args:
        parameters: names and weights to train; all must require gradients.
        config: optimisation settings.
        total_steps: optimizer steps in all.
        batches: step (from 0) -> its micro-batches; a pure function, called again after a resume.
        loss: micro-batch -> its loss, already weighted by its share of the step.
        ctx: logger, stop flag and scratch folder of the stage.
        prefix: what progress lines and messages call this training.
        evaluate: gives metrics on held-out data; random state is put back after it.
        eval_steps: optimizer steps between two evaluations; the last step always has one.
        early: measures in place of `evaluate`, and may end the training before total_steps; its best
            weights are the result.

    Raises:
        Interrupted: the stage was asked to stop; a checkpoint was written first.
        StageFailed: a loss or a gradient is not finite.
    """
    ranks = open_ranks(ctx)
    loop = _Loop(parameters, LoopSettings.from_config(config, total_steps), ctx, prefix, early)
    start = done = loop.resume()
    if not ranks.is_main:
        # Ranks that draw must not draw the same.
        torch.manual_seed(seed_of(config.seed, "rank", ranks.rank, start))
    evaluation: dict[str, float] = {}
    while done < total_steps and not (early and early.stopped):
        loop.step(done, batches(done), loss)
        done += 1
        if early:
            with unchanged_random_state():
                early.after(done, total_steps, ctx.logger)
        elif evaluate and (done == total_steps or (eval_steps and done % eval_steps == 0)):
            with unchanged_random_state():
                evaluation = dict(evaluate())
            ctx.logger.log(evaluation, step=done)
        loop.after(done)
    if early:
        early.put_back()
    loop.prove_equal()
    if early:
        notes = (*loop.notes, *early.notes(done, total_steps))
        return TrainSummary(done, start, loop.last_line | early.metrics(), early.measured, notes)
    if evaluate and start == total_steps:
        evaluation = dict(evaluate())
    return TrainSummary(total_steps, start, loop.last_line, evaluation, loop.notes)


@contextmanager
def unchanged_random_state() -> Iterator[None]:
    """Put torch, numpy and python random state back afterwards: evaluation must not move training."""
    tensors, state = pack_random_state()
    try:
        yield
    finally:
        restore_random_state(tensors, state)


def make_optimizer(parameters: NamedParameters, settings: LoopSettings) -> torch.optim.Optimizer:
    """Make AdamW; biases and norms (one axis) are never decayed."""
    matrices = [p for _, p in parameters if p.dim() > 1]
    vectors = [p for _, p in parameters if p.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return make_adamw(
        [group for group in groups if group["params"]],
        settings.optimizer,
        lr=settings.learning_rate,
        betas=BETAS,
        eps=settings.adam_epsilon,
    )


class _Loop:
    """The state of one training: optimizer, sums since the last line, checkpoints."""

    def __init__(
        self,
        parameters: NamedParameters,
        settings: LoopSettings,
        ctx: StageContext,
        prefix: str,
        early: EarlyStopping | None = None,
    ) -> None:
        self._parameters = sorted(parameters, key=lambda item: item[0])
        _check_parameters(self._parameters)
        self._settings, self._ctx, self._prefix, self._early = settings, ctx, prefix, early
        self._ranks = open_ranks(ctx)
        self._optimizer = make_optimizer(self._parameters, settings)
        self._checkpoints = CheckpointFolder(ctx.scratch_dir / "checkpoints", checkpoint_key(ctx))
        self._sums: dict[str, list[float]] = {}
        self._tokens, self._all_tokens, self._seconds = 0, 0, 0.0
        self.last_line: dict[str, float] = {}
        self.notes: tuple[str, ...] = ()

    def resume(self) -> int:
        """Go back to the newest checkpoint that is whole; return its step, 0 when there is none."""
        found = self._ranks.from_main(self._checkpoints.latest)
        self.notes = tuple(str(finding) for finding in self._checkpoints.damages)
        if found is None:
            self.prove_equal()
            return 0
        restore_parameters(self._parameters, found.tensors["parameters"])
        restore_optimizer(self._optimizer, self._parameters, found.tensors["optimizer"])
        restore_random_state(found.tensors["random"], found.state["random"])
        self.prove_equal()
        if self._ranks.is_main:
            self._sums = {name: list(pair) for name, pair in found.state["sums"].items()}
            self._tokens, self._all_tokens = found.state["tokens"], found.state["all_tokens"]
        self._seconds = found.state["seconds"]
        if self._early:
            self._early.restore(found.tensors.get("best", {}), found.state["early_stopping"])
        self.last_line = dict(found.state["last_line"])
        LOGGER.info("%s goes on from step %d", self._prefix, found.step)
        return found.step

    def prove_equal(self) -> None:
        """Check that every rank holds the same trained weights."""
        self._ranks.prove_equal([parameter for _, parameter in self._parameters])

    def step(self, step: int, micro_batches: Sequence[Any], loss: Callable[[Any], LossOutput]) -> None:
        """Take one optimizer step over its micro-batches, this rank's share of them here.

        Each loss is weighted by its share of the whole step, so gradients of ranks are added, not averaged.
        """
        began = time.perf_counter()
        self._optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for micro, counts in self._ranks.turns(micro_batches):
            output = loss(micro)
            if not counts:
                (0.0 * output.loss).backward()
                continue
            total += float(output.loss.detach())
            output.loss.backward()
            self._add(output)
        total = self._ranks.add_gradients([p for _, p in self._parameters], total)
        if not math.isfinite(total):
            raise self._not_finite("loss", total, step)
        norm = float(nn.utils.clip_grad_norm_([p for _, p in self._parameters], self._settings.max_grad_norm))
        if not math.isfinite(norm):
            raise self._not_finite("norm of the gradient", norm, step)
        rate = self._settings.rate(step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        if self._ranks.is_main:
            self._count("loss", total, 1)
            self._count("grad_norm", norm, 1)
        self._seconds += time.perf_counter() - began

    def after(self, done: int) -> None:
        """Log, save and stop as the settings and the stop flag say."""
        settings = self._settings
        last = done == settings.total_steps or bool(self._early and self._early.stopped)
        if last or done % settings.logging_steps == 0:
            self._log(done)
        self._ctx.logger.progress(done, settings.total_steps, self._prefix)
        stop = not last and self._ranks.any(self._ctx.stop.requested)
        if stop or done % settings.save_steps == 0:
            self._save(done)
        if stop:
            raise Interrupted(
                f"{self._prefix} was stopped after step {done} of {settings.total_steps}; it is saved",
                where=self._ctx.name,
                hint="run the same command again to go on",
                code="interrupted",
            )

    def _collect(self) -> None:
        """Bring the sums of all ranks together: every rank sees them, the main one alone keeps them."""
        own, *others = self._ranks.gathered((self._sums, self._tokens, self._all_tokens))
        self._sums, self._tokens, self._all_tokens = own
        for sums, tokens, all_tokens in others:
            for name, (total, count) in sums.items():
                self._count(name, total, count)
            self._tokens, self._all_tokens = self._tokens + tokens, self._all_tokens + all_tokens

    def _log(self, done: int) -> None:
        self._collect()
        line = {name: total / max(count, 1e-12) for name, (total, count) in sorted(self._sums.items())}
        line["learning_rate"] = self._settings.rate(done - 1)
        if self._tokens:
            line["tokens_per_second"] = self._tokens / max(self._seconds, 1e-9)
            line["num_tokens"] = self._all_tokens
        self._ctx.logger.log(line, step=done)
        self.last_line = line
        self._sums, self._tokens, self._seconds = {}, 0, 0.0
        self._leave_to_main()

    def _leave_to_main(self) -> None:
        if not self._ranks.is_main:
            self._sums, self._tokens, self._all_tokens = {}, 0, 0

    def _save(self, done: int) -> None:
        self.prove_equal()
        self._collect()
        if not self._ranks.is_main:
            self._leave_to_main()
            return
        random_tensors, random_state = pack_random_state()
        tensors = {
            "parameters": pack_parameters(self._parameters),
            "optimizer": pack_optimizer(self._optimizer, self._parameters),
            "random": random_tensors,
        }
        state = {
            "random": random_state,
            "sums": self._sums,
            "tokens": self._tokens,
            "all_tokens": self._all_tokens,
            "seconds": self._seconds,
            "last_line": self.last_line,
        }
        if self._early:
            tensors["best"] = self._early.tensors()
            state["early_stopping"] = self._early.state()
        self._checkpoints.save(done, tensors, state)

    def _add(self, output: LossOutput) -> None:
        for name, (total, count) in output.metrics.items():
            self._count(name, float(total), float(count))
        self._tokens += output.tokens
        self._all_tokens += output.tokens

    def _count(self, name: str, total: float, count: float) -> None:
        pair = self._sums.setdefault(name, [0.0, 0.0])
        pair[0] += total
        pair[1] += count

    def _not_finite(self, what: str, value: float, step: int) -> StageFailed:
        return StageFailed(
            f"the {what} is {value} at step {step + 1} of {self._settings.total_steps}",
            where=self._ctx.name,
            hint=f"a learning_rate below {self._settings.learning_rate:g}, a longer warm-up, "
            "or look for broken rows in the data",
            code="non-finite-loss",
        )


def _check_parameters(parameters: NamedParameters) -> None:
    if not parameters:
        raise ValueError("there is nothing to train")
    frozen = [name for name, parameter in parameters if not parameter.requires_grad]
    if frozen:
        raise ValueError(f"{len(frozen)} parameters to train are frozen, first {frozen[0]}")
    if len(dict(parameters)) != len(parameters):
        raise ValueError("two parameters have the same name")
