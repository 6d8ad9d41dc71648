"""What a stage holds and computes, as its card declares it to the memory plan. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config.run import ModelConfig, TuningConfig
from pipeline.memory.activations import Pass


@dataclass(frozen=True, slots=True)
class Decoding:
    """Responses sampled at once, with a key-value cache."""

    rows: int
    prompt_tokens: int
    new_tokens: int

    @property
    def tokens(self) -> int:
        """Tokens of the whole cache when the longest responses end."""
        return self.rows * (self.prompt_tokens + self.new_tokens)


@dataclass(frozen=True, slots=True)
class Workload:
    """One stage on one card; sizes are the largest that its settings allow."""

    model: ModelConfig
    tuning: TuningConfig | None
    "What is trained, and how the base is held; None where every weight trains."
    step: Pass | None = None
    "The pass with gradients of one micro-batch; None where nothing is trained."
    trained: int = 0
    "Adapters, or whole models, with gradients and optimizer state."
    frozen: int = 0
    "Adapters without."
    heads: int = 0
    "Trained score heads."
    head_biases: int = 0
    "Of these, the ones with an offset."
    own_head: bool = False
    "The model's own classification head is trained, and held a second time as it was."
    autocast: bool = False
    "On a GPU, matrix products run in bfloat16 whatever the weights are."
    with_entropy: bool = False
    "The loss also needs the entropy of each distribution."
    decoding: Decoding | None = None
    tiled_head: bool = False
    "The output head is TRL's, which works in tiles."
    reads_beside: bool = False
    "The reference reads the micro-batch while its graph is held."
    parts: int = 1
    "Processes that each hold a part of every layer of the base; the rest is whole on each."
    read_tokens: int = 0
    "Tokens of the largest pass without gradients outside a step, padding included."
