"""The starter file loads as written, and every default in it is the default."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config.load import load_run
from pipeline.config.starter import DEFAULT_STAGES, starter
from pipeline.errors import ConfigError
from tests import fake_cards


def load(folder: Path, text: str):
    path = folder / "run.yaml"
    path.write_text(text)
    return load_run(path)


def uncommented(text: str) -> str:
    """Take the sign off every line that shows a default; help texts are indented further."""
    return re.sub(r"^( *)# (\w+: [^.])", r"\1\2", text, flags=re.MULTILINE)


def test_a_starter_of_the_default_stages_loads_and_wires_them(tmp_path):
    run = load(tmp_path, starter(name="mine", model="some/model"))

    assert tuple(run.config.stages) == DEFAULT_STAGES
    assert run.config.model.base == "some/model"
    assert run.config.stages["ppo"].inputs == {
        "policy": "sft",
        "reward": "reward",
        "prompts": "data/prompts.jsonl",
    }


def test_taking_the_sign_off_every_default_changes_nothing(tmp_path):
    text = starter(name="mine", model="some/model")

    plain, bare = load(tmp_path, text), load(tmp_path, uncommented(text))

    assert uncommented(text).count("\n") == text.count("\n")
    # Only inputs that may be left out stay behind the sign.
    left = re.findall(r"^ *# \w+: .*", uncommented(text), re.MULTILINE)
    assert all(": ...  # " in line for line in left)
    assert bare.resolved() == plain.resolved()


def test_every_setting_of_a_card_is_shown_once_and_named_again_later(monkeypatch):
    fake_cards.install(monkeypatch)

    text = starter(name="mine", model=None, stages=["sft", "dpo"])

    assert text.count("# learning_rate:") == 1
    assert "As explained above: learning_rate" in text
    assert "# beta: 0.1" in text
    assert "Strength of the pull to the reference." in text


def test_an_unknown_stage_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="kind: dpo"):
        starter(name="mine", model=None, stages=["ddpo"])


def test_init_never_writes_over_a_file(tmp_path):
    (tmp_path / "run.yaml").write_text("mine\n")

    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli.main", "init"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert "run.yaml is there already" in done.stderr
    assert (tmp_path / "run.yaml").read_text() == "mine\n"


def test_init_writes_a_file_that_loads(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli.main", "init", "my run.yaml", "--stages", "sft,dpo"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    run = load_run(tmp_path / "my run.yaml")
    assert run.config.name == "my-run"
    assert list(run.config.stages) == ["sft", "dpo"]
