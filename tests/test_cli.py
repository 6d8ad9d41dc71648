"""The commands as a person meets them: words, exit codes, no traceback."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path

import pytest

from pipeline.cli.main import COMMANDS, main
from pipeline.errors import ExitCode
from tests.fakes.engine import CHAIN, Engine


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    engine = Engine(tmp_path / "work")
    monkeypatch.chdir(engine.folder)
    return engine


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_arguments_and_a_main(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(COMMANDS[name][0])

    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])

    assert caught.value.code == 0
    assert callable(module.main)
    assert COMMANDS[name][1] in capsys.readouterr().out


def test_without_a_command_the_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == ExitCode.OK

    told = capsys.readouterr().out
    assert all(name in told for name in COMMANDS)
    assert "exit codes" in told


def test_an_unknown_word_is_refused_with_the_commands_usage(engine: Engine) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["plan", engine.file.name, "--nonsense"])

    assert caught.value.code == ExitCode.USER_ERROR


def test_run_prints_tables_and_where_the_manifest_is(
    engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.run_here()

    assert main(["run", engine.file.name, "--store", "store"]) == ExitCode.OK

    told = capsys.readouterr()
    assert "Numbers" in told.out
    assert "made up" in told.out
    assert "manifest: store/runs/chain/manifest.json" in told.out
    assert told.err.splitlines() == ["first: reused", "second: reused", "third: reused"]


def test_a_dry_run_runs_nothing(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", engine.file.name, "--dry-run", "--store", "store"]) == ExitCode.OK

    assert "0 reused, 3 to run" in capsys.readouterr().out
    assert not (engine.folder / "store").exists()


def test_overrides_may_stand_before_and_behind_options(
    engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.run_here()

    main(["plan", engine.file.name, "second.rate=3", "--store", "store", "--json", "third.rate=4"])

    stages = {stage["name"]: stage for stage in json.loads(capsys.readouterr().out)["stages"]}
    assert stages["first"]["action"] == "reuse"
    assert stages["second"]["reason"] == "rate 2.0 -> 3.0"
    assert stages["third"]["parents"] == ["second", "first"]


def test_all_mistakes_come_in_few_lines_without_a_traceback(engine: Engine) -> None:
    engine.write(CHAIN.replace("rate: 2", "raet: 2").replace("corpus.txt", "corpse.txt"))

    answer = engine.command("run", engine.file.name)

    assert answer.returncode == ExitCode.USER_ERROR
    assert "Traceback" not in answer.stderr
    assert "chain.yaml:6" in answer.stderr
    assert "rate" in answer.stderr
    assert len(answer.stderr.splitlines()) < 10


def test_a_failed_stage_is_one_clear_message_and_the_exit_code_says_which_kind(engine: Engine) -> None:
    answer = engine.command("run", engine.file.name, "first.trouble=user", "--store", "store")

    assert answer.returncode == ExitCode.USER_ERROR
    assert "first: failed  data.jsonl:7: row 7 has no prompt" in answer.stderr
    assert "try: add one" in answer.stderr
    assert "Traceback" not in answer.stderr + answer.stdout


def test_verify_exits_1_and_names_the_file(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    engine.run_here()
    assert main(["verify", "chain", "--store", "store"]) == ExitCode.OK
    assert "3 stages" in capsys.readouterr().out
    path = engine.stage_folders()["second"] / "table" / "table.json"
    path.chmod(0o644)
    path.write_text("{}")

    for words in (["chain"], ["chain:second"], [engine.file.name], [], ["--quick"]):
        assert main(["verify", *words, "--store", "store"]) == ExitCode.STAGE_FAILED
        assert "table/table.json has 2 bytes in place of" in capsys.readouterr().out
    assert main(["verify", "chain:first", "--store", "store"]) == ExitCode.OK


def test_lineage_prints_a_tree_and_json(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    engine.run_here()

    main(["lineage", "chain:second", "--store", "store"])
    shown = capsys.readouterr().out
    assert "  parent: first" in shown
    assert "    computed with weights: float64" in shown
    main(["lineage", "chain:second", "--store", "store", "--json"])
    assert json.loads(capsys.readouterr().out)[0]["inputs"][0]["inputs"][0]["name"] == "corpus.txt"


def test_status_shows_states_and_an_attempt_whose_process_is_gone(
    engine: Engine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    child = os.fork()
    if child == 0:
        hooked = iter(range(10**6))
        engine.run_here(before=lambda *_: os._exit(9) if next(hooked) == 60 else None)
        os._exit(0)
    os.waitpid(child, 0)

    assert main(["status", "chain", "--store", "store"]) == ExitCode.OK
    assert "its process is gone; the same run command goes on" in capsys.readouterr().out

    engine.run_here()
    main(["status", "--store", "store"])
    assert "3 complete" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["status", "--store", "nowhere"], "there is no store here"),
        (["verify", "other", "--store", "store"], "there is no run 'other'"),
        (["lineage", "chain:", "--store", "store"], "is not RUN or RUN:STAGE"),
        (["run", "nofile.yaml"], "nofile.yaml"),
    ],
)
def test_a_mistaken_name_exits_2_and_says_what_there_is(
    engine: Engine, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    engine.run_here()

    assert main(arguments) == ExitCode.USER_ERROR
    assert words in capsys.readouterr().err


def test_a_folder_that_is_no_store_is_left_alone(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    (engine.folder / "photos").mkdir()
    (engine.folder / "photos" / "cat.jpg").write_text("")

    assert main(["run", engine.file.name, "--store", "photos"]) == ExitCode.USER_ERROR
    assert "not empty and is no store" in capsys.readouterr().err
    assert [path.name for path in (engine.folder / "photos").iterdir()] == ["cat.jpg"]
