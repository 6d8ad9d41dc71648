"""The statement names every published file, what it was made from and how, and no machine."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pipeline.cli.main import main
from pipeline.fingerprint import file_digest
from tests.fakes.engine import Engine


def test_a_statement_names_files_recipe_and_parents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = Engine(tmp_path / "work")
    engine.run_here()
    monkeypatch.chdir(engine.folder)

    main(["provenance", "chain", "--store", "store"])

    text = capsys.readouterr().out
    first, second, _ = map(json.loads, text.splitlines())
    record = engine.store.load(engine.stage_folders()["second"].name)
    assert first["_type"] == "https://in-toto.io/Statement/v1"
    assert first["predicateType"] == "https://slsa.dev/provenance/v1"
    subjects = {subject["name"]: subject["digest"]["sha256"] for subject in second["subject"]}
    assert sorted(subjects) == ["model/config.json", "model/model.safetensors", "table/table.json"]
    folder = engine.stage_folders()["second"]
    assert subjects["model/model.safetensors"] == file_digest(folder / "model" / "model.safetensors")
    definition = second["predicate"]["buildDefinition"]
    assert definition["externalParameters"]["recipe"] == record.recipe
    (parent,) = definition["resolvedDependencies"]
    assert parent["annotations"]["key"] == engine.stage_folders()["first"].name
    assert first["predicate"]["buildDefinition"]["resolvedDependencies"][0]["name"] == "corpus.txt"
    assert str(engine.folder) not in text
    assert os.uname().nodename not in text
