"""Finds the model that a finished stage of a store gave, and the base it stands on. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import hub
from pipeline.config.run import ModelConfig, TuningConfig
from pipeline.contract import ArtifactKind, Checkpoint
from pipeline.errors import StoreError, UserError
from pipeline.inputs import origin_digest
from pipeline.manifest import RunManifest, StageStatus, read_manifest
from pipeline.record import InputRecord, StageRecord
from pipeline.store import Store

SPEAKING = (ArtifactKind.ADAPTER, ArtifactKind.FULL_MODEL)
"Kinds of output that can answer a prompt."


@dataclass(frozen=True, slots=True)
class Committed:
    """A committed policy and all that opening it takes."""

    name: str
    "As a person names it: run:stage."
    stage: str
    base: Checkpoint
    "The full model: the base of the adapter, or what the stage gave."
    adapter: Checkpoint | None
    "None when the stage gave a full model."
    model: ModelConfig
    tuning: TuningConfig

    @property
    def weights(self) -> Checkpoint:
        """What the stage itself gave."""
        return self.adapter or self.base


def find_committed(store: Store, run: str, stage: str | None, *, base: Path | None = None) -> Committed:
    """Return the policy that a stage of a run gave.

    Args:
        store: where the run is.
        run: the run's name.
        stage: the stage's name; None is refused with the names to choose from.
        base: folder of the base, when the store cannot tell where it is.

    Raises:
        StoreError: there is no such run, or the stage's files are gone.
        UserError: no such stage, not finished, gives no policy, or its base cannot be found.
    """
    manifest = read_manifest(store, run)
    status = _status(manifest, run, stage)
    record = store.find(status.key) if status.key and status.state == "complete" else None
    if record is None:
        raise UserError(
            f"stage {stage!r} of run {run!r} has no finished result",
            hint=f"triptych status {run}",
            code="not-finished",
        )
    role = _policy_role(record)
    if role is None:
        raise UserError(
            f"stage {stage!r} ({record.kind}) gives no model that answers",
            hint="one of " + ", ".join(_speaking_stages(store, manifest)),
            code="no-policy",
        )
    given = store.checkpoint(record, role)
    is_adapter = given.kind is ArtifactKind.ADAPTER
    return Committed(
        name=f"{run}:{stage}",
        stage=str(stage),
        base=_base(store, manifest, status, record.inputs["base"], base) if is_adapter else given,
        adapter=given if is_adapter else None,
        model=_settings(record, "model", ModelConfig),
        tuning=_settings(record, "tuning", TuningConfig),
    )


def _status(manifest: RunManifest, run: str, stage: str | None) -> StageStatus:
    if stage in manifest.stages:
        return manifest.stages[stage]
    message = f"run {run!r} has no stage {stage!r}" if stage else f"which stage of {run!r}?"
    hint = ", ".join(f"{run}:{name}" for name in manifest.order)
    raise UserError(message, hint=hint, code="unknown-stage")


def _policy_role(record: StageRecord) -> str | None:
    """Return the output that answers; `policy` when a stage gives several."""
    roles = [role for role, output in record.outputs.items() if output.kind in SPEAKING]
    return "policy" if "policy" in roles else next(iter(roles), None)


def _speaking_stages(store: Store, manifest: RunManifest) -> list[str]:
    names = []
    for name in manifest.order:
        status = manifest.stages[name]
        record = store.find(status.key) if status.key and status.state == "complete" else None
        if record is not None and _policy_role(record):
            names.append(f"{manifest.name}:{name}")
    return names or ["a run with a finished sft, dpo or ppo stage"]


def _settings(record: StageRecord, name: str, config_type: type[Any]) -> Any:
    """Return recorded settings; the chat template is the one that lies beside the weights."""
    known = config_type.model_fields
    given = record.settings.get(name) or {}
    kept = {key: value for key, value in given.items() if key in known and key != "chat_template"}
    return config_type.model_validate(kept)


def _base(
    store: Store, manifest: RunManifest, status: StageStatus, held: InputRecord, given: Path | None
) -> Checkpoint:
    """Return an adapter's base: from the store, where the run file named it, or from the Hub's cache."""
    made = _base_of_stage(store, manifest, status, held) if given is None else None
    if made is not None:
        return made
    written = status.inputs["base"].written if "base" in status.inputs else ""
    folders = [given] if given else [store.root / manifest.config_folder / written, Path(written)]
    for folder in folders if given or written else ():
        if _is_base(store, folder, held.fingerprint):
            return Checkpoint(ArtifactKind.FULL_MODEL, folder.resolve(), held.fingerprint, source=held.source)
    if given is not None:
        raise UserError(
            f"{given} is not the base that the adapter was trained on ({held.source})",
            hint="the folder whose digest is " + held.fingerprint[:12],
            code="wrong-base",
        )
    model_id, _, commit = held.source.partition("@")
    found = hub.look_up(model_id, commit or None) if hub.looks_like_hub_id(model_id) else None
    if found is not None and found.path is not None and found.fingerprint == held.fingerprint:
        return Checkpoint(ArtifactKind.FULL_MODEL, found.path, held.fingerprint, source=held.source)
    raise UserError(f"the base {held.source!r} cannot be found", hint="--base FOLDER", code="missing-base")


def _base_of_stage(
    store: Store, manifest: RunManifest, status: StageStatus, held: InputRecord
) -> Checkpoint | None:
    """Return a base that a stage made: the one of this run, or of the run that made the record."""
    here = manifest.stages.get(status.inputs["base"].stage or "") if "base" in status.inputs else None
    for key in (here.key if here else None, held.producer_key):
        producer = store.find(key) if key else None
        for role, output in producer.outputs.items() if producer else ():
            if producer is not None and output.digest == held.fingerprint:
                return store.checkpoint(producer, role)
    return None


def _is_base(store: Store, folder: Path, fingerprint: str) -> bool:
    if not folder.is_dir():
        return False
    try:
        return origin_digest(folder.resolve(), ArtifactKind.FULL_MODEL, store.digests) == fingerprint
    except StoreError:
        return False
