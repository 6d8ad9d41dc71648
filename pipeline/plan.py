"""What a run will do: the key of every stage, whether its result is there, and why not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.errors import VerificationFailed
from pipeline.fingerprint import HashFile, defaults, key_settings, recipe, stage_key
from pipeline.inputs import FromUser, RunFile, WiredStage, Wiring, wire
from pipeline.manifest import RunManifest, StageStatus, previous_manifest
from pipeline.record import StageRecord
from pipeline.store import Store

Action = Literal["reuse", "run", "wait"]
"wait: a parent runs first; the stage is reused when the parent's output comes out unchanged."


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """What will become of one stage."""

    wired: WiredStage
    action: Action
    reason: str
    recipe: Mapping[str, Any] | None = None
    key: str | None = None
    "None when an input is not known before a parent has run."
    record: StageRecord | None = None
    "The stored result, when it will be reused."

    @property
    def name(self) -> str:
        """Name of the stage in the run file."""
        return self.wired.name


@dataclass(frozen=True, slots=True)
class Plan:
    """All stages of a run, parents first."""

    run: RunFile
    wiring: Wiring
    stages: tuple[PlannedStage, ...]

    @property
    def to_run(self) -> tuple[PlannedStage, ...]:
        """Stages that are not simply reused."""
        return tuple(stage for stage in self.stages if stage.action != "reuse")


def make_plan(run: RunFile, store: Store) -> Plan:
    """Decide for every stage whether it is reused or runs. Writes nothing."""
    wiring = wire(run, store.digests)
    previous = previous_manifest(store, run.config.name)
    planned: dict[str, PlannedStage] = {}
    if not wiring.findings:
        for wired in wiring.stages:
            planned[wired.name] = _plan_stage(wired, planned, store, previous=previous)
    return Plan(run, wiring, tuple(planned.values()))


def input_fingerprints(wired: WiredStage, records: Mapping[str, StageRecord]) -> dict[str, str] | None:
    """Return the content digest of every input, or None while one is not known."""
    fingerprints = {}
    for role, origin in wired.inputs.items():
        if isinstance(origin, FromUser):
            if origin.fingerprint is None:
                return None
            fingerprints[role] = origin.fingerprint
        elif origin.stage in records:
            fingerprints[role] = records[origin.stage].outputs[origin.output].digest
        else:
            return None
    return fingerprints


def recipe_of(wired: WiredStage, fingerprints: Mapping[str, str], hash_file: HashFile) -> dict[str, Any]:
    """Return what a stage computes: the preimage of its key."""
    # Roles of the user's choice may be shown in the user's order, so the order counts.
    order = (
        [role for role in wired.inputs if role not in wired.spec.inputs] if wired.spec.extra_inputs else []
    )
    settings = key_settings(wired.config, hash_file=hash_file)
    return recipe(wired.spec.kind, wired.spec.version, inputs=fingerprints, config=settings, order=order)


def recipe_changes(
    before: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> list[str]:
    """Return what differs between two recipes, one short phrase each.

    Args:
        before: the recipe of the last time.
        now: the recipe of this time.
        defaults: the settings' default values, to show in place of the word default.
    """
    usual = _flat(defaults or {})
    changes = []
    for part in ("kind", "version"):
        if before.get(part) != now.get(part):
            changes.append(f"{part} {before.get(part)} -> {now.get(part)}")
    old, new = _flat(before.get("config", {})), _flat(now.get("config", {}))
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            default = usual.get(name, "default")
            changes.append(f"{name} {old.get(name, default)} -> {new.get(name, default)}")
    old_inputs, new_inputs = before.get("inputs", {}), now.get("inputs", {})
    for role in sorted({*old_inputs, *new_inputs}):
        if role not in old_inputs or role not in new_inputs:
            changes.append(f"input {role} {'added' if role in new_inputs else 'removed'}")
        elif old_inputs[role] != new_inputs[role]:
            changes.append(f"input {role} holds something else")
    if before.get("order") != now.get("order") and not changes:
        changes.append("inputs are in another order")
    return changes


def _plan_stage(
    wired: WiredStage,
    planned: Mapping[str, PlannedStage],
    store: Store,
    *,
    previous: RunManifest | None,
) -> PlannedStage:
    running = [parent for parent in wired.parents if planned[parent].action != "reuse"]
    if running:
        unchanged = "the output of " + " and ".join(running)
        return PlannedStage(wired, "wait", f"run, unless {unchanged} comes out unchanged")
    records = {name: stage.record for name, stage in planned.items() if stage.record is not None}
    fingerprints = input_fingerprints(wired, records)
    if fingerprints is None:
        return PlannedStage(wired, "run", "run: a Hub model has to be fetched first")
    stage_recipe = recipe_of(wired, fingerprints, store.digests)
    key = stage_key(stage_recipe)
    try:
        record = store.find(key)
    except VerificationFailed as error:
        return PlannedStage(wired, "run", f"its stored result is damaged: {error}", stage_recipe, key)
    if record is not None:
        return PlannedStage(wired, "reuse", "same inputs and settings", stage_recipe, key, record)
    status = previous.stages.get(wired.name) if previous else None
    usual = defaults(wired.spec.config_type)
    return PlannedStage(
        wired, "run", _why(status, stage_recipe, key, store=store, usual=usual), stage_recipe, key
    )


def _why(
    status: StageStatus | None,
    stage_recipe: Mapping[str, Any],
    key: str,
    *,
    store: Store,
    usual: Mapping[str, Any],
) -> str:
    if (store.work_folder(key) / "attempts.json").exists():
        return "continues an attempt that did not finish"
    if status is None or status.recipe is None:
        return "not run yet"
    if status.key == key:
        return "its stored result is gone" if status.state == "complete" else f"{status.state} last time"
    return ", ".join(recipe_changes(status.recipe, stage_recipe, usual)) or "not run yet"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat
