"""JSON schema of run files, for editors: completion, help texts and red underlines."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from pipeline import registry
from pipeline.config.load import BLOCKS, INHERITED_ROLE
from pipeline.config.run import RunConfig
from pipeline.contract import StageSpec

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_GATES = {
    "type": "object",
    "description": "min_NAME or max_NAME -> bound on a final metric; children wait for it.",
    "patternProperties": {"^(min|max)_": {"type": "number"}},
    "additionalProperties": False,
}


def run_schema() -> dict[str, Any]:
    """Return the JSON schema of a run file, with the settings of every known stage kind."""
    specs = [registry.find(kind) for kind in registry.kinds()]
    models: list[type[BaseModel]] = [RunConfig, *dict.fromkeys(spec.config_type for spec in specs)]
    references, shared = models_json_schema([(model, "validation") for model in models])
    definitions: dict[str, Any] = shared["$defs"]

    def definition(model: type[BaseModel]) -> dict[str, Any]:
        name = references[(model, "validation")]["$ref"].rsplit("/", 1)[1]
        found: dict[str, Any] = definitions[name]
        return found

    run = dict(definition(RunConfig))
    stages = {f"stage_{spec.kind}": _stage(spec, definition(spec.config_type)) for spec in specs}
    # A block whose every line is commented out is null, and means defaults.
    blocks = {name: {"anyOf": [run["properties"][name], {"type": "null"}]} for name in BLOCKS}
    run["properties"] = run["properties"] | blocks | {"stages": _stages([spec.kind for spec in specs])}
    return _without_marks(
        {"$schema": DIALECT, "title": "Triptych run file", **run, "$defs": definitions | stages}
    )


def _stages(kinds: list[str]) -> dict[str, Any]:
    """Return the schema of `stages`: a block by name, its shape chosen by its kind."""
    choose = [
        {
            "if": {"properties": {"kind": {"const": kind}}, "required": ["kind"]},
            "then": {"$ref": f"#/$defs/stage_{kind}"},
        }
        for kind in kinds
    ]
    return {
        "type": "object",
        "description": "The stages of the run by name; each runs when its inputs are there.",
        "minProperties": 1,
        "additionalProperties": {
            "type": "object",
            "required": ["kind"],
            "properties": {"kind": {"enum": kinds, "description": "Stage kind."}},
            "allOf": choose,
        },
    }


def _stage(spec: StageSpec, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of one stage's block: its settings beside kind, inputs, gate and accelerate."""
    roles = {
        role: {
            "type": "string",
            "description": f"{' or '.join(slot.kinds)}: a stage name or a path. {slot.help}".strip(),
        }
        for role, slot in spec.inputs.items()
    }
    required = [role for role, slot in spec.inputs.items() if slot.required and role != INHERITED_ROLE]
    inputs: dict[str, Any] = {"type": "object", "properties": roles, "required": required}
    inputs["additionalProperties"] = {"type": "string"} if spec.extra_inputs else False
    entry = {
        "kind": {"const": spec.kind, "description": spec.summary},
        "inputs": inputs,
        "gate": _GATES,
        "accelerate": {"anyOf": [{"$ref": "#/$defs/AccelerateConfig"}, {"type": "null"}]},
    }
    return {
        "type": "object",
        "description": spec.summary,
        "properties": entry | settings.get("properties", {}),
        "required": ["kind", *(["inputs"] if required else []), *settings.get("required", [])],
        "additionalProperties": False,
    }


def _without_marks(value: Any) -> Any:
    """Drop the engine's own field marks, which mean nothing to an editor."""
    if isinstance(value, dict):
        return {key: _without_marks(item) for key, item in value.items() if key != "in_key"}
    if isinstance(value, list):
        return [_without_marks(item) for item in value]
    return value
