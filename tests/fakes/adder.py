"""A stage that starts from a fake model and gives another one and a table."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pipeline.contract import ArtifactKind, InputSlot, StageCheck, StageContext, StageResult, StageSpec
from pipeline.errors import Finding
from tests.fakes import source


def run(ctx: StageContext) -> StageResult:
    """Go on from the parent's number and write a table beside the model."""
    result = source.run(ctx)
    folder = ctx.output_dir / "table"
    folder.mkdir()
    table = {"title": "Numbers", "columns": ["name", "value"], "rows": [[ctx.name, result.metrics["value"]]]}
    (folder / "table.json").write_text(json.dumps({**table, "notes": ["made up"]}))
    return StageResult({**result.outputs, "table": folder}, result.metrics, ("a planted note",))


def check(stage: StageCheck) -> Sequence[Finding]:
    """Refuse a negative rate."""
    if stage.config.rate >= 0:
        return []
    return [Finding(f"rate is {stage.config.rate}", where="rate", hint="0 or more", code="bad-rate")]


SPEC = StageSpec(
    kind="tests.fakes.adder",
    version=1,
    config_type=source.FakeConfig,
    inputs={
        "base": InputSlot((ArtifactKind.FULL_MODEL,), required=False),
        "parent": InputSlot((ArtifactKind.FULL_MODEL,)),
        "other": InputSlot((ArtifactKind.FULL_MODEL,), required=False),
    },
    outputs={"model": ArtifactKind.FULL_MODEL, "table": ArtifactKind.TABLE},
    run=run,
    summary="adds to a fake model",
    check=check,
    metrics=("value", "accuracy"),
)
