"""Every damage is found and named; the tree of what a result was made from is complete."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipeline.canonical import sealed
from pipeline.errors import StoreError
from pipeline.fingerprint import DigestCache, file_digest
from pipeline.lineage import lineage, lines
from pipeline.manifest import read_manifest
from pipeline.store import Store
from pipeline.verify import verify_run, verify_stages
from tests.fakes.engine import Engine
from tests.faults.bit_flips import flip, unnoticed

FLIPS = 60
MANY_FLIPS = 500


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """A finished chain; tests copy it before they damage it."""
    engine = Engine(tmp_path_factory.mktemp("verify") / "work")
    engine.run_here()
    return engine


def _copy(finished: Engine, folder: Path) -> Store:
    shutil.copytree(finished.folder, folder)
    return Store(folder / "store")


def test_an_untouched_store_verifies_wherever_it_is_copied(finished: Engine, tmp_path: Path) -> None:
    store = _copy(finished, tmp_path / "copy")

    verdict = verify_run(store, "chain", hash_file=file_digest)

    assert verdict.findings == ()
    assert verdict.stages == 3
    assert verdict.not_checked == ()


@pytest.mark.parametrize("flips", [FLIPS, pytest.param(MANY_FLIPS, marks=pytest.mark.slow)])
def test_every_random_bit_flip_in_any_committed_file_is_found_and_named(
    finished: Engine, tmp_path: Path, flips: int
) -> None:
    store = _copy(finished, tmp_path / "copy")

    assert unnoticed(store, flips=flips) == []


@pytest.mark.parametrize("what", ["missing", "extra", "longer", "link", "swapped"])
def test_files_that_are_missing_extra_or_exchanged_are_named(
    finished: Engine, tmp_path: Path, what: str
) -> None:
    store = _copy(finished, tmp_path / "copy")
    key = next(store.keys())
    folder = store.stage_folder(key)
    path = folder / "model" / "model.safetensors"
    if what == "missing":
        path.unlink()
    elif what == "extra":
        (folder / "model" / "extra.json").write_text("{}")
    elif what == "longer":
        path.chmod(0o644)
        path.write_bytes(path.read_bytes() + b"\0")
    elif what == "link":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.unlink()
        shutil.copy(folder / "model" / "config.json", path)

    verdict = verify_stages(store, [key], hash_file=file_digest)

    expected = "extra.json" if what == "extra" else "model.safetensors"
    assert any(expected in str(finding) for finding in verdict.findings)


def test_a_forged_record_with_a_right_seal_still_contradicts_its_key(
    finished: Engine, tmp_path: Path
) -> None:
    store = _copy(finished, tmp_path / "copy")
    key = next(store.keys())
    path = store.stage_folder(key) / "record.json"
    document = json.loads(path.read_text())
    document["recipe"]["config"]["rate"] = 99.0
    path.chmod(0o644)
    path.write_bytes(sealed(document))

    (finding,) = verify_stages(store, [key], hash_file=file_digest).findings

    assert "the key is not the digest of the recipe" in finding.message


def test_a_result_of_another_parent_is_a_fault_of_lineage(finished: Engine, tmp_path: Path) -> None:
    store = _copy(finished, tmp_path / "copy")
    manifest = read_manifest(store, "chain")
    first, second = manifest.stages["first"].key, manifest.stages["second"].key
    assert first is not None
    assert second is not None
    path = store.stage_folder(second) / "record.json"
    document = json.loads(path.read_text())
    document["inputs"]["parent"]["producer_key"] = second
    path.chmod(0o644)
    path.write_bytes(sealed(document))

    findings = verify_stages(store, [second], hash_file=file_digest).findings

    assert [finding.code for finding in findings] == ["lineage"]


def test_a_changed_data_row_is_named_and_a_missing_file_is_said(finished: Engine, tmp_path: Path) -> None:
    store = _copy(finished, tmp_path / "copy")
    data = tmp_path / "copy" / "corpus.txt"
    flip(data, 3)

    (finding,) = verify_run(store, "chain", hash_file=file_digest).findings
    assert finding.code == "input-changed"
    assert finding.message == "first.text: corpus.txt changed since it was used"

    data.unlink()
    verdict = verify_run(store, "chain", hash_file=file_digest)
    assert verdict.findings == ()
    assert verdict.not_checked == ("first.text: corpus.txt is not here any more, or is a Hub model",)


def test_one_stage_is_verified_with_what_it_was_made_from(finished: Engine, tmp_path: Path) -> None:
    store = _copy(finished, tmp_path / "copy")

    assert verify_run(store, "chain", stage="second", hash_file=file_digest).stages == 2
    with pytest.raises(StoreError, match="no stage 'fourth'"):
        verify_run(store, "chain", stage="fourth", hash_file=file_digest)


def test_a_quick_look_sees_a_changed_size_without_reading(finished: Engine, tmp_path: Path) -> None:
    store = _copy(finished, tmp_path / "copy")
    key = next(store.keys())
    path = store.stage_folder(key) / "model" / "model.safetensors"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])

    verdict = verify_stages(store, [key], hash_file=DigestCache())

    assert "has" in verdict.findings[0].message
    assert "bytes in place of" in verdict.findings[0].message


def test_lineage_goes_down_to_the_users_file(finished: Engine) -> None:
    (tree,) = lineage(finished.store, "chain", "second")
    text = "\n".join(lines(tree))

    parent = tree.inputs[0]
    assert (parent.role, parent.name) == ("parent", "first")
    source = parent.inputs[0]
    assert (source.role, source.name) == ("text", "corpus.txt")
    assert source.fingerprint == file_digest(finished.folder / "corpus.txt")
    assert "settings: rate=2.0, seed=1" in text
    assert "environment: python 3." in text


def test_lineage_of_a_run_starts_at_the_stages_nobody_uses(finished: Engine) -> None:
    assert [tree.name for tree in lineage(finished.store, "chain")] == ["third"]
    document = json.loads(json.dumps(lineage(finished.store, "chain")[0].to_json()))
    assert {child["role"] for child in document["inputs"]} == {"parent", "other"}
