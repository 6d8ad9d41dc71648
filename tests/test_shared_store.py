"""Stores of others: their stages are taken, nothing is written there, and what is damaged is made anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cli.main import main
from pipeline.errors import ExitCode, StoreError
from pipeline.store import Store
from tests.fakes.engine import VALUES, Engine

Listing = dict[str, tuple[int, int]]


@pytest.fixture
def theirs(tmp_path: Path) -> Engine:
    """A finished run in somebody else's store."""
    engine = Engine(tmp_path / "theirs")
    assert engine.run_here() == ExitCode.OK
    return engine


@pytest.fixture
def mine(theirs: Engine, tmp_path: Path) -> Engine:
    """The same run file and an empty store that knows of theirs."""
    engine = Engine(tmp_path / "mine")
    engine.store.create()
    engine.store.share([theirs.store.root], remember=True)
    return engine


def _listing(store: Store) -> Listing:
    entries = {str(path): path.lstat() for path in store.root.rglob("*")}
    return {name: (status.st_size, status.st_mtime_ns) for name, status in entries.items()}


def test_what_lies_in_a_shared_store_is_not_made_again(theirs: Engine, mine: Engine) -> None:
    before = _listing(theirs.store)

    assert mine.run_here() == ExitCode.OK

    assert mine.tally == []
    assert list(mine.store.keys()) == []
    assert mine.display.now() == dict.fromkeys(VALUES, "reused")
    assert _listing(theirs.store) == before


def test_only_what_differs_is_made_and_lies_here(theirs: Engine, mine: Engine) -> None:
    before = _listing(theirs.store)

    assert mine.run_here("third.rate=4") == ExitCode.OK

    # third = 1 + 17 + 10 + 3 * 4
    assert mine.values() == {"third": 40.0}
    assert _listing(theirs.store) == before


def test_commands_see_through_to_the_shared_store(
    theirs: Engine,
    mine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    mine.run_here("third.rate=4")
    store = ["--store", str(mine.store.root)]

    assert main(["verify", "chain", *store]) == ExitCode.OK
    assert "3 stages" in capsys.readouterr().out
    assert main(["lineage", "chain:third", *store]) == ExitCode.OK
    assert "not in this store" not in capsys.readouterr().out
    assert main(["status", "chain", *store]) == ExitCode.OK
    assert capsys.readouterr().out.count("shared store") == 2


def test_an_exported_run_holds_the_shared_stages_too(mine: Engine, tmp_path: Path) -> None:
    mine.run_here()

    assert main(["export-run", "chain", str(tmp_path / "out"), "--store", str(mine.store.root)]) == 0

    assert len(list(Store(tmp_path / "out").keys())) == len(VALUES)
    assert not (tmp_path / "out" / "shared-stores.txt").exists()


def test_a_damaged_shared_stage_is_made_here_and_left_alone_there(theirs: Engine, mine: Engine) -> None:
    damaged = theirs.stage_folders()["second"] / "model" / "model.safetensors"
    damaged.chmod(0o644)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\xff")
    before = _listing(theirs.store)

    assert mine.run_here() == ExitCode.OK

    assert mine.values() == {"second": VALUES["second"]}
    assert any("is damaged and is made again" in line for line in mine.display.said)
    assert _listing(theirs.store) == before


def test_a_flag_names_shared_stores_and_the_store_remembers_them(
    theirs: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = Engine(tmp_path / "other")
    monkeypatch.chdir(engine.folder)
    tally = [f"{name}.tally={theirs.folder / 'tally.txt'}" for name in VALUES]
    words = [engine.file.name, *tally, "--store", "store", "--shared-store", str(theirs.store.root)]

    assert main(["plan", *words]) == ExitCode.OK
    assert not (engine.folder / "store").exists()
    assert "3 reused, 0 to run" in capsys.readouterr().out
    assert main(["run", *words]) == ExitCode.OK
    assert main(["plan", *words[:-2]]) == ExitCode.OK
    assert "3 reused, 0 to run" in capsys.readouterr().out


def test_a_shared_store_that_is_not_there_is_one_clear_error(mine: Engine, tmp_path: Path) -> None:
    (mine.store.root / "shared-stores.txt").write_text("/nowhere/store\n")

    with pytest.raises(StoreError, match="the shared store /nowhere/store is not there") as caught:
        mine.run_here()

    assert "mount it" in caught.value.findings[0].hint
    with pytest.raises(StoreError, match="there is no store here"):
        mine.store.share([tmp_path / "nothing"], remember=True)


def test_gc_deletes_here_only(theirs: Engine, mine: Engine) -> None:
    mine.run_here("third.rate=4")
    before = _listing(theirs.store)

    assert main(["gc", "--delete", "--store", str(mine.store.root)]) == ExitCode.OK

    assert _listing(theirs.store) == before
