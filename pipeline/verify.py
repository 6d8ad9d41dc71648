"""Compares what is committed with its records: bytes, names, keys and who was made from what."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import Finding, StoreError, UserError
from pipeline.fingerprint import HashFile, content_digest, model_digest
from pipeline.kinds import kind_of_model_folder
from pipeline.manifest import RunManifest, SourceStatus, config_damages, read_manifest, run_names
from pipeline.record import StageRecord
from pipeline.store import Store


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was looked at and what is wrong."""

    stages: int
    num_bytes: int
    findings: tuple[Finding, ...]
    not_checked: tuple[str, ...] = ()
    "Inputs of the user that are not where they were, one sentence each."


def verify_stages(
    store: Store, keys: list[str], *, hash_file: HashFile, show: Callable[[str], None] = lambda _: None
) -> Verdict:
    """Check committed stages: every file, the record itself, and the parents it names."""
    findings: list[Finding] = []
    num_bytes = 0
    for key in keys:
        show(key)
        damages = store.damages(key, hash_file=hash_file)
        findings += damages
        if not damages:
            record = store.load(key)
            num_bytes += sum(file.size for file in record.all_files())
            findings += _lineage_faults(store, record)
    return Verdict(len(keys), num_bytes, tuple(findings))


def verify_store(store: Store, *, hash_file: HashFile, show: Callable[[str], None]) -> Verdict:
    """Check every committed stage and the manifest of every run."""
    verdict = verify_stages(store, list(store.keys()), hash_file=hash_file, show=show)
    findings = list(verdict.findings)
    for name in run_names(store):
        try:
            findings += config_damages(store, read_manifest(store, name))
        except StoreError as error:
            findings += error.findings
    return Verdict(verdict.stages, verdict.num_bytes, tuple(findings))


def verify_run(
    store: Store,
    name: str,
    *,
    stage: str | None = None,
    hash_file: HashFile,
    show: Callable[[str], None] = lambda _: None,
) -> Verdict:
    """Check a run, or one stage of it with all that it was made from.

    Inputs of the user count too where they still lie beside the run file.
    """
    manifest = read_manifest(store, name)
    chosen = _ancestors(manifest, stage)
    faults: list[Finding] = []
    keys = []
    for member in chosen:
        status = manifest.stages[member]
        if status.key is None or status.state != "complete":
            continue
        if store.has(status.key):
            keys.append(status.key)
        else:
            faults.append(Finding(f"stage {member} is not in the store", status.key, code="missing-stage"))
    verdict = verify_stages(store, keys, hash_file=hash_file, show=show)
    findings, not_checked = _user_inputs(store, manifest, chosen, hash_file=hash_file)
    faults += [*config_damages(store, manifest), *verdict.findings, *findings]
    return Verdict(verdict.stages, verdict.num_bytes, tuple(dict.fromkeys(faults)), not_checked)


def _lineage_faults(store: Store, record: StageRecord) -> list[Finding]:
    """Return inputs that contradict the recipe or the record of the stage that made them."""
    where = str(store.stage_folder(record.key))
    recorded = {role: given.fingerprint for role, given in record.inputs.items()}
    if recorded != record.recipe.get("inputs"):
        return [Finding("the inputs of the record are not those of its recipe", where, code="lineage")]
    findings = []
    for role, given in record.inputs.items():
        if given.producer_key is None or not store.has(given.producer_key):
            continue
        try:
            parent = store.load(given.producer_key)
        except StoreError:
            # The parent is damaged; it is named where it is checked itself.
            continue
        if given.fingerprint not in {output.digest for output in parent.outputs.values()}:
            message = f"input {role!r} is nothing that {given.producer} gave"
            findings.append(Finding(message, where, code="lineage"))
    return findings


def _ancestors(manifest: RunManifest, stage: str | None) -> list[str]:
    """Return a stage and all stages below it, parents first; every stage when none is named."""
    if stage is None:
        return list(manifest.order)
    if stage not in manifest.stages:
        known = ", ".join(manifest.order)
        raise StoreError(f"the run has no stage {stage!r}", hint=f"one of {known}", code="unknown-stage")
    wanted = {stage}
    for name in reversed(manifest.order):
        if name in wanted:
            parents = (source.stage for source in manifest.stages[name].inputs.values())
            wanted.update(parent for parent in parents if parent is not None)
    return [name for name in manifest.order if name in wanted]


def _user_inputs(
    store: Store, manifest: RunManifest, stages: list[str], *, hash_file: HashFile
) -> tuple[list[Finding], tuple[str, ...]]:
    findings, absent = [], []
    for label, source in _given_by_user(manifest, stages):
        path = _find(store, manifest, source)
        if path is None:
            absent.append(f"{label}: {source.written} is not here any more, or is a Hub model")
        elif _digest(path, hash_file) != source.fingerprint:
            message = f"{label}: {source.written} changed since it was used"
            findings.append(
                Finding(message, str(path), "triptych run makes what it changes", "input-changed")
            )
    return findings, tuple(absent)


def _given_by_user(manifest: RunManifest, stages: list[str]) -> Iterator[tuple[str, SourceStatus]]:
    for name in stages:
        for role, source in manifest.stages[name].inputs.items():
            if source.stage is None:
                yield f"{name}.{role}", source


def _find(store: Store, manifest: RunManifest, source: SourceStatus) -> Path | None:
    places = [Path(source.written)]
    if manifest.config_folder:
        places.insert(0, store.root / manifest.config_folder / source.written)
    return next((path.resolve() for path in places if source.written and path.exists()), None)


def _digest(path: Path, hash_file: HashFile) -> str | None:
    try:
        is_model = path.is_dir() and kind_of_model_folder(path) is not None
        return (model_digest if is_model else content_digest)(path, hash_file=hash_file)
    except UserError:
        return None
