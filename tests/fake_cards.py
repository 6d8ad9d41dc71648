"""Stage cards without any training, for tests of the engine's edges."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Literal

from pydantic import Field

from pipeline.config.strict import StrictModel
from pipeline.contract import ArtifactKind, InputSlot, StageContext, StageResult, StageSpec
from stages.config import TrainingConfig


class FakeSftConfig(TrainingConfig):
    """Settings of a fake supervised stage."""

    packing: bool = False
    "Put several rows in one sequence."


class FakeDpoConfig(TrainingConfig):
    """Settings of a fake preference stage."""

    beta: float = Field(0.1, gt=0)
    "Strength of the pull to the reference."
    loss_type: Literal["sigmoid", "ipo", "hinge"] = "sigmoid"
    "Form of the loss."


class FakePpoConfig(TrainingConfig):
    """Settings of a fake policy stage."""

    kl_coef: float = Field(0.05, ge=0)
    "Price of a nat of divergence."


class FakeEvaluateConfig(StrictModel):
    """Settings of a fake evaluation; it has a seed but no model of its own."""

    seed: int = 42
    "Seed of sampling."
    num_samples: int = Field(64, ge=1)
    "Prompts to answer."
    architecture: dict[str, Any] = Field(default_factory=dict)
    "Anything at all."


def run(ctx: StageContext) -> StageResult:
    """Give nothing."""
    return StageResult(outputs={})


_POLICY = InputSlot((ArtifactKind.ADAPTER,))
_BASE = InputSlot((ArtifactKind.FULL_MODEL,))

CARDS = {
    "sft": StageSpec(
        kind="sft",
        version=1,
        config_type=FakeSftConfig,
        inputs={"base": _BASE, "demonstrations": InputSlot((ArtifactKind.DEMONSTRATIONS,))},
        outputs={"policy": ArtifactKind.ADAPTER},
        run=run,
        summary="fake",
        metrics=("loss",),
    ),
    "dpo": StageSpec(
        kind="dpo",
        version=1,
        config_type=FakeDpoConfig,
        inputs={"base": _BASE, "policy": _POLICY, "preferences": InputSlot((ArtifactKind.PREFERENCES,))},
        outputs={"policy": ArtifactKind.ADAPTER},
        run=run,
        summary="fake",
        metrics=("rewards/accuracies", "loss"),
    ),
    "ppo": StageSpec(
        kind="ppo",
        version=1,
        config_type=FakePpoConfig,
        inputs={"base": _BASE, "policy": _POLICY, "prompts": InputSlot((ArtifactKind.PROMPTS,))},
        outputs={"policy": ArtifactKind.ADAPTER},
        run=run,
        summary="fake",
    ),
    "evaluate": StageSpec(
        kind="evaluate",
        version=1,
        config_type=FakeEvaluateConfig,
        inputs={},
        outputs={"table": ArtifactKind.TABLE},
        run=run,
        summary="fake",
        extra_inputs=(ArtifactKind.ADAPTER,),
    ),
}


def install(monkeypatch: Any) -> None:
    """Make the registry know the fake cards and nothing else."""
    import sys

    from pipeline import registry

    for kind, spec in CARDS.items():
        monkeypatch.setitem(sys.modules, f"fake_card_{kind}", SimpleNamespace(SPEC=spec))
    monkeypatch.setattr(registry, "BUILT_IN", {kind: f"fake_card_{kind}" for kind in CARDS})
