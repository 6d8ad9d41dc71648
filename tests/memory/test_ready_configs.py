"""Each ready run file fits the card that its head names, by the plan that a person would run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from pipeline.cli.main import main
from pipeline.memory.bases import SHIPPED, find_shape
from pipeline.memory.hardware_file import read_hardware
from tests.memory.shapes import config_only

FOLDER = Path(__file__).resolve().parents[2] / "configs"
READY = sorted(FOLDER.glob("*b-*gb.yaml"))
_CARD = re.compile(r'--gpu "([^"]+)"')
_GIGABYTES = re.compile(r"# Hardware: one card of (\d+) GB")


def _config_of(base):
    name = base.rpartition("/")[2]
    rows = yaml.safe_load(SHIPPED.read_text())["bases"]
    return next(row["config"] for row in rows if row["name"] == name)


@pytest.mark.parametrize("file", READY, ids=lambda file: file.stem)
def test_a_ready_run_file_passes_the_plan_for_its_card(file, tmp_path, capsys):
    text = file.read_text()
    card = _CARD.search(text)[1]
    base = yaml.safe_load(text)["model"]["base"]
    folder = config_only(tmp_path / "base", _config_of(base))

    words = [f"model.base={folder}", "--gpu", card, "--store", str(tmp_path / "store"), "--json"]
    assert main(["plan", str(file), *words]) == 0

    stages = json.loads(capsys.readouterr().out)["memory"]["stages"]
    memory = next(one.memory_bytes for one in read_hardware().cards if one.name == card)
    assert {stage["stage"] for stage in stages} == set(yaml.safe_load(text)["stages"])
    for stage in stages:
        assert stage["fits"]
        # Also with a fragmented allocator: a ready file must not be a gamble.
        assert stage["total"]["high"] <= memory, (stage["stage"], stage["total"]["high"] / 2**30)


@pytest.mark.parametrize("file", READY, ids=lambda file: file.stem)
def test_the_head_names_a_known_card_of_that_size_and_the_file_itself(file):
    text = file.read_text()

    card = next(one for one in read_hardware().cards if one.name == _CARD.search(text)[1])
    assert round(card.memory_mib / 1024) == int(_GIGABYTES.search(text)[1])
    assert f"configs/{file.name}" in text
    assert find_shape(yaml.safe_load(text)["model"]["base"]).num_parameters > 0


def test_the_six_promised_files_are_there():
    assert [file.stem for file in READY] == [
        "0.5b-full-12gb",
        "1.5b-lora-ppo-16gb",
        "32b-qlora-dpo-48gb",
        "70b-qlora-80gb",
        "8b-qlora-dpo-16gb",
        "8b-qlora-ppo-24gb",
    ]
