"""The pretrain stage: a small base model from raw text, or a base adapted to a domain; all weights train.

The card only: settings and slots. The training is stages/trainers/pretrain.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from pipeline.config.strict import NOT_IN_KEY
from pipeline.contract import ArtifactKind, InputSlot, StageCheck, StageContext, StageResult, StageSpec
from pipeline.errors import Finding
from pipeline.memory.activations import Pass
from pipeline.memory.work import Workload
from stages.config import OptimizationConfig
from stages.early_stopping import TEXT_METRICS, EarlyStoppingConfig, early_stopping_findings


class PretrainConfig(OptimizationConfig):
    """Settings of pretraining and domain adaptation."""

    architecture: dict[str, Any] | None = None
    "Keys of the model's config with model_type, for a model from scratch; None goes on from the base."
    vocab_size: int = Field(2048, ge=261, le=1_000_000)
    "Tokens of the byte-level BPE tokenizer that is trained with a model from scratch."
    text_field: str = "text"
    "Field of a JSON Lines row that holds the document: text, or a list of messages."
    special_tokens_in_text: bool = False
    "Read <|user|>, <|assistant|> and other control tokens in plain text as the tokens: for text you wrote."
    eval_fraction: float = Field(0.05, ge=0, lt=0.5)
    "Share of the documents held out for the perplexity; 0 trains on everything."
    eval_steps: int | None = Field(None, ge=1, json_schema_extra=NOT_IN_KEY)
    "Optimizer steps between two measurements of the held-out loss; None measures at the end only."
    early_stopping: EarlyStoppingConfig | None = None
    "End when the held-out text no longer gains, and keep the best weights; None trains every step."
    gradient_checkpointing: bool = Field(False, json_schema_extra=NOT_IN_KEY)
    "Recompute activations in the backward pass: less memory, about a third more time."
    activation_offloading: bool = Field(False, json_schema_extra=NOT_IN_KEY)
    "What the backward pass needs waits in the host's memory: less on the card, more time for the copies."
    learning_rate: float = Field(1e-3, gt=0)
    "Peak learning rate of AdamW; 1e-3 suits a small model from scratch, 1e-5 to 5e-5 a base to adapt."
    max_length: int = Field(256, ge=2)
    "Tokens a block: documents are laid end to end and cut into blocks of this length."


def run(ctx: StageContext) -> StageResult:
    """Train the base model and write it as a folder that from_pretrained opens."""
    from stages.trainers.pretrain import pretrain

    return pretrain(ctx)


def check(stage: StageCheck) -> Sequence[Finding]:
    """Find contradictions between the settings and the inputs."""
    config: PretrainConfig = stage.config
    where, held_out = f"stages.{stage.name}.architecture", config.eval_fraction > 0
    findings = early_stopping_findings(
        config.early_stopping,
        measured=TEXT_METRICS,
        held_out=held_out,
        where=f"stages.{stage.name}.early_stopping",
    )
    if config.architecture is None:
        return findings
    if not isinstance(config.architecture.get("model_type"), str):
        message, hint = "architecture names no model_type", "architecture: {model_type: llama, ...}"
        findings.append(Finding(message, where, hint, "no-model-type"))
    if "base" in stage.inputs:
        message = "architecture asks for a model from scratch, but there is a base to go on from"
        hint = "remove architecture to adapt the base, or remove the base to start from scratch"
        findings.append(Finding(message, where, hint, "base-and-architecture"))
    return findings


def memory(stage: StageCheck) -> Workload:
    """Say what training every weight in float32 holds; the logits of every position are made."""
    config: PretrainConfig = stage.config
    tokens = config.per_device_train_batch_size * config.max_length
    step = Pass(
        tokens,
        config.max_length,
        0,
        all_logits=True,
        checkpointing=config.gradient_checkpointing,
        offloading=config.activation_offloading,
    )
    return Workload(config.model, None, step, trained=1, autocast=True)


SPEC = StageSpec(
    kind="pretrain",
    version=1,
    config_type=PretrainConfig,
    inputs={
        "text": InputSlot(
            (ArtifactKind.TEXT,),
            help="Plain text, a document between blank lines or a line; or JSON Lines with a text field.",
        ),
        "base": InputSlot(
            (ArtifactKind.FULL_MODEL,), required=False, help="Model to go on from; its tokenizer is kept."
        ),
    },
    outputs={"model": ArtifactKind.FULL_MODEL},
    run=run,
    memory=memory,
    summary="Train a small base model from raw text, or adapt a base to a domain.",
    check=check,
    backends=("ddp",),
    metrics=("eval_loss", "perplexity", "initial_perplexity"),
)
