"""Every command of docs/memory.md does what it says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from pipeline.cli.main import main
from pipeline.config.run import TuningConfig
from pipeline.memory import moe
from pipeline.memory.families import _FAMILIES

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
LINES = [
    line
    for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("triptych")])
def test_a_command_of_the_page_succeeds(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    words = shlex.split(line, comments=True)[1:]
    store = ["--store", str(tmp_path / "store")] if words[0] == "plan" else []

    assert main([*words, *store]) == 0
    assert capsys.readouterr().out


def test_the_modules_that_the_page_runs_are_there():
    modules = re.findall(r"python -m ([\w.]+)", PAGE)

    assert modules == ["tests.benchmarks.compare_estimators", "tests.gpu.run"]
    assert all((ROOT / (name.replace(".", "/") + ".py")).is_file() for name in modules)


def test_every_key_of_tuning_and_every_family_stands_on_the_page():
    assert [name for name in TuningConfig.model_fields if f"`{name}`" not in PAGE] == []
    families = [*_FAMILIES, *moe.FAMILIES]
    assert [name for name in families if name not in PAGE.replace("gemma3", "gemma3 gemma3_text")] == []


def test_every_ready_run_file_stands_on_the_page():
    for file in (ROOT / "configs").glob("*b-*gb.yaml"):
        assert f"`configs/{file.name}`" in PAGE
