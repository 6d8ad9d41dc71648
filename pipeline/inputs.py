"""Wires stages together: each role becomes an output of a stage, a path or a Hub model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pipeline import hub, registry
from pipeline.config.accelerate import ONE_PROCESS, AccelerateConfig
from pipeline.config.run import ModelConfig, RunConfig, StageEntry
from pipeline.config.strict import StrictModel
from pipeline.config.suggest import choices, close
from pipeline.contract import ArtifactKind, InputSlot, StageSpec
from pipeline.errors import ConfigError, Finding, StoreError
from pipeline.fingerprint import HashFile, content_digest, model_digest
from pipeline.kinds import MODEL_KINDS, kind_of_path, said_kinds

BASE = "base"


class RunFile(Protocol):
    """What the engine needs of a loaded run file."""

    @property
    def config(self) -> RunConfig:
        """The run as types."""

    @property
    def stage_configs(self) -> Mapping[str, StrictModel]:
        """Settings of each stage, typed by its card."""

    @property
    def path(self) -> Path:
        """The YAML file."""

    def where(self, dotted_key: str) -> str:
        """Return file:line of a key."""

    def resolved(self) -> dict[str, Any]:
        """Return the whole run as plain values."""


@dataclass(frozen=True, slots=True)
class FromStage:
    """An input that another stage of the run gives."""

    kind: ArtifactKind
    stage: str
    output: str


@dataclass(frozen=True, slots=True)
class FromUser:
    """An input that the user gives: a file, a folder or a Hub model."""

    kind: ArtifactKind
    source: str
    "File name or Hub id with commit, for the record."
    path: Path | None = None
    fingerprint: str | None = None
    "None while a Hub model still has to be fetched."
    model: hub.HubModel | None = None
    written: str = ""
    "As the run file has it."


Origin = FromStage | FromUser


@dataclass(frozen=True, slots=True)
class WiredStage:
    """A stage with every input's origin known."""

    name: str
    spec: StageSpec
    config: StrictModel
    inputs: Mapping[str, Origin]
    gate: Mapping[str, float] = field(default_factory=dict)
    accelerate: AccelerateConfig = ONE_PROCESS
    "The processes that train it: one, unless the run file says otherwise and the stage can use more."

    @property
    def parents(self) -> tuple[str, ...]:
        """Names of the stages it needs, in the order of its inputs."""
        names = [origin.stage for origin in self.inputs.values() if isinstance(origin, FromStage)]
        return tuple(dict.fromkeys(names))


@dataclass(frozen=True, slots=True)
class Wiring:
    """The stages of a run, parents first, and all that is wrong with their inputs."""

    stages: tuple[WiredStage, ...]
    findings: tuple[Finding, ...]

    def until(self, names: Sequence[str]) -> tuple[WiredStage, ...]:
        """Return the named stages and all that they need, parents first; every stage when none is named.

        Raises:
            ConfigError: there is no stage of a name.
        """
        known = [stage.name for stage in self.stages]
        unknown = [
            Finding(
                f"there is no stage {name!r}",
                "--until",
                close(name, known) or choices(known),
                "unknown-stage",
            )
            for name in names
            if name not in known
        ]
        if unknown:
            raise ConfigError.from_findings(unknown)
        wanted = set(names or known)
        for stage in reversed(self.stages):
            if stage.name in wanted:
                wanted.update(stage.parents)
        return tuple(stage for stage in self.stages if stage.name in wanted)

    def require(self) -> tuple[WiredStage, ...]:
        """Return the stages, or raise everything that is wrong at once.

        Raises:
            ConfigError: any finding.
        """
        if self.findings:
            raise ConfigError.from_findings(self.findings)
        return self.stages


def wire(run: RunFile, hash_file: HashFile) -> Wiring:
    """Resolve every input of a run and put parents before children."""
    return _Wirer(run, hash_file).finish()


