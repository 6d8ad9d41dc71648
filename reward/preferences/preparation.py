"""Runs preparation steps and records each: what went in, what came out, with digests of both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from pipeline.config.strict import StrictModel
from pipeline.errors import DataError
from reward.preferences.checks.structure import check_structure
from reward.preferences.mapping import Mapping, load_mapping
from reward.preferences.notes import RowNotes
from reward.preferences.records import PreferenceRecord
from reward.preferences.report import file_sha256
from reward.preferences.steps import Paraphrase, Step, draw_weighted
from reward.preferences.writers import json_line, read_records, record_to_json, write_text


class Ingredient(StrictModel):
    """One file of a mixture."""

    file: str
    "Path, relative to the recipe."
    map: str | None = None
    "Mapping file, relative to the recipe."
    weight: float = Field(1.0, gt=0)
    "How often each comparison is taken; 0.5 takes half of them, chosen by content and seed."


class Recipe(StrictModel):
    """What to mix and which steps to take, in order."""

    inputs: tuple[Ingredient, ...] = Field(min_length=1)
    steps: tuple[Step, ...] = ()
    seed: int = 0
    "Seed of every step that draws."


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What one step did."""

    step: dict[str, Any]
    comparisons_in: int
    comparisons_out: int
    sha256_in: str
    sha256_out: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """Prepared comparisons, and how they came to be."""

    records: list[PreferenceRecord]
    inputs: list[dict[str, Any]]
    steps: list[StepRecord]
    num_rejected: int

    def provenance(self) -> dict[str, Any]:
        """Return the account as JSON values."""
        return {
            "schema": "triptych/preparation",
            "schema_version": 1,
            "inputs": self.inputs,
            "steps": [asdict(step) for step in self.steps],
            "rows_rejected": self.num_rejected,
            "comparisons": len(self.records),
            "sha256": records_sha256(self.records),
        }


def prepare(recipe: Recipe, *, folder: Path) -> Prepared:
    """Read, mix and prepare; the same recipe and files give the same bytes.

    Args:
        recipe: files and steps.
        folder: where relative paths of the recipe begin.

    Raises:
        DataError: a file cannot be read, a step does not fit, or a step leaves an unusable comparison.
    """
    records: list[PreferenceRecord] = []
    inputs: list[dict[str, Any]] = []
    num_rejected = 0
    for ingredient in recipe.inputs:
        path = folder / ingredient.file
        mapping = load_mapping(folder / ingredient.map) if ingredient.map else Mapping()
        found, rejected = read_records(path, mapping)
        taken = list(draw_weighted(found, ingredient.weight, recipe.seed))
        num_rejected += rejected
        inputs.append(
            {
                "file": ingredient.file,
                "sha256": file_sha256(path),
                "weight": ingredient.weight,
                "comparisons": len(found),
                "taken": len(taken),
                "rows_rejected": rejected,
            }
        )
        records += taken
    return _with_steps(records, recipe, inputs, num_rejected)


def _with_steps(
    records: list[PreferenceRecord], recipe: Recipe, inputs: list[dict[str, Any]], num_rejected: int
) -> Prepared:
    done: list[StepRecord] = []
    before = records_sha256(records)
    for step in recipe.steps:
        changed = list(step.apply(records, recipe.seed))
        _check_usable(changed, step.step)
        after = records_sha256(changed)
        done.append(StepRecord(_described(step), len(records), len(changed), before, after))
        records, before = changed, after
    return Prepared(records, inputs, done, num_rejected)


def _described(step: Step) -> dict[str, Any]:
    """Return a step's settings; of a function of the user's also what its file held."""
    described = step.model_dump(mode="json")
    if isinstance(step, Paraphrase):
        file, _, _ = step.function.rpartition(":")
        described["function_sha256"] = file_sha256(Path(file))
    return described


def _check_usable(records: Sequence[PreferenceRecord], name: str) -> None:
    for record in records:
        notes = RowNotes()
        check_structure(record, notes)
        if notes.rejections:
            first = notes.rejections[0]
            raise DataError(
                f"the step {name} leaves {first.message}",
                where=f"{record.meta.get('source_file', '')}:{record.line}",
                code="bad-step",
            )


def records_sha256(records: Sequence[PreferenceRecord]) -> str:
    """Return the sha256 of records as they are written."""
    hashed = hashlib.sha256()
    for record in records:
        hashed.update(json_line(record_to_json(record)).encode())
    return hashed.hexdigest()


def write_prepared(prepared: Prepared, path: Path) -> Path:
    """Write the comparisons, and their account beside them; return the account's path."""
    write_text(path, "".join(json_line(record_to_json(record)) for record in prepared.records))
    account = path.with_suffix(".provenance.json")
    write_text(account, json.dumps(prepared.provenance(), indent=1) + "\n")
    return account
