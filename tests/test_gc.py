"""gc shows what may go, deletes on demand only, and never what a run, a pin or a child needs."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from pipeline import gc
from pipeline.cli.main import main
from pipeline.errors import BusyError, ExitCode, StoreError
from pipeline.locks import Holder, held
from pipeline.manifest import read_manifest
from tests.fakes.engine import VALUES, Engine


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """A store whose first result of `second` and `third` no run names any more."""
    engine = Engine(tmp_path / "work")
    engine.run_here()
    engine.run_here("second.rate=3")
    monkeypatch.setattr(gc, "YOUNGEST_SECONDS", 0.0)
    monkeypatch.chdir(engine.folder)
    return engine


def _old_keys(engine: Engine) -> set[str]:
    manifest = read_manifest(engine.store, "chain")
    return set(engine.store.keys()) - {status.key for status in manifest.stages.values()}


def test_only_what_no_run_names_may_go(engine: Engine) -> None:
    garbage = gc.find_garbage(engine.store)

    assert {item.path.name for item in garbage} == _old_keys(engine)
    assert len(garbage) == 2
    assert all(item.num_bytes > 0 for item in garbage)


def test_nothing_is_deleted_without_the_word(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(engine.store.keys())

    assert main(["gc", "--store", "store"]) == ExitCode.OK

    assert "may go: triptych gc --delete" in capsys.readouterr().out
    assert sorted(engine.store.keys()) == before


def test_deleted_stages_are_gone_and_the_run_is_whole(
    engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    old = _old_keys(engine)

    main(["gc", "--delete", "--store", "store"])

    assert not old & set(engine.store.keys())
    assert main(["verify", "chain", "--store", "store"]) == ExitCode.OK
    assert list((engine.folder / "store" / "tmp").iterdir()) == []
    # The run before can be made again.
    assert engine.run_here() == ExitCode.OK
    assert engine.values() == VALUES | {
        "second": engine.values()["second"],
        "third": engine.values()["third"],
    }


def test_a_pinned_stage_keeps_its_ancestors_too(engine: Engine) -> None:
    main(["gc", "--pin", "chain:third", "--note", "for the paper", "--store", "store"])
    (engine.store.run_folder("chain") / "manifest.json").unlink()

    assert {item.path.name for item in gc.find_garbage(engine.store)}.isdisjoint(
        gc.with_ancestors(engine.store, gc.read_pin(engine.folder / "store" / "pins" / "chain-third.json"))
    )
    assert len(gc.find_garbage(engine.store)) == 2

    main(["gc", "--unpin", "chain-third", "--store", "store"])
    assert len(gc.find_garbage(engine.store)) == 5


def test_a_young_stage_stays(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc, "YOUNGEST_SECONDS", 3600.0)

    assert gc.find_garbage(engine.store) == []


def test_nothing_may_go_while_a_manifest_cannot_be_read(engine: Engine) -> None:
    path = engine.store.run_folder("chain") / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b"complete", b"complEte", 1))

    with pytest.raises(StoreError, match="changed"):
        gc.find_garbage(engine.store)


def test_gc_refuses_while_a_run_is_at_work(engine: Engine) -> None:
    with (
        held(engine.store.lock_path("run-other"), Holder(1, "triptych run of 'other'", "now")),
        pytest.raises(BusyError, match="run of 'other'"),
        gc.alone(engine.store),
    ):
        pass


def test_unfinished_work_that_a_run_will_continue_stays(engine: Engine) -> None:
    engine.run_here("first.seed=9", "first.trouble=user")

    places = [item.path.relative_to(engine.store.root).parts[0] for item in gc.find_garbage(engine.store)]
    assert "work" not in places


def test_cached_results_go_when_nobody_used_them_for_long(
    engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = engine.store.shared_cache
    for name, days in (("a" * 64, 31), ("b" * 64, 29), (".tmp-1", 0)):
        (cache / name).mkdir(parents=True)
        (cache / name / "tensors.safetensors").write_bytes(b"x" * 100)
        then = time.time() - days * 86400 - 60
        os.utime(cache / name, (then, then))

    main(["gc", "--delete", "--store", "store"])

    assert [path.name for path in cache.iterdir()] == ["b" * 64]
    assert "cached result, unused for 31 days" in capsys.readouterr().out