class _Wirer:
    def __init__(self, run: RunFile, hash_file: HashFile) -> None:
        self.run = run
        self.hash_file = hash_file
        self.entries: dict[str, StageEntry] = run.config.stages
        self.specs = {name: registry.find(entry.kind) for name, entry in self.entries.items()}
        self.findings: list[Finding] = []
        self.wired: dict[str, WiredStage] = {}
        self.digests: dict[Path, str] = {}

    def finish(self) -> Wiring:
        for name in self._parents_first():
            entry, spec = self.entries[name], self.specs[name]
            inputs: dict[str, Origin] = {}
            for role, text in entry.inputs.items():
                origin = self._origin(name, role, text)
                if origin is not None:
                    inputs[role] = origin
            config = self.run.stage_configs[name]
            if BASE in spec.inputs and BASE not in entry.inputs:
                base = self._inherited_base(name, config, inputs)
                if base is not None:
                    inputs = {BASE: base, **inputs}
            accelerate = processes_of(entry, spec, self.run)
            self.wired[name] = WiredStage(name, spec, config, inputs, entry.gate, accelerate)
        return Wiring(tuple(self.wired.values()), tuple(self.findings))

    def _parents_first(self) -> list[str]:
        """Order the stages so that parents come first, in file order where that leaves a choice."""
        waiting = {
            name: {parent for text in entry.inputs.values() if (parent := self._stage_part(text))}
            for name, entry in self.entries.items()
        }
        ordered: list[str] = []
        while waiting:
            ready = next((name for name, parents in waiting.items() if parents <= set(ordered)), None)
            if ready is None:
                circle = _circle(waiting)
                self._note(
                    "these stages need each other: " + " -> ".join(circle),
                    f"stages.{circle[0]}.inputs",
                    code="cycle",
                )
                return ordered
            ordered.append(ready)
            del waiting[ready]
        return ordered

    def _stage_part(self, text: str) -> str | None:
        """Return the stage that an input names, or None for a path."""
        if text in self.entries:
            return text
        stage, dot, output = text.partition(".")
        return stage if dot and stage in self.entries and output in self.specs[stage].outputs else None

    def _origin(self, name: str, role: str, text: str) -> Origin | None:
        slot = self.specs[name].inputs.get(role) or InputSlot(self.specs[name].extra_inputs)
        where = f"stages.{name}.inputs.{role}"
        stage = self._stage_part(text)
        if stage is not None:
            return self._from_stage(stage, text, slot, where=where)
        path = self._find_path(text)
        if path is not None:
            return self._from_path(path, text, slot, where=where)
        return self._from_hub(text, slot, where)

    def _from_stage(self, stage: str, text: str, slot: InputSlot, *, where: str) -> Origin | None:
        outputs = self.specs[stage].outputs_with(self.wired[stage].config)
        if text != stage:
            output = text.partition(".")[2]
            if output not in outputs:
                self._note(
                    f"stage {stage!r} gives no {output!r} with its settings",
                    where,
                    code="absent-output",
                )
                return None
            if outputs[output] in slot.kinds:
                return FromStage(outputs[output], stage, output)
            self._note(
                f"{text!r} is a {outputs[output]}, and this input takes {said_kinds(slot.kinds)}",
                where,
                code="wrong-kind",
            )
            return None
        for kind in slot.kinds:
            for output, given in outputs.items():
                if given == kind:
                    return FromStage(kind, stage, output)
        gives = choices(f"{output} ({kind})" for output, kind in outputs.items()) or "nothing"
        self._note(
            f"stage {stage!r} gives {gives}, and this input takes {said_kinds(slot.kinds)}",
            where,
            code="wrong-kind",
        )
        return None

    def _find_path(self, text: str) -> Path | None:
        for folder in (self.run.path.parent, Path()):
            path = folder / Path(text).expanduser()
            if path.exists():
                return path
        return None

    def _from_path(self, path: Path, text: str, slot: InputSlot, *, where: str) -> Origin | None:
        try:
            kind = kind_of_path(path, slot.kinds)
            fingerprint = self._digest(path, kind)
        except (ConfigError, StoreError) as error:
            finding = error.findings[0]
            self._note(finding.message, where, hint=finding.hint, code=finding.code)
            return None
        return FromUser(kind, path.name, path.resolve(), fingerprint, written=text)

    def _digest(self, path: Path, kind: ArtifactKind) -> str:
        resolved = path.resolve()
        if resolved not in self.digests:
            self.digests[resolved] = origin_digest(resolved, kind, self.hash_file)
        return self.digests[resolved]

    def _from_hub(
        self, text: str, slot: InputSlot, where: str, *, revision: str | None = None
    ) -> Origin | None:
        kinds = [kind for kind in slot.kinds if kind in (ArtifactKind.FULL_MODEL, ArtifactKind.ADAPTER)]
        model_id, _, named = text.partition("@")
        if kinds and hub.looks_like_hub_id(model_id) and not close(text, self.entries, cutoff=0.75):
            model = hub.look_up(model_id, named or revision)
            # A bare name is as likely a misspelt stage: it counts as a Hub id when the cache knows it.
            if model.path is not None or ("/" in model_id and not hub.is_offline()):
                return FromUser(kinds[0], model.source, model.path, model.fingerprint, model, text)
        self._note_missing(text, kinds, where)
        return None

    def _note_missing(self, text: str, kinds: Sequence[ArtifactKind], where: str) -> None:
        near = close(text, self.entries)
        if near is None:
            near = _nearest_file(self.run.path.parent / text)
        what = "no stage, file or model" if kinds else "no stage or file"
        beside = f"looked beside {self.run.path.name} and in the working directory"
        if kinds and hub.looks_like_hub_id(text) and "/" in text and hub.is_offline():
            beside += "; the Hub is off (HF_HUB_OFFLINE) and the local cache does not have it"
        self._note(f"{what} {text!r}: {beside}", where, hint=near or "", code="missing-file")

    def _inherited_base(self, name: str, config: StrictModel, inputs: Mapping[str, Origin]) -> Origin | None:
        where = f"stages.{name}.inputs"
        parents = [origin.stage for origin in inputs.values() if isinstance(origin, FromStage)]
        bases = {
            parent: self.wired[parent].inputs[BASE]
            for parent in parents
            if parent in self.wired and BASE in self.wired[parent].inputs
        }
        if len(set(map(_identity, bases.values()))) > 1:
            named = ", ".join(f"{parent} on {_shown(base)}" for parent, base in bases.items())
            self._note(f"its parents stand on different base models: {named}", where, code="bases-differ")
            return None
        if bases:
            return next(iter(bases.values()))
        model = getattr(config, "model", None)
        if isinstance(model, ModelConfig) and model.base is not None:
            return self._base_of_model(model, model.base)
        slot = self.specs[name].inputs[BASE]
        gave_all = len(inputs) == len(self.entries[name].inputs)
        if slot.required and gave_all:
            self._note(
                f"stage {name!r} has no base model",
                where,
                hint="model: {base: <Hub id or folder>}, or inputs: {base: <a pretrain stage>}",
                code="missing-base",
            )
        return None

    def _base_of_model(self, model: ModelConfig, text: str) -> Origin | None:
        slot = InputSlot((ArtifactKind.FULL_MODEL,))
        path = self._find_path(text)
        known = len(self.findings)
        if path is not None:
            origin = self._from_path(path, text, slot, where="model.base")
        else:
            origin = self._from_hub(text, slot, "model.base", revision=model.revision)
        # Every stage asks for the same base: say what is wrong with it once.
        if self.findings[known:] and self.findings[-1] in self.findings[:known]:
            self.findings.pop()
        return origin

    def _note(self, message: str, key: str, *, hint: str = "", code: str) -> None:
        self.findings.append(Finding(message, self.run.where(key), hint, code))


