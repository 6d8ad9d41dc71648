"""What a tuning makes of a stage's inputs and outputs: adapters on a base, or whole models. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.contract import ArtifactKind, StageCheck
from pipeline.errors import Finding

ADAPTER, MODEL = "adapter", "model"


POLICY_KINDS = (ArtifactKind.ADAPTER, ArtifactKind.FULL_MODEL)
"What a policy may be: an adapter of a frozen base, or where every weight trains a model of its own."


def absent_policy(config: Any) -> Sequence[str]:
    """Return the output that a policy stage does not give: the adapter, or the whole model."""
    return (ADAPTER,) if config.tuning.method == "full" else (MODEL,)


def absent_reward(config: Any) -> Sequence[str]:
    """Return the output that the reward stage does not give."""
    return ("reward_model",) if config.tuning.method == "full" else ("full_reward_model",)


def tuning_findings(stage: StageCheck) -> list[Finding]:
    """Say whether the policy is of the form that the tuning trains, and which settings do not go together."""
    tuning, findings = stage.config.tuning, []
    full = tuning.method == "full"
    given = stage.kinds.get("policy")
    if full and given is ArtifactKind.ADAPTER:
        message = "tuning.method is full, but the policy is an adapter of a frozen base"
        hint = "tuning.method: full in the stage that makes the policy, or lora here"
        findings.append(Finding(message, "inputs.policy", hint, "other-form"))
    if not full and given is ArtifactKind.FULL_MODEL:
        message = f"tuning.method is {tuning.method}, but the policy is a whole model"
        hint = "tuning.method: full here; or make it the base of an sft stage with adapters"
        findings.append(Finding(message, "inputs.policy", hint, "other-form"))
    if full and tuning.use_dora:
        message = "use_dora shapes adapters, and full trains none"
        findings.append(Finding(message, "tuning.use_dora", "use_dora: false", "other-form"))
    return findings + parts_findings(stage)


def parts_findings(stage: StageCheck) -> list[Finding]:
    """Refuse settings that need whole layers where each process holds a part of them."""
    if not stage.accelerate.in_parts:
        return []
    tuning = stage.config.tuning
    needs_whole = {
        "method": (tuning.method != "lora", tuning.method, "method: lora"),
        "use_dora": (tuning.use_dora, "true", "use_dora: false"),
        "lora_init": (tuning.lora_init == "principal", "principal", "lora_init: uniform or orthogonal"),
        "activation_offloading": (tuning.activation_offloading, "true", "gradient_checkpointing: true"),
    }
    return [
        Finding(
            f"tuning.{key} is {value}, which needs whole layers; fsdp2 leaves a part on each process",
            f"tuning.{key}",
            f"{hint}, or accelerate.backend: ddp",
            "not-in-parts",
        )
        for key, (refused, value, hint) in needs_whole.items()
        if refused
    ]


def refuse_full(stage: StageCheck, reason: str) -> list[Finding]:
    """Refuse whole models in a stage that holds several roles on one frozen base."""
    if stage.config.tuning.method != "full":
        return []
    hint = "tuning: {method: lora} in this stage, with an adapter as its policy"
    return [Finding(f"tuning.method: full is not possible here: {reason}", "tuning.method", hint, "no-full")]
