"""What was checked while a run went on: proofs at step 0, gates between stages, alarms of monitors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.report.numbers import short
from pipeline.report.view import RunView, StageView

Verdict = Literal["passed", "failed", "alarm"]
PROOFS = {
    "handover/logit_difference": "starts from its parent: largest difference of logits {}",
    "handover/kl": "its reference is its parent: KL before the first step {}",
    "handover/loss_minus_ln2": "the first loss is ln 2: off by {}",
    "ppo/first_ratio_error": "the policy read twice is itself: largest distance of a ratio from 1 {}",
}
"Final metrics that a stage proves about its start, and what they say. A stage that misses one stops."
REMEDIES = {
    "kl": "a larger ppo.kl_coef, or kl_target",
    "entropy": "a smaller learning_rate",
    "length": "look at long samples; penalise length or train the reward model on pairs of equal length",
    "reward_hacking": "early stopping (on_alarm: stop), a larger kl_coef, an ensemble of reward models",
    "repetition": "look at samples; a larger kl_coef",
    "eos": "a penalty for responses without an end",
    "value": "more value training, or group baselines",
}
"What to try first when an alarm rises."


@dataclass(frozen=True, slots=True)
class Check:
    """One row of the table of checks."""

    stage: str
    kind: str
    verdict: Verdict
    text: str
    remedy: str = ""


def checks_of(run: RunView) -> list[Check]:
    """Return every check of a run; what is wrong stands first, else stages in their order."""
    found = [check for stage in run.stages for check in (*_alarms(stage), *_gates(stage), *_proofs(stage))]
    return sorted(found, key=lambda check: check.verdict == "passed")


def _proofs(stage: StageView) -> list[Check]:
    return [
        Check(stage.name, stage.kind, "passed", text.format(short(stage.metrics[name])))
        for name, text in PROOFS.items()
        if name in stage.metrics
    ]


def _gates(stage: StageView) -> list[Check]:
    closed = [
        Check(stage.name, stage.kind, "failed", f"gate closed: {sentence}") for sentence in stage.gate_closed
    ]
    kept = []
    for name, bound in stage.gate_bounds.items():
        metric = name.removeprefix("min_").removeprefix("max_")
        value = stage.metrics.get(metric)
        missed = value is None or (value < bound if name.startswith("min_") else value > bound)
        if not missed:
            sign = "≥" if name.startswith("min_") else "≤"
            text = f"gate open: {metric} {short(value)} {sign} {short(bound)}"
            kept.append(Check(stage.name, stage.kind, "passed", text))
    return [*closed, *kept]


def _alarms(stage: StageView) -> list[Check]:
    return [
        Check(
            stage.name,
            stage.kind,
            "alarm",
            f"alarm {alarm.name.replace('_', ' ')} from step {alarm.step}, on {alarm.count} "
            f"line{'' if alarm.count == 1 else 's'} of metrics",
            REMEDIES.get(alarm.name, ""),
        )
        for alarm in stage.alarms
    ]