def processes_of(entry: StageEntry, spec: StageSpec, run: RunFile) -> AccelerateConfig:
    """Return the processes of a stage: what its own block says, else the run's where the stage can use it."""
    merged = entry.accelerate.over(run.config.accelerate)
    if merged.config_file is not None and (beside := run.path.parent / merged.config_file).is_file():
        merged = merged.model_copy(update={"config_file": str(beside)})
    asked = {"num_processes", "backend"} & entry.accelerate.model_fields_set
    return merged if asked or merged.backend in spec.backends else ONE_PROCESS


def origin_digest(path: Path, kind: ArtifactKind, hash_file: HashFile) -> str:
    """Return the content digest of a user's file or folder, as keys hold it.

    Raises:
        StoreError: it is gone, or holds links or devices.
    """
    digest = model_digest if kind in MODEL_KINDS else content_digest
    return digest(path, hash_file=hash_file)


def _identity(origin: Origin) -> tuple[str, str]:
    if isinstance(origin, FromStage):
        return ("stage", f"{origin.stage}.{origin.output}")
    return ("user", origin.fingerprint or origin.source)


def _shown(origin: Origin) -> str:
    return origin.stage if isinstance(origin, FromStage) else origin.written or origin.source


def _nearest_file(path: Path) -> str | None:
    if not path.parent.is_dir():
        return None
    near = close(path.name, [entry.name for entry in path.parent.iterdir()])
    return near and f"{near} is there"


def _circle(waiting: Mapping[str, set[str]]) -> list[str]:
    """Return one circle of stages, its first name again at the end."""
    path = [next(iter(waiting))]
    while True:
        step = next(parent for parent in sorted(waiting[path[-1]]) if parent in waiting)
        if step in path:
            return [*path[path.index(step) :], step]
        path.append(step)
