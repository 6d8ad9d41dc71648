"""A tiny run whose stages are trained by one process or by two, and what the two results differ in."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file

from pipeline.cli.main import main
from pipeline.config.load import load_run
from pipeline.disk import Disk
from pipeline.fingerprint import model_digest
from pipeline.runner import Runner
from pipeline.store import Store
from tests.fakes.engine import InProcess, Recorder
from tests.pair_fixtures import preference_file, sft_adapter, toy_rows
from tests.ppo_setup import COUNTING_A, PROMPTS, adapter
from tests.sft_setup import demonstrations
from tests.tiny import tiny_model

COMMON = {
    "max_steps": 6,
    "logging_steps": 1,
    "save_steps": 2,
    "learning_rate": 1e-2,
    "per_device_train_batch_size": 4,
}
PPO = {
    "total_iterations": 3,
    "rollout_batch_size": 8,
    "num_mini_batches": 2,
    "num_ppo_epochs": 2,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-3,
    "max_new_tokens": 12,
    "max_length": 128,
    "target_kl": None,
    "logging_steps": 1,
    "save_steps": 1,
}
CLOCKS = ("tokens_per_second", "reference/seconds", "eps", "time")
"What no two runs share."
LONGEST_SECONDS = 240.0


def write_world(root: Path) -> Path:
    """Write models, data and run.yaml; return the folder."""
    root.mkdir(parents=True, exist_ok=True)
    base = tiny_model(root / "base")
    base = dataclasses.replace(base, fingerprint=model_digest(root / "base"))
    sft_adapter(base, root / "policy")
    adapter(root / "scorer", base, seed=2, scored=True)
    preference_file(root / "pairs.jsonl", toy_rows(60))
    demonstrations(root, rows=22)
    (root / "gold.py").write_text(COUNTING_A)
    (root / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS))
    (root / "corpus.txt").write_text("\n\n".join(f"{n} is a number, and so is {7 * n}." for n in range(90)))
    pairs = {"policy": "policy", "preferences": "pairs.jsonl"}
    held_out = {"eval_share": 0.25, "eval_steps": 3}
    stages = {
        "base_stage": {"kind": "pretrain", "inputs": {"text": "corpus.txt", "base": "base"}, **COMMON},
        "sft": {"kind": "sft", "inputs": {"demonstrations": "demonstrations.jsonl"}, **COMMON},
        "reward": {"kind": "reward", "inputs": dict(pairs), **COMMON, **held_out},
        "dpo": {"kind": "dpo", "inputs": dict(pairs), **COMMON, **held_out},
        "ppo": {
            "kind": "ppo",
            "inputs": {
                **{"policy": "policy", "reward": "scorer", "reward_function": "gold.py"},
                "prompts": "prompts.jsonl",
            },
            **PPO,
        },
    }
    stages["base_stage"] |= {"max_length": 32, "learning_rate": 1e-3}
    # Several micro-batches a step, and several batches of held-out pairs.
    stages["dpo"] |= {"micro_batch_tokens": 300}
    stages["sft"] |= {"eval_share": 0.2, "gradient_accumulation_steps": 2}
    run = {
        "name": "many",
        "seed": 1,
        "model": {"base": "base", "dtype": "float32"},
        "tuning": {"lora_r": 4, "lora_alpha": 8},
        "tracking": {"wandb": "off"},
        "stages": stages,
    }
    (root / "run.yaml").write_text(yaml.safe_dump(run, sort_keys=False))
    return root


def command(*words: str, store: str, until: str) -> list[str]:
    """Return the command that runs one stage of the world's run file."""
    program = [sys.executable, "-m", "pipeline.cli.main", "run", "run.yaml"]
    return [*program, *words, "--store", store, "--until", until]


def run(folder: Path, *words: str, store: str, until: str) -> subprocess.CompletedProcess[str]:
    """Run one stage and wait for it."""
    return subprocess.run(
        command(*words, store=store, until=until),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=LONGEST_SECONDS,
    )


