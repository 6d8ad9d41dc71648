"""A card with the inputs and outputs of ppo."""

from __future__ import annotations

from pipeline.contract import ArtifactKind, InputSlot, StageSpec
from tests.fakes.shapes import ModelSettings, run

SPEC = StageSpec(
    kind="tests.fakes.shapes.policy",
    version=1,
    config_type=ModelSettings,
    inputs={
        "base": InputSlot((ArtifactKind.FULL_MODEL,)),
        "policy": InputSlot((ArtifactKind.ADAPTER,), required=False),
        "value": InputSlot((ArtifactKind.VALUE_MODEL, ArtifactKind.REWARD_MODEL), required=False),
        "data": InputSlot((ArtifactKind.PROMPTS,), required=False),
    },
    outputs={"adapter": ArtifactKind.ADAPTER, "value": ArtifactKind.VALUE_MODEL},
    run=run,
    summary="stands for ppo",
)
