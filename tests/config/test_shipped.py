"""Every shipped run file loads, and every setting of every card explains itself."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from pydantic import BaseModel

from pipeline import registry
from pipeline.config.load import load_run
from pipeline.config.run import RunConfig
from pipeline.config.suggest import inner_model

ROOT = Path(__file__).parents[2]
RUN_FILES = sorted((ROOT / "configs").glob("*.yaml"))
KINDS = [kind for kind, module in registry.BUILT_IN.items() if find_spec(module)]


def fields_of(model: type[BaseModel]) -> Iterator[tuple[str, str | None]]:
    for name, field in model.model_fields.items():
        yield f"{model.__name__}.{name}", field.description
        inner = inner_model(field.annotation)
        if inner is not None:
            yield from fields_of(inner)


@pytest.mark.parametrize("path", RUN_FILES, ids=lambda path: path.stem)
def test_a_shipped_run_file_loads(path):
    run = load_run(path)

    assert set(run.stage_configs) == set(run.config.stages)


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_of_a_card_has_a_help_text(kind):
    spec = registry.find(kind)

    silent = [name for name, text in fields_of(spec.config_type) if not (text or "").strip()]
    assert silent == []
    assert spec.summary
    assert spec.kind == kind


def test_every_key_of_a_run_file_has_a_help_text():
    assert [name for name, text in fields_of(RunConfig) if not (text or "").strip()] == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_metric_that_a_gate_may_use_is_explained(kind):
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")

    silent = [name for name in registry.find(kind).metrics if f"`{name}`" not in page]
    assert silent == []
