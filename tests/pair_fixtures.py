"""A small SFT adapter and preference files for the tests of the pair stages."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch

from pipeline.config.run import ModelConfig, TuningConfig
from pipeline.contract import ArtifactKind, Checkpoint
from stages.runtime.adapters import load_adapter, named_adapter_parameters, new_adapter, save_adapter
from stages.runtime.loading import load_base, load_tokenizer
from stages.trainers.pair_data import TokenPair
from tests.tiny import as_checkpoint

FP32 = ModelConfig(dtype="float32")
TUNING = TuningConfig(lora_r=4, lora_alpha=8)


def sft_adapter(
    base: Checkpoint, folder: Path, *, seed: int = 1, scale: float = 0.05, tuning: TuningConfig = TUNING
) -> Checkpoint:
    """Write an adapter whose B weights are random, as if an SFT stage had trained it."""
    model = new_adapter(load_base(base, FP32), tuning, name="policy", seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in named_adapter_parameters(model, "policy"):
            if ".lora_B." in key:
                parameter.normal_(std=scale, generator=generator)
    save_adapter(model, folder, name="policy", base=base, tokenizer=load_tokenizer(base, FP32))
    return as_checkpoint(folder, ArtifactKind.ADAPTER, producer="sft")


def reopen(
    base: Checkpoint, adapter: Checkpoint, *, name: str = "default", tuning: TuningConfig | None = None
) -> Any:
    """Open a stored adapter on a fresh base, trainable."""
    return load_adapter(load_base(base, FP32, tuning), adapter, name=name, trainable=True)


def toy_rows(count: int, *, seed: int = 0, shuffled: bool = False) -> list[dict[str, Any]]:
    """Make pairs that one word decides: the better answer says "yes", the worse one "no".

    With `shuffled` a coin decides which side is called better.
    """
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        # Prompts share few three-word runs, so that the split by near-duplicates keeps them apart.
        words = [f"{rng.choice('bdfgklmnprst')}{rng.choice('aeiou')}{rng.randrange(100)}" for _ in range(4)]
        good, bad = (f"{answer} {rng.choice(['sir', 'ok', 'so'])}" for answer in ("yes", "no"))
        if shuffled and rng.random() < 0.5:
            good, bad = bad, good
        rows.append({"prompt": f"{number} {' '.join(words)}", "chosen": good, "rejected": bad})
    return rows


def preference_file(path: Path, rows: list[dict[str, Any]]) -> Checkpoint:
    """Write rows as JSON Lines and return them as an input."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return as_checkpoint(path, ArtifactKind.PREFERENCES)


def token_pairs(count: int, *, seed: int = 0, vocabulary: int = 261) -> list[TokenPair]:
    """Make random pairs; every third shares its prompt with the one before, one shares an answer."""
    rng = random.Random(seed)
    draw = lambda low, high: tuple(rng.randrange(5, vocabulary) for _ in range(rng.randint(low, high)))  # noqa: E731
    pairs: list[TokenPair] = []
    for number in range(count):
        prompt = pairs[-1].prompt if number % 3 == 2 else draw(2, 9)
        chosen = pairs[-1].rejected if number % 6 == 5 else (*draw(1, 7), 3)
        pairs.append(
            TokenPair(
                prompt=prompt,
                chosen=chosen,
                rejected=(*draw(1, 7), 3),
                label=rng.choice([1.0, 0.75, 0.5]),
                margin=rng.choice([0.0, 0.5]),
                weight=rng.choice([1.0, 0.5]),
                unit=number,
            )
        )
    return pairs
