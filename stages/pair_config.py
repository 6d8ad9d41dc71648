"""Settings that the reward and DPO stages share: how pairs are read, split and packed. No torch here."""

from __future__ import annotations

from pydantic import Field

from pipeline.config.strict import NOT_IN_KEY
from pipeline.memory.activations import Pass
from stages.config import TrainingConfig
from stages.early_stopping import EarlyStoppingConfig


class PairTrainingConfig(TrainingConfig):
    """A stage that trains on preference pairs; a batch is counted in pairs."""

    eval_share: float = Field(0.1, ge=0, lt=1)
    "Share of the pairs held out by prompt, near-duplicate prompts together; 0 trains on all."
    max_rejected_share: float = Field(0.05, ge=0, le=1)
    "Largest share of rows of a preference file that may be unusable; more of them stop the stage."
    soft_labels: bool = True
    "Take the share of votes as the label; false takes the majority for certain."
    include_ties: bool = False
    "Also train on pairs whose votes are even, with label 0.5; needs soft_labels."
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    "Share of labels taken to be wrong. Larger trusts the pairs less."
    micro_batch_tokens: int | None = Field(None, ge=16)
    "Tokens computed at once; None is per_device_train_batch_size * max_length. Memory and speed only."
    shared_prompts: bool = True
    "Compute the prompt of a pair once and pad nothing, where the model can; false pads rows."
    eval_steps: int | None = Field(None, ge=1, json_schema_extra=NOT_IN_KEY)
    "Optimizer steps between two measurements on the held-out pairs; None measures at the end only."
    early_stopping: EarlyStoppingConfig | None = None
    "End when the held-out pairs no longer gain, and keep the best weights; None trains every step."

    @property
    def pairs_per_step(self) -> int:
        """Pairs of one optimizer step."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    @property
    def token_budget(self) -> int:
        """Tokens that are computed at once."""
        return self.micro_batch_tokens or self.per_device_train_batch_size * self.max_length

    def largest_pass(self, *, answers: bool) -> Pass:
        """Return the largest micro-batch that these settings allow; one pair always is one.

        Args:
            answers: whether the loss needs the probabilities of the answers' tokens.
        """
        pair = 2 * self.max_length
        tokens = min(max(self.token_budget, pair), self.pairs_per_step * pair)
        return Pass(
            tokens,
            self.max_length,
            tokens if answers else 0,
            key_share=_KEYS_A_POSITION if self.shared_prompts else 1.0,
            checkpointing=self.tuning.gradient_checkpointing,
        )


_KEYS_A_POSITION = 1.5
"A prompt as long as two answers: 2 (P + A) keys over P + 2 A positions."
