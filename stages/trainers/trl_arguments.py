"""The arguments that every TRL trainer here gets: what changes numbers is said, whatever the defaults are."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from stages.config import TrainingConfig
from stages.runtime.loading import device
from stages.runtime.optimizers import TRL_NAMES


def shared_arguments(config: TrainingConfig, *, steps: int, folder: Path) -> dict[str, Any]:
    """Return arguments of transformers' trainer: optimisation, memory, randomness, checkpoints, metrics.

    Args:
        config: the stage's settings.
        steps: optimizer steps in all.
        folder: where checkpoints go; inside the stage's scratch.
    """
    on_gpu = device().type == "cuda"
    return dict(
        output_dir=str(folder),
        # 1. What is optimised, and how.
        max_steps=steps,
        per_device_train_batch_size=config.per_device_train_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler_type,
        warmup_steps=math.ceil(steps * config.warmup_ratio),
        optim=TRL_NAMES[config.tuning.optimizer],
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_epsilon=config.adam_epsilon,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        label_smoothing_factor=0.0,
        neftune_noise_alpha=None,
        average_tokens_across_devices=True,
        # 2. Precision and memory.
        bf16=on_gpu and config.model.dtype != "float32" and torch.cuda.is_bf16_supported(),
        fp16=False,
        gradient_checkpointing=config.tuning.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        torch_compile=False,
        use_liger_kernel=False,
        use_cpu=not on_gpu,
        auto_find_batch_size=False,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=on_gpu,
        # 3. Randomness and resume.
        seed=config.seed,
        data_seed=config.seed,
        full_determinism=False,
        accelerator_config={"use_seedable_sampler": True, "split_batches": False, "even_batches": True},
        ignore_data_skip=False,
        # 4. Checkpoints are sealed and rotated by the stage; metrics go to its logger only.
        save_strategy="steps",
        save_steps=config.save_steps,
        save_total_limit=None,
        save_only_model=False,
        load_best_model_at_end=False,
        eval_strategy="no",
        logging_strategy="steps",
        logging_steps=config.logging_steps,
        logging_first_step=False,
        logging_nan_inf_filter=False,
        report_to="none",
        push_to_hub=False,
        disable_tqdm=True,
    )
