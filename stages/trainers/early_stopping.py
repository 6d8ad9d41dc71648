"""Watches a held-out metric during training: when to stop, the best weights so far, the over-fitting gap."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from torch import Tensor

from pipeline.contract import MetricLogger
from pipeline.errors import DataError, StageFailed
from stages.early_stopping import EarlyStoppingConfig
from stages.runtime.saving.training_state import NamedParameters, restore_parameters
from stages.trainers.order import order, seed_of

Measure = Callable[[], Mapping[str, float]]
RowT = TypeVar("RowT")


@dataclass(slots=True)
class Watch:
    """What a watched training carries from one measurement to the next; JSON holds it."""

    best: float | None = None
    "Best value so far; None before the first measurement."
    best_step: int = 0
    mark: float | None = None
    "The value that the next one has to beat by min_delta."
    waited: int = 0
    "Measurements since the mark was last beaten."
    gap: float = 0.0
    "How much better the metric was on training rows than on held-out rows, when it was best."
    measured: dict[str, float] | None = None
    "Everything that was measured on held-out rows when the metric was best."
    stopped: bool = False


class EarlyStopping:
    """Decides after each measurement whether training goes on, and keeps the best weights on the CPU.

    Args:
        config: the setting.
        parameters: what is trained.
        held_out: measures the held-out rows.
        trained: measures rows that are trained on, the same way.
    """

    def __init__(
        self,
        config: EarlyStoppingConfig,
        parameters: NamedParameters,
        *,
        held_out: Measure,
        trained: Measure,
    ) -> None:
        self._config, self._parameters = config, parameters
        self._held_out, self._trained = held_out, trained
        self._watch = Watch()
        self._weights: dict[str, Tensor] = {}

    @classmethod
    def of(
        cls,
        config: EarlyStoppingConfig | None,
        parameters: NamedParameters,
        *,
        rows: Sequence[RowT],
        held_out: Sequence[RowT],
        measure: Callable[[Sequence[RowT]], Mapping[str, float]],
        seed: int,
    ) -> EarlyStopping | None:
        """Watch a training on rows; the gap is taken to as many of them as are held out, drawn by the seed.

        Raises:
            DataError: early stopping is asked for and nothing is held out.
        """
        if config is None:
            return None
        if not held_out:
            message, hint = (
                "early_stopping has no held-out row to watch",
                "more rows, or a larger held-out share",
            )
            raise DataError(message, where="early_stopping", hint=hint, code="nothing-held-out")
        drawn = sorted(order(seed_of(seed, "early stopping"), 0, len(rows))[: len(held_out)])
        sample = [rows[number] for number in drawn]
        return cls(config, parameters, held_out=lambda: measure(held_out), trained=lambda: measure(sample))

    @property
    def stopped(self) -> bool:
        """Whether training has ended."""
        return self._watch.stopped

    @property
    def measured(self) -> dict[str, float]:
        """What the held-out rows gave under the best weights."""
        return dict(self._watch.measured or {})

    def after(self, done: int, total: int, logger: MetricLogger) -> None:
        """Measure after a step when it is time; the last step is always measured.

        Raises:
            StageFailed: the metric is not finite.
        """
        if done < total and done % self._config.eval_steps:
            return
        held_out, trained = dict(self._held_out()), self._trained()
        name = self._config.metric
        value = held_out[name]
        if not math.isfinite(value):
            hint = "a smaller learning_rate, or look for broken rows"
            message = f"{name} is {value} on the held-out rows after step {done}"
            raise StageFailed(message, where="early_stopping", hint=hint, code="non-finite-loss")
        gap = value - trained[name]
        gap = -gap if self._config.larger_is_better else gap
        logger.log({**held_out, "overfitting_gap": gap}, step=done)
        self._judge(done, value, gap, held_out)
        self._watch.stopped = done < total and self._watch.waited >= self._config.patience

    def put_back(self) -> None:
        """Give the model its best weights."""
        restore_parameters(self._parameters, self._weights)

    def metrics(self) -> dict[str, float]:
        """Return what a finished training says of itself."""
        watch = self._watch
        return {
            "best_step": float(watch.best_step),
            "stopped_early": float(watch.stopped),
            "overfitting_gap": watch.gap,
        }

    def notes(self, done: int, total: int) -> tuple[str, ...]:
        """Say in a sentence how the training ended."""
        watch, config = self._watch, self._config
        best = f"the weights are those of step {watch.best_step}, where {config.metric} was {watch.best:.4g}"
        if not watch.stopped:
            return (best,)
        return (f"stopped after step {done} of {total}: no gain in {config.patience} measurements; {best}",)

    def tensors(self) -> dict[str, Tensor]:
        """Return the best weights, for a checkpoint."""
        return self._weights

    def state(self) -> dict[str, Any]:
        """Return the rest of what a checkpoint has to hold, as JSON."""
        return asdict(self._watch)

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._weights = {name: value.clone() for name, value in tensors.items()}
        self._watch = Watch(**state)

    def _judge(self, done: int, value: float, gap: float, held_out: dict[str, float]) -> None:
        watch, sign = self._watch, 1 if self._config.larger_is_better else -1
        if watch.best is None or sign * (value - watch.best) > 0:
            watch.best, watch.best_step, watch.gap, watch.measured = value, done, gap, held_out
            self._weights = {name: p.detach().to("cpu", copy=True) for name, p in self._parameters}
        if watch.mark is None or sign * (value - watch.mark) > self._config.min_delta:
            watch.mark, watch.waited = value, 0
        else:
            watch.waited += 1
