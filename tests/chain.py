"""The shipped demo, cut down to seconds: one run that several tests look at."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "configs" / "demo.yaml"
SMALL = (
    "base.max_steps=6",
    "base.architecture.hidden_size=32",
    "base.architecture.intermediate_size=64",
    "base.architecture.num_hidden_layers=2",
    "sft.max_steps=3",
    "reward.max_steps=3",
    "reward.gate.min_accuracy=0",
    "dpo.max_steps=2",
    "ppo.total_iterations=1",
    "ppo.rollout_batch_size=4",
    "ppo.max_new_tokens=8",
    "evaluate.max_prompts=6",
    "evaluate.max_new_tokens=8",
)
"Overrides under which the demo's seven stages take seconds each."


def triptych(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line in a folder, as a user would, without a terminal."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "160", "OMP_NUM_THREADS": "1"}
    environment.pop("WANDB_API_KEY", None)
    return subprocess.run(
        [sys.executable, "-P", "-m", "pipeline.cli.main", *words],
        cwd=folder,
        env=environment,
        text=True,
        capture_output=True,
        timeout=540,
        check=False,
    )


def small_demo(*words: str, folder: Path, command: str = "run") -> subprocess.CompletedProcess[str]:
    """Run the cut-down demo, with further overrides or options."""
    return triptych(command, str(DEMO), *SMALL, *words, folder=folder)
