"""Each simulated fault of a machine is named with its remedy, and a sound machine has none."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from pipeline.cli.main import main
from pipeline.doctor import NEEDED, Machine, examine

NOW = 1_790_000_000.0


@pytest.fixture
def sound(tmp_path):
    """A machine on which nothing is wrong."""
    library = tmp_path / "bnb"
    library.mkdir()
    (library / "libbitsandbytes_cpu.so").touch()
    (tmp_path / "hub").mkdir()
    versions = dict.fromkeys(NEEDED, "1.0")
    return Machine(
        tmp_path,
        environment={"HF_HUB_CACHE": str(tmp_path / "hub"), "WANDB_API_KEY": "x"},
        version=versions.get,
        requirements=lambda: ["trl>=1,<2", "mlflow>=3; extra == 'mlflow'"],
        which=lambda _: "/usr/bin/nvidia-smi",
        folder_of=lambda _: library,
        free_disk=lambda _: 10**12,
        available_memory=lambda: 10**11,
        now=lambda: NOW,
        file_time=lambda _: NOW,
        is_writable=lambda _: True,
    )


def without(name):
    return {key: "1.0" for key in NEEDED if key != name}.get


FAULTS = {
    "old python": ({"python": (3, 9)}, "python", "3.11"),
    "no torch": ({"version": without("torch")}, "packages", "pip install"),
    "wrong version": ({"requirements": lambda: ["trl>=2"]}, "versions", "constraints"),
    "no cuda build": ({"version": lambda _: "1.0+cpu"}, "cuda", "CUDA build"),
    "no native library": (
        {"folder_of": lambda _: __import__("pathlib").Path("/nonexistent")},
        "bitsandbytes",
        "",
    ),
    "no permission": ({"is_writable": lambda _: False}, "store", "permissions"),
    "disk full": ({"free_disk": lambda _: 10**8}, "disk", "triptych gc"),
    "little memory": ({"available_memory": lambda: 10**8}, "memory", "triptych plan"),
    "clock never set": ({"now": lambda: 5.0, "file_time": lambda _: 5.0}, "clock", "time service"),
    "clocks disagree": ({"file_time": lambda _: NOW + 3600}, "clock", "NTP"),
    "offline without a cache": (
        {"environment": {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": "/nonexistent", "WANDB_API_KEY": "x"}},
        "hub",
        "HF_HUB_OFFLINE",
    ),
    "online without a key": ({"environment": {"WANDB_MODE": "online"}}, "wandb", "WANDB_API_KEY"),
}


def test_a_sound_machine_has_no_fault(sound):
    assert [said for said in examine(sound) if said.level != "fine"] == []


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_alone_and_with_its_remedy(sound, name):
    changes, where, remedy = FAULTS[name]

    (fault,) = [said for said in examine(replace(sound, **changes)) if said.level == "fault"]

    assert fault.name == where
    assert remedy in fault.remedy
    assert fault.remedy


def test_what_is_merely_absent_is_a_note(sound):
    found = examine(replace(sound, which=lambda _: None, folder_of=lambda _: None, environment={}))

    assert {said.name for said in found if said.level == "note"} >= {"cuda", "bitsandbytes", "wandb"}
    assert not [said for said in found if said.level == "fault"]


def test_the_command_loads_no_heavy_package(tmp_path):
    code = (
        "import sys; from pipeline.cli.main import main; main(['doctor']); "
        "print(sorted({'torch', 'transformers', 'bitsandbytes', 'wandb'} & set(sys.modules)))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )

    assert done.stdout.splitlines()[-1] == "[]"


def test_this_machine_can_be_examined(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    code = main(["doctor"])

    assert code in (0, 1)
    assert "fault" in capsys.readouterr().out.splitlines()[-1]
