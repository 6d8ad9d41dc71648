"""A tiny chain for PPO tests: base, SFT adapter, reward model, prompts and a reward function."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.config.run import ModelConfig, TuningConfig
from pipeline.contract import ArtifactKind, Checkpoint
from stages.ppo import PPOConfig
from stages.runtime.adapters import named_adapter_parameters, new_adapter, save_adapter
from stages.runtime.loading import load_base, load_tokenizer
from stages.trainers.ppo import update as ppo_update
from stages.trainers.ppo.loop import gather
from stages.trainers.ppo.roles import Roles
from stages.trainers.ppo.setting import Setting, open_setting
from tests.tiny import as_checkpoint, stage_context, tiny_model

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


def weights(roles: Roles) -> dict[str, Tensor]:
    """Copy every weight that the roles hold."""
    held = {name: parameter.detach().clone() for name, parameter in roles.model.named_parameters()}
    head = () if roles.value_head is None else roles.value_head.named_parameters()
    return held | {f"head.{name}": parameter.detach().clone() for name, parameter in head}


def one_update(
    inputs: Mapping[str, Checkpoint], root: Path, **changes: Any
) -> tuple[Setting, dict[str, Tensor], dict[str, Tensor], ppo_update.UpdateSums]:
    """Run one iteration up to its update; return the setting, the weights before and after, and the sums."""
    ctx = stage_context(root, config(**changes), inputs)
    setting = open_setting(ctx)
    before = weights(setting.roles)
    rollouts, readings = gather(setting, 0)
    scores = rollouts.lengths.float().cos()
    targets = ppo_update.make_targets(readings, scores, rollouts.mask, ctx.config, kl_coef=0.05)
    optimizer = ppo_update.make_optimizer(setting.roles, ctx.config)
    sums = ppo_update.update(setting.roles, optimizer, rollouts, readings, targets, ctx.config, iteration=0)
    return setting, before, weights(setting.roles), sums


def largest_difference(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """Return the largest difference of a weight."""
    return max(float((first[name] - second[name]).abs().max()) for name in first)
