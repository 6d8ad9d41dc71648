"""Looks at this machine for what stops runs: packages, devices, disk, memory, clock. Loads no package."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Literal

Level = Literal["fine", "note", "fault"]
NEEDED = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "safetensors", "numpy")
DISTRIBUTION = "triptych-rlhf"
LEAST_DISK_BYTES = 5 * 2**30
LEAST_MEMORY_BYTES = 2 * 2**30
EARLIEST = 1_735_689_600.0
"2025-01-01: a clock before it was never set."
MOST_CLOCK_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Said:
    """One look: what it found, and what to do."""

    name: str
    level: Level
    text: str
    remedy: str = ""


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _requirements() -> list[str]:
    try:
        return metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return []


def _folder_of(package: str) -> Path | None:
    found = importlib.util.find_spec(package)
    return Path(found.origin).parent if found and found.origin else None


def _available_memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _file_time(folder: Path) -> float:
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        return Path(file.name).stat().st_mtime


@dataclass(frozen=True)
class Machine:
    """What is asked of the machine; tests give answers of their own."""

    store: Path
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    python: tuple[int, int] = sys.version_info[:2]
    version: Callable[[str], str | None] = _version
    requirements: Callable[[], list[str]] = _requirements
    which: Callable[[str], str | None] = shutil.which
    folder_of: Callable[[str], Path | None] = _folder_of
    free_disk: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free
    available_memory: Callable[[], int | None] = _available_memory
    now: Callable[[], float] = time.time
    file_time: Callable[[Path], float] = _file_time
    is_writable: Callable[[Path], bool] = lambda path: os.access(path, os.W_OK | os.X_OK)


def examine(machine: Machine) -> list[Said]:
    """Return every finding, in the order in which a person would mend them."""
    return [said for look in _LOOKS for said in look(machine)]


def _python(machine: Machine) -> list[Said]:
    text = f"Python {machine.python[0]}.{machine.python[1]}"
    if machine.python < (3, 11):
        return [Said("python", "fault", f"{text} is too old", "install Python 3.11 or newer")]
    return [Said("python", "fine", text)]


def _packages(machine: Machine) -> list[Said]:
    missing = [name for name in NEEDED if machine.version(name) is None]
    if missing:
        return [Said("packages", "fault", f"not installed: {', '.join(missing)}", "pip install -e .")]
    return [Said("packages", "fine", f"torch {machine.version('torch')}, trl {machine.version('trl')}")]


def _versions(machine: Machine) -> list[Said]:
    from packaging.requirements import Requirement

    wrong = []
    for text in machine.requirements():
        wanted = Requirement(text)
        installed = machine.version(wanted.name)
        if wanted.marker is not None or installed is None or wanted.specifier.contains(installed, True):
            continue
        wrong.append(f"{wanted.name} {installed} is not {wanted.specifier}")
    if wrong:
        return [Said("versions", "fault", "; ".join(wrong), "pip install -c constraints.txt -e .")]
    return [Said("versions", "fine", "as this version of Triptych was tested")]


def _cuda(machine: Machine) -> list[Said]:
    has_card, torch = machine.which("nvidia-smi") is not None, machine.version("torch") or ""
    if has_card and torch.endswith("+cpu"):
        text = f"there is an NVIDIA driver, but torch {torch} was built without CUDA"
        return [Said("cuda", "fault", text, "install a CUDA build of torch (pytorch.org/get-started)")]
    if not has_card:
        return [Said("cuda", "note", "no NVIDIA driver: stages run on the CPU")]
    return [Said("cuda", "fine", "NVIDIA driver found")]


def _bitsandbytes(machine: Machine) -> list[Said]:
    folder = machine.folder_of("bitsandbytes")
    if folder is None:
        text = "bitsandbytes is not installed: no qlora, no 8-bit optimizer"
        return [Said("bitsandbytes", "note", text, "pip install bitsandbytes")]
    if not any(folder.glob("libbitsandbytes_*")):
        text = "bitsandbytes is installed without its native library"
        return [Said("bitsandbytes", "fault", text, "pip install --force-reinstall bitsandbytes")]
    return [Said("bitsandbytes", "fine", "found with its native library")]


def _store(machine: Machine) -> list[Said]:
    folder = next(
        (path for path in (machine.store, *machine.store.absolute().parents) if path.is_dir()), None
    )
    if folder is None or not machine.is_writable(folder):
        text = f"{folder or machine.store} cannot be written"
        return [Said("store", "fault", text, "--store FOLDER, or change its owner or permissions")]
    found = [Said("store", "fine", f"{folder} can be written")]
    free = machine.free_disk(folder)
    if free < LEAST_DISK_BYTES:
        text = f"{free / 2**30:.1f} GiB free on the store's disk"
        found.append(Said("disk", "fault", text, "triptych gc, or a store on another disk"))
    else:
        found.append(Said("disk", "fine", f"{free / 2**30:.0f} GiB free"))
    if abs(machine.file_time(folder) - machine.now()) > MOST_CLOCK_SECONDS:
        text = "the store's disk and this machine disagree about the time"
        found.append(Said("clock", "fault", text, "let both use one time server (NTP)"))
    return found


def _clock(machine: Machine) -> list[Said]:
    if machine.now() < EARLIEST:
        return [Said("clock", "fault", "the clock stands before 2025", "set it, or start a time service")]
    return [Said("clock", "fine", "set")]


def _memory(machine: Machine) -> list[Said]:
    free = machine.available_memory()
    if free is not None and free < LEAST_MEMORY_BYTES:
        text = f"{free / 2**30:.1f} GiB of memory available"
        return [Said("memory", "fault", text, "end other programs, or use a smaller model: triptych plan")]
    return [Said("memory", "fine", "enough for small models" if free is None else f"{free / 2**30:.0f} GiB")]


def _hub(machine: Machine) -> list[Said]:
    environment = machine.environment
    home = environment.get("HF_HOME") or str(Path.home() / ".cache" / "huggingface")
    cache = Path(environment.get("HF_HUB_CACHE") or Path(home) / "hub")
    if environment.get("HF_HUB_OFFLINE") == "1" and not cache.is_dir():
        text = f"HF_HUB_OFFLINE is set and there is no cache in {cache}"
        return [Said("hub", "fault", text, "unset HF_HUB_OFFLINE, set HF_HUB_CACHE, or name local folders")]
    return [Said("hub", "fine" if cache.is_dir() else "note", f"cache {cache}")]


def _wandb(machine: Machine) -> list[Said]:
    if machine.environment.get("WANDB_API_KEY"):
        return [Said("wandb", "fine", "a key is set: runs are sent")]
    if machine.environment.get("WANDB_MODE") == "online":
        text = "WANDB_MODE is online, but WANDB_API_KEY is not set"
        return [Said("wandb", "fault", text, "export WANDB_API_KEY=..., or WANDB_MODE=offline")]
    return [Said("wandb", "note", "no key: offline files, sent later by wandb sync or triptych track")]


_LOOKS = (_python, _packages, _versions, _cuda, _bitsandbytes, _store, _clock, _memory, _hub, _wandb)
