"""A run leaves as a folder that verifies by itself, and a hostile folder does not get in."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.canonical import sealed
from pipeline.cli.main import main
from pipeline.errors import ExitCode, StoreError
from pipeline.fingerprint import file_digest, stage_key
from pipeline.portable import export_run, import_run
from pipeline.store import Store
from pipeline.verify import verify_run
from tests.fakes.engine import VALUES, Engine


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that export_run made."""
    engine = Engine(tmp_path_factory.mktemp("portable") / "work")
    engine.run_here()
    export_run(engine.store, "chain", engine.folder / "out")
    return engine.folder / "out"


@pytest.fixture
def hostile(exported: Path, tmp_path: Path) -> Path:
    """A copy to tamper with."""
    return Path(shutil.copytree(exported, tmp_path / "hostile"))


def test_an_exported_run_verifies_by_itself_and_names_no_place(exported: Path) -> None:
    verdict = verify_run(Store(exported), "chain", hash_file=file_digest)

    assert (verdict.stages, verdict.findings) == (3, ())
    for path in exported.rglob("*"):
        # The resolved configuration holds what the user wrote, paths too.
        if path.is_file() and path.name != "config.lock.json":
            assert str(exported.parent) not in path.read_text()


def test_an_imported_run_is_reused_by_the_next_run(exported: Path, tmp_path: Path) -> None:
    engine = Engine(tmp_path / "work")

    assert import_run(engine.store, exported, rename="colleague") == ("colleague", 3)

    assert engine.run_here() == ExitCode.OK
    assert engine.tally == []
    assert engine.values() == VALUES


def test_a_second_import_adds_nothing_and_wants_another_name(exported: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    import_run(store, exported)

    with pytest.raises(StoreError, match="there is a run 'chain' already"):
        import_run(store, exported)
    assert import_run(store, exported, rename="again") == ("again", 0)


def test_a_damaged_run_is_not_exported(tmp_path: Path) -> None:
    engine = Engine(tmp_path / "work")
    engine.run_here()
    path = engine.stage_folders()["first"] / "model" / "config.json"
    path.chmod(0o644)
    path.write_text("{}")

    with pytest.raises(StoreError, match=r"config\.json"):
        export_run(engine.store, "chain", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _stage(folder: Path, name: str = "first") -> Path:
    return next(
        path.parent for path in folder.rglob("record.json") if json.loads(path.read_text())["stage"] == name
    )


def _forge(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the record of a stage and seal it again, as an attacker would."""
    path = _stage(folder) / "record.json"
    document = json.loads(path.read_text())
    change(document)
    path.chmod(0o644)
    path.write_bytes(sealed(document))


def _first_file(document: dict[str, Any]) -> dict[str, Any]:
    return document["outputs"]["model"]["files"][0]


def _climbing_name(folder: Path) -> None:
    _forge(folder, lambda document: _first_file(document).update(path="../../../evil.json"))


def _absolute_name(folder: Path) -> None:
    _forge(folder, lambda document: _first_file(document).update(path="/tmp/evil.json"))


def _link_to_a_secret(folder: Path) -> None:
    path = _stage(folder) / "model" / "config.json"
    path.unlink()
    path.symlink_to("/etc/passwd")


def _folder_link(folder: Path) -> None:
    (folder / "stages" / "zz").symlink_to("/etc")


def _changed_bytes(folder: Path) -> None:
    path = _stage(folder) / "model" / "model.safetensors"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")


def _endless_file(folder: Path) -> None:
    path = _stage(folder) / "model" / "model.safetensors"
    path.unlink()
    with path.open("wb") as stream:
        stream.truncate(2**40)


def _pipe_in_place_of_a_file(folder: Path) -> None:
    path = _stage(folder) / "model" / "config.json"
    path.unlink()
    os.mkfifo(path)


def _pickle(folder: Path) -> None:
    stage = _stage(folder)
    (stage / "model" / "weights.bin").write_bytes(b"\x80\x04.")
    digest = file_digest(stage / "model" / "weights.bin")

    def add(document: dict[str, Any]) -> None:
        document["files"].append({"path": "model/weights.bin", "size": 3, "sha256": digest})

    _forge(folder, add)


def _foreign_recipe(folder: Path) -> None:
    _forge(folder, lambda document: document["recipe"]["config"].update(seed=666))


def _key_that_climbs(folder: Path) -> None:
    path = folder / "runs" / "chain" / "manifest.json"
    document = json.loads(path.read_text())
    document["stages"]["first"]["key"] = "../../../../etc"
    path.write_bytes(sealed(document))


def _run_name_that_climbs(folder: Path) -> None:
    path = folder / "runs" / "chain" / "manifest.json"
    document = json.loads(path.read_text())
    document["name"] = "../../evil"
    path.write_bytes(sealed(document))


def _escape_sequence(folder: Path) -> None:
    _forge(folder, lambda document: document.update(notes=["\x1b]0;owned\x07"]))


def _deep_json(folder: Path) -> None:
    path = folder / "runs" / "chain" / "manifest.json"
    path.write_bytes(b'{"a":' * 100_000 + b"1" + b"}" * 100_000)


def _huge_json(folder: Path) -> None:
    path = folder / "runs" / "chain" / "manifest.json"
    with path.open("wb") as stream:
        stream.truncate(2**33)


def _two_keys(folder: Path) -> None:
    path = folder / "runs" / "chain" / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"name"', b'"name": "x", "name"', 1))


def _newer_store(folder: Path) -> None:
    (folder / "STORE.json").write_bytes(sealed({"type": "stage-store", "version": 99}))


def _points_to_another_store(folder: Path) -> None:
    (folder / "shared-stores.txt").write_text("/\n")


def _other_config(folder: Path) -> None:
    (folder / "runs" / "chain" / "config.yaml").write_text("name: chain\n")


ATTACKS = (
    *(_climbing_name, _absolute_name, _link_to_a_secret, _folder_link, _changed_bytes, _endless_file),
    *(_pipe_in_place_of_a_file, _pickle, _foreign_recipe, _key_that_climbs, _run_name_that_climbs),
    *(_escape_sequence, _deep_json, _huge_json, _two_keys, _newer_store, _other_config),
    _points_to_another_store,
)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__.strip("_"))
def test_a_hostile_folder_is_refused_and_leaves_nothing_behind(
    hostile: Path, tmp_path: Path, attack: Callable[[Path], None]
) -> None:
    attack(hostile)
    store = Store(tmp_path / "victim" / "store")

    with pytest.raises(StoreError):
        import_run(store, hostile)

    written = [path.name for path in tmp_path.rglob("*") if "hostile" not in path.parts and path.is_file()]
    assert "evil.json" not in written
    assert "manifest.json" not in written
    stages = list((store.root / "stages").rglob("record.json")) if store.exists() else []
    assert all(stage.parent.name == stage_key(store.load(stage.parent.name).recipe) for stage in stages)
    assert not [path for path in (store.root / "tmp").glob("*")]


def test_the_commands_say_where_the_run_is_and_how_to_take_it_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = Engine(tmp_path / "work")
    engine.run_here()
    monkeypatch.chdir(engine.folder)

    assert main(["export-run", "chain", "out", "--store", "store"]) == ExitCode.OK
    assert "triptych import-run out" in capsys.readouterr().out
    assert main(["import-run", "out", "--store", "other"]) == ExitCode.OK
    assert main(["verify", "chain", "--store", "other"]) == ExitCode.OK
    assert main(["export-run", "chain", "out", "--store", "store"]) == ExitCode.USER_ERROR
