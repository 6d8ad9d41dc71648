"""Settings that training stages share, under the field's names. No torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.config.run import ModelConfig, TuningConfig
from pipeline.config.strict import NOT_IN_KEY, StrictModel


class OptimizationConfig(StrictModel):
    """Optimisation settings, whatever is trained. Names follow transformers."""

    seed: int = 42
    "Seed of data order and initialisation; the run's seed unless the stage sets its own."
    model: ModelConfig = ModelConfig()
    "The run's base model, with keys of the stage's own."
    learning_rate: float = Field(1e-4, gt=0)
    "Peak learning rate of AdamW."
    per_device_train_batch_size: int = Field(8, ge=1)
    "Rows (or pairs) a micro-batch."
    gradient_accumulation_steps: int = Field(1, ge=1)
    "Micro-batches an optimizer step."
    num_train_epochs: float = Field(1.0, gt=0)
    "Passes over the training data; ignored when max_steps is set."
    max_steps: int | None = Field(None, ge=1)
    "Optimizer steps; None trains for num_train_epochs."
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    "Share of the steps over which the learning rate rises from 0."
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    "How the learning rate falls after warm-up; linear and cosine end at 0."
    weight_decay: float = Field(0.0, ge=0)
    "AdamW weight decay. On adapters it pulls towards the base."
    adam_epsilon: float = Field(1e-8, gt=0)
    "AdamW epsilon."
    max_grad_norm: float = Field(1.0, gt=0)
    "Gradients are scaled down to this global norm."
    max_length: int = Field(1024, ge=2)
    "Tokens a sequence may have, prompt and response together."
    logging_steps: int = Field(10, ge=1, json_schema_extra=NOT_IN_KEY)
    "Optimizer steps between two lines of metrics."
    save_steps: int = Field(100, ge=1, json_schema_extra=NOT_IN_KEY)
    "Optimizer steps between two checkpoints inside the stage."


class TrainingConfig(OptimizationConfig):
    """Settings of a stage that trains adapters on the frozen base."""

    tuning: TuningConfig = TuningConfig()
    "What is trained; one block of the run for all stages."
