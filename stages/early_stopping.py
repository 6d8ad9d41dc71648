"""Settings of early stopping: what is watched on held-out data, and for how long. No torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.config.strict import StrictModel
from pipeline.errors import Finding

Watched = Literal["eval_loss", "eval_mean_token_accuracy", "eval_rewards/accuracies", "eval_rewards/margins"]
TEXT_METRICS: tuple[Watched, ...] = ("eval_loss",)
ANSWER_METRICS: tuple[Watched, ...] = ("eval_loss", "eval_mean_token_accuracy")
PAIR_METRICS: tuple[Watched, ...] = ("eval_loss", "eval_rewards/accuracies", "eval_rewards/margins")


class EarlyStoppingConfig(StrictModel):
    """End a training when held-out data no longer gain, and give the weights that were best on them."""

    metric: Watched = "eval_loss"
    "What is watched: a loss that should fall, or an accuracy or margin that should rise."
    eval_steps: int = Field(ge=1)
    "Optimizer steps between two measurements. It takes the place of the stage's own, and changes the result."
    patience: int = Field(3, ge=1)
    "Measurements in a row without a gain after which training ends."
    min_delta: float = Field(0.0, ge=0)
    "Smallest gain that counts, in the metric's unit. Larger stops sooner."

    @property
    def larger_is_better(self) -> bool:
        """Whether the metric should rise."""
        return self.metric != "eval_loss"


def early_stopping_findings(
    early: EarlyStoppingConfig | None, *, measured: tuple[Watched, ...], held_out: bool, where: str
) -> list[Finding]:
    """Say what keeps a stage from stopping early.

    Args:
        early: the setting; None is off.
        measured: metrics of the stage.
        held_out: whether anything is held out.
        where: the setting's place in the run file.
    """
    findings: list[Finding] = []
    if early is None:
        return findings
    if early.metric not in measured:
        message = f"early_stopping.metric is {early.metric!r}, which this stage does not measure"
        findings.append(
            Finding(message, f"{where}.metric", f"one of {', '.join(measured)}", "unknown-metric")
        )
    if not held_out:
        message = "early_stopping watches held-out data, and nothing is held out"
        findings.append(Finding(message, where, "a share to hold out above 0", "nothing-held-out"))
    return findings
