"""The prepare stage: from one preference file to text, demonstrations, prompts and a held-out part. No torch.

The file is split by prompt first, near-duplicate prompts together, so that nothing that is measured
later was trained on, whatever stage trained.
"""

from __future__ import annotations

from pydantic import Field

from pipeline.config.strict import StrictModel
from pipeline.contract import ArtifactKind, InputSlot, StageContext, StageResult, StageSpec
from stages.data_report import with_data_report


class PrepareConfig(StrictModel):
    """Settings of the split."""

    seed: int = 42
    "Another seed holds out other prompts; the run's seed unless the stage sets its own."
    held_out_share: float = Field(0.15, gt=0, lt=1)
    "Share of the comparisons kept for measuring only, by prompt."


def run(ctx: StageContext) -> StageResult:
    """Read the preferences, split them and write each derived file."""
    return with_data_report(ctx, _prepare)


def _prepare(ctx: StageContext) -> StageResult:
    from reward.preferences.mapping import load_mapping
    from reward.preferences.writers import read_records
    from stages.derivation import derive, write_derived

    config: PrepareConfig = ctx.config
    mapping = load_mapping(ctx.inputs["mapping"].path) if "mapping" in ctx.inputs else None
    records, num_rejected = read_records(ctx.inputs["preferences"].path, mapping)
    derived = derive(records, held_out_share=config.held_out_share, seed=config.seed)
    paths = write_derived(derived, ctx.output_dir)
    notes = (f"{num_rejected} rows set aside as unusable",) if num_rejected else ()
    metrics = {**derived.counts(), "num_rejected": float(num_rejected)}
    ctx.logger.log(metrics, step=1)
    return StageResult(paths, metrics, notes)


SPEC = StageSpec(
    kind="prepare",
    version=2,
    config_type=PrepareConfig,
    inputs={
        "preferences": InputSlot((ArtifactKind.PREFERENCES,), help="pairs or rankings that people judged"),
        "mapping": InputSlot((ArtifactKind.TEXT,), required=False, help="YAML that says how to read them"),
    },
    outputs={
        "text": ArtifactKind.TEXT,
        "demonstrations": ArtifactKind.DEMONSTRATIONS,
        "prompts": ArtifactKind.PROMPTS,
        "preferences": ArtifactKind.PREFERENCES,
        "held_out_demonstrations": ArtifactKind.DEMONSTRATIONS,
        "held_out_prompts": ArtifactKind.PROMPTS,
        "held_out_preferences": ArtifactKind.PREFERENCES,
        "data_report": ArtifactKind.DATA_REPORT,
    },
    run=run,
    summary="text, demonstrations, prompts and a held-out part from one preference file, split by prompt",
    metrics=("num_preferences", "num_demonstrations", "num_held_out_preferences", "num_rejected"),
)
