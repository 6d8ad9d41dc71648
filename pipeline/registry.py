"""Stage kinds by name. A table of strings: nothing is imported until a kind is asked for."""

from __future__ import annotations

import difflib
import importlib
from importlib.metadata import entry_points

from pipeline.contract import StageSpec
from pipeline.errors import ConfigError

BUILT_IN = {
    "prepare": "stages.prepare",
    "pretrain": "stages.pretrain",
    "sft": "stages.sft",
    "reward": "stages.reward",
    "reward_encoder": "stages.reward_encoder",
    "dpo": "stages.dpo",
    "kto": "stages.kto",
    "grpo": "stages.grpo",
    "rloo": "stages.rloo",
    "ppo": "stages.ppo",
    "evaluate": "stages.evaluate",
    "sample": "stages.sample",
}
ENTRY_POINT_GROUP = "triptych.stages"


def kinds() -> list[str]:
    """Return every known stage kind, built-in and installed, sorted."""
    return sorted({*BUILT_IN, *(point.name for point in entry_points(group=ENTRY_POINT_GROUP))})


def find(kind: str) -> StageSpec:
    """Return the card of a stage kind.

    A kind is a name of the table above, the name of an installed entry point, or the
    dotted path of a module that holds a SPEC, such as `my_lab.rejection_sampling`.

    Raises:
        ConfigError: no such kind; the message names the closest one.
    """
    module_name = BUILT_IN.get(kind)
    if module_name is None:
        module_name = next((p.value for p in entry_points(group=ENTRY_POINT_GROUP) if p.name == kind), None)
    if module_name is None and "." in kind:
        return _outside(kind)
    if module_name is None:
        known = kinds()
        close = difflib.get_close_matches(kind, known, n=1)
        hint = f"kind: {close[0]}" if close else f"one of {', '.join(known)}"
        raise ConfigError(f"there is no stage kind {kind!r}", hint=hint, code="unknown-kind")
    spec = importlib.import_module(module_name).SPEC
    if not isinstance(spec, StageSpec):
        raise TypeError(f"{module_name}.SPEC is not a StageSpec")
    return spec


def _outside(module_name: str) -> StageSpec:
    """Import a stage that the run file names by its module."""
    try:
        spec = getattr(importlib.import_module(module_name), "SPEC", None)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"there is no stage kind {module_name!r}: {error}",
            hint="a dotted kind is a Python module; put its folder on PYTHONPATH",
            code="unknown-kind",
        ) from error
    if not isinstance(spec, StageSpec):
        raise ConfigError(f"module {module_name!r} defines no SPEC of type StageSpec", code="unknown-kind")
    return spec