def run_alone(folder: Path, *words: str, store: str, until: str) -> int:
    """Run one stage as one process, and as this one: imports are paid once."""
    held = Store(folder / store, disk=Disk())
    loaded = load_run(folder / "run.yaml", words)
    return Runner(loaded, held, Recorder(), until=[until], start=InProcess(Disk())).go()


def run_until_step(
    folder: Path, *words: str, store: str, until: str, step: int
) -> tuple[subprocess.Popen[str], dict[int, int]]:
    """Start one stage; return once metrics of a step are written, with the pids of its ranks."""
    child = subprocess.Popen(
        command(*words, store=store, until=until),
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while child.poll() is None:
        for path in (folder / store).glob("work/*/metrics.jsonl"):
            lines = path.read_text().splitlines()
            if lines and json.loads(lines[-1])["step"] >= step:
                return child, rank_pids(child.pid)
        time.sleep(0.02)
    raise AssertionError(child.communicate()[1])


def said_at_the_end(child: subprocess.Popen[str]) -> str:
    """Wait for a run and return what it said; ranks that wait for each other for ever are ended."""
    try:
        return child.communicate(timeout=LONGEST_SECONDS)[1]
    except subprocess.TimeoutExpired:
        child.kill()
        raise


def rank_pids(runner: int) -> dict[int, int]:
    """Return the processes of the ranks below a runner, by rank."""
    found = {}
    below = {runner}
    processes = sorted(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    for pid in processes:
        try:
            parent = parent_of(pid)
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if parent in below:
            below.add(pid)
            named = dict(item.split(b"=", 1) for item in variables if b"=" in item)
            if b"LOCAL_RANK" in named:
                found.setdefault(int(named[b"RANK"]), pid)
    return found


def parent_of(pid: int) -> int:
    """Return the process that started another."""
    return int(_status(pid)[1])


def is_alive(pid: int) -> bool:
    """Say whether a process runs; one that only waits to be asked how it ended does not."""
    try:
        return _status(pid)[0] != "Z"
    except OSError:
        return False


def _status(pid: int) -> list[str]:
    """Return state, parent and so on, from what Linux says of a process."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()


def end(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that the test started."""
    os.kill(pid, number)


def failure_of(folder: Path, store: str) -> dict[str, Any]:
    """Return failure.json of the only stage in work."""
    (path,) = (folder / store).glob("work/*/failure.json")
    return json.loads(path.read_text())


def stage_folder(folder: Path, store: str, stage: str) -> Path:
    """Return the folder of a committed stage."""
    held = Store(folder / store)
    return next(held.stage_folder(key) for key in held.keys() if held.load(key).stage == stage)  # noqa: SIM118


def lines_of(folder: Path, store: str, stage: str) -> list[dict[str, Any]]:
    """Return the metrics lines of a stage, without times."""
    text = (stage_folder(folder, store, stage) / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    return [
        {"step": line["step"], **{k: float(v) for k, v in line["metrics"].items() if k not in CLOCKS}}
        for line in lines
    ]


def assert_same_metrics(folder: Path, first: str, second: str, stage: str, *, within: float) -> None:
    """Check that every logged number of two stores is the same within a distance."""
    one, two = lines_of(folder, first, stage), lines_of(folder, second, stage)
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        apart = {name: (a[name], b[name]) for name in a if abs(a[name] - b[name]) > within}
        assert not apart, f"step {a['step']}: {apart}"


def weight_distance(folder: Path, first: str, second: str, stage: str) -> float:
    """Return the largest difference of a committed weight between two stores."""
    one, two = stage_folder(folder, first, stage), stage_folder(folder, second, stage)
    files = sorted(path.relative_to(one) for path in one.rglob("*.safetensors"))
    assert files == sorted(path.relative_to(two) for path in two.rglob("*.safetensors"))
    distance = 0.0
    for file in files:
        a, b = load_file(one / file), load_file(two / file)
        distance = max(distance, *(float((a[name] - b[name]).abs().max()) for name in a))
    return distance


def verified(folder: Path, store: str) -> bool:
    """Say whether every byte of the run is as its manifest says."""
    return main(["verify", "many", "--store", str(folder / store)]) == 0
