"""Writes a starter run file: what must be filled in stands there, every default stands as a comment.

The text is made from the cards themselves, so it cannot fall behind them.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline import registry
from pipeline.config.load import INHERITED_ROLE
from pipeline.config.run import ModelConfig, RunConfig, TrackingConfig, TuningConfig
from pipeline.config.suggest import inner_model
from pipeline.contract import ArtifactKind, StageSpec
from pipeline.errors import ConfigError

WIDTH = 100
DATA = {
    ArtifactKind.DEMONSTRATIONS: "data/demonstrations.jsonl",
    ArtifactKind.PREFERENCES: "data/preferences.jsonl",
    ArtifactKind.PROMPTS: "data/prompts.jsonl",
    ArtifactKind.TEXT: "data/corpus.txt",
}
"Where a starter file looks for data of a kind."
DEFAULT_STAGES = ("sft", "reward", "dpo", "ppo", "evaluate")


def starter(*, name: str, model: str | None, stages: Sequence[str] = DEFAULT_STAGES) -> str:
    """Return the text of a run file with one stage of each kind, in the given order.

    Args:
        name: of the run.
        model: Hub id or local folder of the base model; None when a stage makes it.
        stages: kinds; a stage takes what the ones before it give.

    Raises:
        ConfigError: no such kind.
    """
    specs = [registry.find(kind) for kind in stages]
    if not specs:
        raise ConfigError("a run needs at least one stage", hint="--stages sft,dpo", code="no-stages")
    lines = [
        "# triptych plan FILE says what this run would do; triptych run FILE does it.",
        "# A line that begins with '# ' and a key shows the default; take the '# ' away to change it.",
        "",
        f"name: {json.dumps(name)}",
        *_setting("seed", RunConfig.model_fields["seed"], indent=""),
        "",
        "model:",
        *_block(ModelConfig, indent="  ", given={"base": model} if model else {}),
        "",
        "tuning:",
        *_block(TuningConfig, indent="  "),
        "",
        "tracking:",
        *_block(TrackingConfig, indent="  "),
        "",
        "stages:",
    ]
    shown: set[str] = {"seed", "model", "tuning"}
    for index, spec in enumerate(specs):
        lines += _stage(spec, specs[:index], shown)
    return "\n".join(lines) + "\n"


def _stage(spec: StageSpec, before: Sequence[StageSpec], shown: set[str]) -> Iterator[str]:
    """Yield a stage's block; settings that an earlier block explains are only named."""
    yield f"  {spec.kind}:  # {spec.summary}"
    yield f"    kind: {spec.kind}"
    inputs = list(_inputs(spec, before))
    if inputs:
        yield "    inputs:"
        yield from inputs
    fields = spec.config_type.model_fields
    repeated = [name for name in fields if name in shown]
    for name, field in fields.items():
        if name not in shown:
            yield from _setting(name, field, indent="    ")
    known = ("seed", "model", "tuning")
    again = [name for name in repeated if name not in known]
    if again:
        yield from _comment(f"As explained above: {', '.join(again)}.", "    ")
    shown |= set(fields)
    yield ""


def _inputs(spec: StageSpec, before: Sequence[StageSpec]) -> Iterator[str]:
    for role, slot in spec.inputs.items():
        source = _source(slot.kinds, before)
        wanted = slot.required or (role in {earlier.kind for earlier in before})
        if role == INHERITED_ROLE:
            continue
        if source is None or not wanted:
            yield f"      # {role}: ...  # {slot.help}"
        else:
            yield f"      {role}: {source}  # {slot.help}"
    if spec.extra_inputs:
        for earlier in before:
            if any(kind in spec.extra_inputs for kind in earlier.outputs.values()):
                yield f"      {earlier.kind}: {earlier.kind}"


def _source(kinds: Sequence[ArtifactKind], before: Sequence[StageSpec]) -> str | None:
    """Return the first earlier stage that gives one of the kinds, else a place for data."""
    for earlier in before:
        if any(kind in kinds for kind in earlier.outputs.values()):
            return earlier.kind
    return next((DATA[kind] for kind in kinds if kind in DATA), None)


def _block(model: type[BaseModel], *, indent: str, given: dict[str, Any] | None = None) -> Iterator[str]:
    given = given or {}
    for name, field in model.model_fields.items():
        if name in given:
            yield from _comment(field.description or "", indent)
            yield f"{indent}{name}: {json.dumps(given[name])}"
        else:
            yield from _setting(name, field, indent=indent)


def _setting(name: str, field: FieldInfo, *, indent: str) -> Iterator[str]:
    """Yield the help text and the default of a setting, both as comments."""
    yield from _comment(field.description or "", indent)
    inner = inner_model(field.annotation)
    if field.is_required():
        yield f"{indent}{name}: ...  # must be set"
    elif inner is not None and isinstance(field.get_default(call_default_factory=True), inner):
        yield f"{indent}# {name}:"
        yield from _block(inner, indent=f"{indent}#   ")
    else:
        yield f"{indent}# {name}: {_yaml(field.get_default(call_default_factory=True))}"


def _comment(text: str, indent: str) -> Iterator[str]:
    sign = "" if indent.lstrip().startswith("#") else "# "
    for line in textwrap.wrap(text, WIDTH - len(indent)):
        yield f"{indent}{sign}  {line}"


def _yaml(value: Any) -> str:
    """Return a default as one line of YAML, which JSON is."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(value, default=list, ensure_ascii=False)
