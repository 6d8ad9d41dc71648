"""Runs one micro-batch of TRL's own trainers, as the kto, grpo and rloo stages build them, and counts."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from pipeline import registry
from pipeline.config.run import ModelConfig, TuningConfig
from pipeline.contract import ArtifactKind, Checkpoint
from stages.trainers import group as group_module
from stages.trainers import kto as kto_module
from tests.memory.saved import Seen, watching
from tests.pair_fixtures import preference_file, sft_adapter
from tests.ppo_setup import written
from tests.tiny import stage_context, tiny_model

ROWS, NEW = 4, 24
_COUNTING = "def score(prompt, response, row):\n    return len(response) / 7\n"


class _Caught(Exception):
    """Carries the trainer out of a stage before its first step."""

    def __init__(self, trainer: Any) -> None:
        super().__init__("caught")
        self.trainer = trainer


def saved_by_kto(root: Path, model_type: str, sizes: dict[str, Any], **options: Any) -> Seen:
    """Padded rows of labelled responses, the loss of KTO; the KL term's and the reference's passes read."""
    return _saved("kto", root, model_type, sizes, options)


def saved_by_grpo(root: Path, model_type: str, sizes: dict[str, Any], **options: Any) -> Seen:
    """Sampled groups, the loss of GRPO."""
    return _saved("grpo", root, model_type, sizes, options)


def saved_by_rloo(root: Path, model_type: str, sizes: dict[str, Any], **options: Any) -> Seen:
    """Sampled groups, the loss of RLOO."""
    return _saved("rloo", root, model_type, sizes, options)


def open_trainer(
    kind: str, root: Path, base: Checkpoint, tuning: TuningConfig, *, dtype: str = "float32", **changes: Any
) -> Any:
    """Return the trainer that a stage has before its first step, TRL's own."""
    inputs = {"base": base, "policy": sft_adapter(base, root / "adapter", tuning=tuning)}
    shared = {"max_steps": 1, "per_device_train_batch_size": ROWS, "max_length": 128}
    if kind == "kto":
        inputs |= _labelled(root)
    else:
        inputs |= _prompts(root)
        shared |= {"num_generations": ROWS, "max_new_tokens": NEW}
    model = ModelConfig(dtype=dtype)
    config_type: Any = registry.find(kind).config_type
    config = config_type(model=model, tuning=tuning, **{**shared, **changes})
    return _caught(kind, stage_context(root / kind, config, inputs))


def _saved(kind: str, root: Path, model_type: str, sizes: dict[str, Any], options: dict[str, Any]) -> Seen:
    base = tiny_model(root / "base", model_type, **sizes)
    tuning = options.get("tuning") or TuningConfig(lora_r=8, lora_alpha=8)
    trainer = open_trainer(kind, root, base, tuning, dtype=options["dtype"])
    trainer.model.train()
    if tuning.gradient_checkpointing:
        # As transformers' trainer does when training begins.
        trainer.model.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer.current_gradient_accumulation_steps = 1
    with watching(options, trainer.model) as found:
        loss = trainer.compute_loss(trainer.model, batch)
        if options.get("peak"):
            loss.backward()
    rows, length = _sizes(kind, batch)
    # On a CPU the head takes every position but the last; on a GPU the answers' alone.
    return Seen(base.path, found["bytes"], rows * length, length, rows * (length - 1))


def _sizes(kind: str, batch: Any) -> tuple[int, int]:
    """Return the rows and the length of a padded batch."""
    if kind == "kto":
        rows, length = batch["input_ids"].shape
        return rows, length
    rows, prompt = batch["prompt_ids"].shape
    return rows, prompt + batch["completion_ids"].shape[1]


def _labelled(root: Path) -> dict[str, Checkpoint]:
    draw = random.Random(0)
    text = lambda count: "".join(draw.choice("abcdefgh") for _ in range(count))  # noqa: E731
    rows = [{"prompt": text(40), "completion": text(30), "label": n % 2 == 0} for n in range(4 * ROWS)]
    return {"preferences": preference_file(root / "rows.jsonl", rows)}


def _prompts(root: Path) -> dict[str, Checkpoint]:
    prompts = "".join(json.dumps({"prompt": f"say {n}, then say it again"}) + "\n" for n in range(4))
    return {
        "prompts": written(root / "prompts.jsonl", prompts, ArtifactKind.PROMPTS),
        "reward_function": written(root / "gold.py", _COUNTING, ArtifactKind.FUNCTION),
    }


def _caught(kind: str, ctx: Any) -> Any:
    def catch(trainer: Any, *_arguments: Any, **_options: Any) -> Any:
        raise _Caught(trainer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kto_module if kind == "kto" else group_module, "train_policy", catch)
        with pytest.raises(_Caught) as caught:
            registry.find(kind).run(ctx)
    return caught.value.trainer
