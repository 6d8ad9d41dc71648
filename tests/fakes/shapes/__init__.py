"""Cards that only declare inputs and outputs, as the real stages do."""

from __future__ import annotations

from pipeline.config.run import ModelConfig
from pipeline.config.strict import StrictModel
from pipeline.contract import ArtifactKind, StageContext, StageResult, StageSpec


class ModelSettings(StrictModel):
    """Settings with a model block."""

    model: ModelConfig = ModelConfig()
    "The base model."


def run(ctx: StageContext) -> StageResult:
    """Never called: these cards are only wired."""
    raise NotImplementedError


SPEC = StageSpec(
    kind="tests.fakes.shapes",
    version=1,
    config_type=ModelSettings,
    inputs={},
    outputs={"model": ArtifactKind.FULL_MODEL},
    run=run,
    summary="stands for pretrain",
)
