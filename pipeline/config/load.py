"""Loads a run file: YAML, overrides, run-level settings merged into stages, every mistake at once.

Paths of inputs are not looked at here; the plan resolves them.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from pipeline import registry
from pipeline.config import mistakes, overrides, secrets
from pipeline.config.mistakes import shown
from pipeline.config.run import RunConfig, StageEntry
from pipeline.config.source import KeyPath, Source, read
from pipeline.config.strict import StrictModel
from pipeline.config.suggest import Homes, choices, close
from pipeline.contract import StageSpec
from pipeline.errors import ConfigError, Finding

SHARED = ("seed", "model", "tuning")
"Top-level settings that every stage takes unless its own block says otherwise."
BLOCKS = ("model", "tuning", "tracking", "accelerate")
ENTRY_KEYS = ("kind", "inputs", "gate", "accelerate")
INHERITED_ROLE = "base"
_STAGE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,47}")


@dataclass(frozen=True, slots=True)
class LoadedRun:
    """A run file that holds: typed, with overrides applied, and the place of every key."""

    config: RunConfig
    stage_configs: Mapping[str, StrictModel]
    "Stage name -> its settings as an instance of the card's config_type."
    source: Source

    @property
    def path(self) -> Path:
        """The run file."""
        return self.source.path

    def where(self, dotted_key: str) -> str:
        """Return file:line of a key such as `stages.ppo.kl_coef` or `ppo.kl_coef`.

        A key that the file leaves at its default gives the place of its nearest parent; a
        setting a stage takes from the run's top level gives that place.
        """
        path = overrides.full_path(dotted_key, list(self.config.stages))
        if path[0] == "stages" and len(path) > 2 and path[:3] not in self.source.places:
            shared = path[2:]
            if shared[0] in (*SHARED, "accelerate") and shared[:1] in self.source.places:
                return self.source.place(shared).value
        return self.source.place(path).value

    def resolved(self) -> dict[str, Any]:
        """Return the whole run as JSON-able values, every default written out.

        Written as YAML it loads to the same run.
        """
        dumped = self.config.model_dump(mode="json", exclude={"stages"})
        dumped["stages"] = {
            name: {
                "kind": entry.kind,
                "inputs": dict(entry.inputs),
                "gate": dict(entry.gate),
                **_own_processes(entry),
                **self.stage_configs[name].model_dump(mode="json"),
            }
            for name, entry in self.config.stages.items()
        }
        return dumped


class RunFileError(ConfigError):
    """Mistakes of a run file."""

    run: LoadedRun | None = None
    "What can be read of the file all the same, with default settings where a stage's own are wrong."


def load_run(path: Path, overrides: Sequence[str] = ()) -> LoadedRun:
    """Read a run file with command-line overrides and check all of it.

    Raises:
        RunFileError: everything that is wrong with the file, in one error.
    """
    return _Loading.start(path, overrides).finish()


def _templates_beside(source: Source) -> Source:
    """Take chat templates from beside the run file when they are there, as inputs are taken."""
    values = copy.deepcopy(source.values)
    stages = values.get("stages")
    blocks = [values, *(stages.values() if isinstance(stages, dict) else ())]
    for block in blocks:
        model = block.get("model") if isinstance(block, dict) else None
        if not isinstance(model, dict):
            continue
        name = model.get("chat_template")
        if isinstance(name, str) and (source.path.parent / name).is_file():
            model["chat_template"] = str(source.path.parent / name)
    return source.with_values(values, {})


@dataclass(slots=True)
class _Loading:
    """One pass over a run file; findings gather here until the end."""

    source: Source
    specs: dict[str, StageSpec] = field(default_factory=dict)
    found: dict[KeyPath, Finding] = field(default_factory=dict)
    homes: Homes = field(default_factory=lambda: Homes({}))

    @classmethod
    def start(cls, path: Path, changes: Sequence[str]) -> _Loading:
        return cls(overrides.apply(_templates_beside(read(path)), changes))

    def finish(self) -> LoadedRun:
        self.found.update(secrets.findings(self.source))
        blocks = self.stage_blocks()
        self.homes = Homes.of_run({name: spec.config_type for name, spec in self.specs.items()})
        config = self.run_config(blocks)
        seed = config.seed if config else 0
        stages = {
            name: self.stage_config(name, spec, blocks[name], seed=seed) for name, spec in self.specs.items()
        }
        for name, spec in self.specs.items():
            self.check_entry(name, spec, blocks[name])
        findings = [*self.source.findings, *self.found.values()]
        run = self.readable(config, stages)
        if findings or run is None:
            error = RunFileError.from_findings(sorted(findings, key=_line))
            error.run = run
            raise error
        return run

    def readable(
        self, config: RunConfig | None, stages: Mapping[str, StrictModel | None]
    ) -> LoadedRun | None:
        """Return the run with defaults in place of settings that are wrong; None without a whole frame."""
        if config is None or config.stages.keys() != stages.keys():
            return None
        typed = {
            name: stage or self.specs[name].config_type.model_construct() for name, stage in stages.items()
        }
        return LoadedRun(config, MappingProxyType(typed), self.source)

    def note(self, path: KeyPath, finding: Finding) -> None:
        self.found.setdefault(path, finding)

    def stage_blocks(self) -> dict[str, dict[str, Any]]:
        """Return the stages whose blocks are mappings, and look up their cards."""
        stages = self.source.values.get("stages")
        blocks: dict[str, dict[str, Any]] = {}
        for name, block in stages.items() if isinstance(stages, dict) else ():
            path = ("stages", name)
            place = self.source.place(path)
            if not _STAGE_NAME.fullmatch(name) or name in RunConfig.model_fields:
                reason = "is a key of the run file" if name in RunConfig.model_fields else "is not a name"
                hint = "letters, digits, - and _, starting with a letter"
                self.note(path, Finding(f"stage name {name!r} {reason}", place.key, hint, "bad-name"))
            if not isinstance(block, dict):
                message = f"stage {name} must be a mapping of keys to values, got {shown(block)}"
                self.note(path, Finding(message, place.value, f"{name}: {{kind: sft, ...}}", "wrong-type"))
                continue
            blocks[name] = block
            self.find_card(name, block)
        return blocks

    def find_card(self, name: str, block: dict[str, Any]) -> None:
        path = ("stages", name, "kind")
        kind = block.get("kind")
        place = self.source.place(path)
        if "kind" not in block:
            known = registry.kinds()
            guess = name if name in known else close(name, known)
            hint = f"kind: {guess}" if guess else f"kind: one of {choices(known)}"
            self.note(path, Finding(f"stage {name} needs the key 'kind'", place.key, hint, "missing-key"))
        elif isinstance(kind, str):
            try:
                self.specs[name] = registry.find(kind)
            except ConfigError as error:
                finding = error.findings[0]
                self.note(path, Finding(finding.message, place.value, finding.hint, finding.code))

    def run_config(self, blocks: Mapping[str, dict[str, Any]]) -> RunConfig | None:
        values = dict(self.source.values)
        self.misplaced_stages(values)
        if values.get("stages"):
            values["stages"] = {name: _entry(block) for name, block in blocks.items()}
            if not blocks:
                self.note(("stages",), Finding("no stage can be read", self.source.place(("stages",)).key))
        values = _without_empty_blocks(values)
        try:
            config = RunConfig.model_validate(values)
        except ValidationError as error:
            found = mistakes.translate(
                error, model=RunConfig, values=values, prefix=(), source=self.source, homes=self.homes
            )
            for path, finding in found.items():
                self.note(path, finding)
            return None
        found = mistakes.number_given_as_boolean(config, values, prefix=(), source=self.source)
        self.found = found | self.found
        return config

    def misplaced_stages(self, values: dict[str, Any]) -> None:
        """Report blocks that look like a stage but stand beside `stages`, and take them out."""
        known = {*registry.kinds(), *self.specs}
        for key, value in list(values.items()):
            if key in RunConfig.model_fields:
                continue
            if key in known or (isinstance(value, dict) and "kind" in value):
                message = f"there is no key {key!r} at the top level of a run file"
                hint = f"stages.{key}: the block belongs under stages"
                self.note((key,), Finding(message, self.source.place((key,)).key, hint, "unknown-key"))
                del values[key]
            elif similar := close(key, self.specs, cutoff=0.75):
                if close(key, RunConfig.model_fields, cutoff=0.75):
                    continue
                message = f"there is no key {key!r} at the top level of a run file"
                hint = f"stages.{similar}"
                self.note((key,), Finding(message, self.source.place((key,)).key, hint, "unknown-key"))
                del values[key]

    def stage_config(
        self, name: str, spec: StageSpec, block: dict[str, Any], *, seed: int
    ) -> StrictModel | None:
        """Check a stage's own settings, merged over the run's, against its card."""
        own = {key: value for key, value in block.items() if key not in ENTRY_KEYS}
        prefix: KeyPath = ("stages", name)
        fields = spec.config_type.model_fields
        shared = {key: self.source.values[key] for key in SHARED if key in self.source.values} | {
            "seed": seed
        }
        run_level = _without_empty_blocks(
            {key: shared[key] for key in SHARED if key in shared and key in fields}
        )
        merged = _merge(run_level, _without_empty_blocks(own))
        try:
            config = spec.config_type.model_validate(merged)
        except ValidationError as error:
            found = mistakes.translate(
                error,
                model=spec.config_type,
                values=merged,
                prefix=prefix,
                source=self.source,
                homes=self.homes,
                entry_keys=ENTRY_KEYS,
            )
        else:
            found = mistakes.number_given_as_boolean(config, own, prefix=prefix, source=self.source)
            if not found:
                return config
        for path, finding in found.items():
            if not self.reported_above(path):
                self.note(path, finding)
        return None

    def reported_above(self, path: KeyPath) -> bool:
        """Tell whether a stage's mistake is the run level's own, which is reported there."""
        return path not in self.source.places and any(
            path[2 : 2 + length] in self.found for length in range(1, len(path) - 1)
        )

    def check_entry(self, name: str, spec: StageSpec, block: dict[str, Any]) -> None:
        """Check role names and gate names against the stage's card."""
        inputs = block.get("inputs")
        given = inputs if isinstance(inputs, dict) else {}
        meant: set[str | None] = set()
        for role in given:
            path = ("stages", name, "inputs", role)
            if role not in spec.inputs and not spec.extra_inputs:
                similar = close(role, spec.inputs)
                meant.add(similar)
                hint = similar or (f"one of {choices(spec.inputs)}" if spec.inputs else "")
                message = f"a {spec.kind} stage has no input {role!r}"
                self.note(path, Finding(message, self.source.place(path).key, hint, "unknown-input"))
        for role, slot in spec.inputs.items():
            if slot.required and role not in {*given, *meant, INHERITED_ROLE}:
                path = ("stages", name, "inputs", role)
                kinds = " or ".join(slot.kinds)
                message = f"stage {name} needs the input {role!r} ({kinds})"
                hint = f"inputs: {{{role}: a stage or a path}}"
                self.note(path, Finding(message, self.source.place(path).key, hint, "missing-input"))
        gate = block.get("gate")
        for bound in gate if isinstance(gate, dict) else ():
            self.check_gate(name, spec, bound)

    def check_gate(self, name: str, spec: StageSpec, bound: str) -> None:
        path = ("stages", name, "gate", bound)
        side, _, metric = bound.partition("_")
        if side not in ("min", "max") or not metric:
            message, hint = f"the gate {bound!r} is neither min_NAME nor max_NAME", f"min_{bound}"
        elif spec.metrics and metric not in spec.metrics:
            message = f"a {spec.kind} stage gives no metric {metric!r}"
            similar = close(metric, spec.metrics)
            hint = f"{side}_{similar}" if similar else f"one of {choices(spec.metrics)}"
        else:
            return
        self.note(path, Finding(message, self.source.place(path).key, hint, "bad-gate"))


def _own_processes(entry: StageEntry) -> dict[str, Any]:
    given = entry.accelerate.model_dump(mode="json", exclude_unset=True)
    return {"accelerate": given} if given else {}


def _entry(block: dict[str, Any]) -> dict[str, Any]:
    known = {key: block[key] for key in ENTRY_KEYS if key in block and block[key] is not None}
    return known | {"settings": {key: value for key, value in block.items() if key not in ENTRY_KEYS}}


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two mappings key by key, inner mappings too; the second one wins."""
    merged = dict(under)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _without_empty_blocks(values: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out blocks such as `model:` whose every line is commented out: they mean defaults."""
    return {key: value for key, value in values.items() if value is not None or key not in BLOCKS}


def _line(finding: Finding) -> tuple[str, int]:
    file, _, line = finding.where.rpartition(":")
    return (file, int(line)) if line.isdigit() else (finding.where, 0)
