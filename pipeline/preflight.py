"""Everything that can be decided before the first step, all findings at once. No torch."""

from __future__ import annotations

from pathlib import Path

from pipeline.contract import ArtifactKind, Checkpoint, StageCheck
from pipeline.disk import free_bytes, size_text
from pipeline.errors import ConfigError, Finding
from pipeline.inputs import FromUser, Origin
from pipeline.many_check import many_findings
from pipeline.plan import Plan, PlannedStage
from pipeline.store import Store

LEAST_FREE_BYTES = 256 * 2**20
"Room for adapters, checkpoints and logs of a small run."
_COPIES_OF_A_FULL_MODEL = 4
"A result, and while it is made two checkpoints with optimizer state of twice the weights."


def preflight(plan: Plan, store: Store) -> None:
    """Check a plan without loading weights.

    Raises:
        ConfigError: everything that was found, in one error.
    """
    findings = list(plan.wiring.findings)
    findings += [finding for stage in plan.to_run for finding in _card_findings(plan, stage, store)]
    findings += disk_findings(plan, store, free=free_bytes(store.root))
    if findings:
        raise ConfigError.from_findings(list(dict.fromkeys(findings)))


def disk_findings(plan: Plan, store: Store, *, free: int) -> list[Finding]:
    """Return a finding when the disk holds less than the run is sure to need."""
    if not plan.to_run:
        return []
    needed = LEAST_FREE_BYTES + sum(map(_bytes_of_full_model, plan.to_run))
    if free >= needed:
        return []
    return [
        Finding(
            f"too little room: {size_text(free)} free, the run needs about {size_text(needed)}",
            where=str(store.root),
            hint="make room, or put `store:` on another disk",
            code="disk-full",
        )
    ]


def outlooks(plan: Plan, store: Store) -> dict[str, tuple[str, ...]]:
    """Return what the cards of the stages to run say beforehand, by stage; silent ones are left out."""
    said: dict[str, tuple[str, ...]] = {}
    for stage in plan.to_run:
        outlook, accelerate = stage.wired.spec.outlook, stage.wired.accelerate
        notes = tuple(outlook(_stage_check(plan, stage, store))) if outlook else ()
        if accelerate.is_many:
            notes = (f"{accelerate.num_processes} processes ({accelerate.backend})", *notes)
        elif plan.run.config.accelerate.is_many:
            notes = ("one process: this kind of stage cannot use more", *notes)
        if notes:
            said[stage.name] = notes
    return said


def _card_findings(plan: Plan, stage: PlannedStage, store: Store) -> list[Finding]:
    wired, check = stage.wired, stage.wired.spec.check
    findings = many_findings(wired.spec, wired.accelerate)
    if check is not None:
        findings += check(_stage_check(plan, stage, store))
    return [_placed(plan, stage.name, finding) for finding in findings]


def _stage_check(plan: Plan, stage: PlannedStage, store: Store) -> StageCheck:
    known = {
        role: present
        for role, origin in stage.wired.inputs.items()
        if (present := _present(plan, origin, store))
    }
    kinds = {role: origin.kind for role, origin in stage.wired.inputs.items()}
    roles, accelerate = tuple(stage.wired.inputs), stage.wired.accelerate
    return StageCheck(stage.name, stage.wired.config, known, roles, kinds, accelerate)


def _placed(plan: Plan, stage: str, finding: Finding) -> Finding:
    """Give a card's finding the file and line of the key it names, or of its stage."""
    if ":" in finding.where:
        return finding
    key = f"stages.{stage}.{finding.where}" if finding.where else f"stages.{stage}"
    try:
        where = plan.run.where(key)
    except (ConfigError, KeyError, ValueError):
        where = finding.where
    return Finding(finding.message, where, finding.hint, finding.code)


def _present(plan: Plan, origin: Origin, store: Store) -> Checkpoint | None:
    if isinstance(origin, FromUser):
        if origin.path is None or origin.fingerprint is None:
            return None
        return Checkpoint(origin.kind, origin.path, origin.fingerprint, source=origin.written)
    record = next(stage.record for stage in plan.stages if stage.name == origin.stage)
    return None if record is None else store.checkpoint(record, origin.output)


def _bytes_of_full_model(stage: PlannedStage) -> int:
    if ArtifactKind.FULL_MODEL not in stage.wired.spec.outputs_with(stage.wired.config).values():
        return 0
    models = [origin for origin in stage.wired.inputs.values() if isinstance(origin, FromUser)]
    paths = [origin.path for origin in models if origin.kind == ArtifactKind.FULL_MODEL and origin.path]
    return _COPIES_OF_A_FULL_MODEL * sum(map(_weight_bytes, paths))


def _weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
