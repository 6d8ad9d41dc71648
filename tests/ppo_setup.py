"""A tiny chain for PPO tests: base, SFT adapter, reward model, prompts and a reward function."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.config.run import ModelConfig, TuningConfig
from pipeline.contract import ArtifactKind, Checkpoint
from stages.ppo import PPOConfig
from stages.runtime.adapters import named_adapter_parameters, new_adapter, save_adapter
from stages.runtime.loading import load_base, load_tokenizer
from tests.tiny import as_checkpoint, tiny_model

TUNING = TuningConfig(lora_r=4, lora_alpha=8, target_modules="all-linear")
PROMPTS = ("Say a.", "What is it?", "Go on, please tell me more.", "Hi", "One two three.", "Why?")
COUNTING_A = "def score(prompt, response, row):\n    return float(response.count('a'))\n"


def adapter(
    folder: Path,
    base: Checkpoint,
    *,
    seed: int,
    scored: bool = False,
    tuning: TuningConfig = TUNING,
    spread: float = 0.05,
) -> Checkpoint:
    """Write an adapter whose both factors are random, with a random head when `scored`.

    `spread` is the deviation of the second factor, 0 in an adapter that was never trained.
    """
    model = new_adapter(load_base(base, ModelConfig(dtype="float32")), tuning, name="made", seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in named_adapter_parameters(model, "made"):
            if "lora_B" in name:
                parameter.normal_(std=spread, generator=generator)
    head = {"weight": torch.randn(1, model.config.hidden_size, generator=generator) * 0.2} if scored else None
    tokenizer = load_tokenizer(base, ModelConfig())
    save_adapter(model, folder, name="made", base=base, tokenizer=tokenizer, head=head)
    return as_checkpoint(folder, ArtifactKind.REWARD_MODEL if scored else ArtifactKind.ADAPTER)


def written(path: Path, text: str, kind: ArtifactKind) -> Checkpoint:
    """Write a text file and name it as an input."""
    path.write_text(text, encoding="utf-8")
    return as_checkpoint(path, kind)


def chain(root: Path, *, model_type: str = "llama", function: str = COUNTING_A, **changes: Any) -> dict:
    """Write every input of the ppo stage, reward model and reward function both, under `root`."""
    root.mkdir(parents=True, exist_ok=True)
    base = tiny_model(root / "base", model_type, **changes)
    prompts = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS)
    return {
        "base": base,
        "policy": adapter(root / "sft", base, seed=1),
        "reward": adapter(root / "reward", base, seed=2, scored=True),
        "reward_function": written(root / "gold.py", function, ArtifactKind.FUNCTION),
        "prompts": written(root / "prompts.jsonl", prompts, ArtifactKind.PROMPTS),
    }


def without(inputs: Mapping[str, Checkpoint], *roles: str) -> dict[str, Checkpoint]:
    """Return the inputs less some roles."""
    return {role: source for role, source in inputs.items() if role not in roles}


def config(**changes: Any) -> PPOConfig:
    """Make settings small enough for a test of a second."""
    settings = {
        "seed": 7,
        "tuning": TUNING,
        "model": ModelConfig(dtype="float32"),
        "total_iterations": 2,
        "rollout_batch_size": 8,
        "num_mini_batches": 2,
        "num_ppo_epochs": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "max_new_tokens": 12,
        "max_length": 128,
        "target_kl": None,
    }
    return PPOConfig(**{**settings, **changes})
