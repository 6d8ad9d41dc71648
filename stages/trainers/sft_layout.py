"""How micro-batches are laid out for a model, and the log-probabilities of their answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from pipeline.errors import ModelError
from stages.runtime.loading import backbone
from stages.runtime.output_head import OutputHead
from stages.runtime.segment_check import supports_segments
from stages.runtime.segments import Segments, segment_model
from stages.runtime.trained_head import Head, TrainedHead
from stages.sft import SftConfig
from stages.trainers.sft_rows import IGNORED


class PaddedRows:
    """Collates rows side by side, padded on the right."""

    def __init__(self, pad_token_id: int) -> None:
        self._pad = pad_token_id

    def __call__(self, rows: Sequence[Mapping[str, list[int]]]) -> dict[str, Tensor]:
        """Return input_ids, labels and attention_mask (rows, longest); the mask is 1 where a token counts."""
        longest = max(len(row["input_ids"]) for row in rows)

        def padded(name: str, filler: int) -> Tensor:
            return torch.tensor([row[name] + [filler] * (longest - len(row[name])) for row in rows])

        mask = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
        return {
            "input_ids": padded("input_ids", self._pad),
            "labels": padded("labels", IGNORED),
            "attention_mask": torch.tensor(mask),
        }


class JoinedRows:
    """Collates rows end to end in one row without padding; `lengths` says where each one ends."""

    def __call__(self, rows: Sequence[Mapping[str, list[int]]]) -> dict[str, Tensor]:
        """Return input_ids and labels (1, total) and lengths (rows,)."""
        return {
            "input_ids": torch.tensor([[i for row in rows for i in row["input_ids"]]]),
            "labels": torch.tensor([[i for row in rows for i in row["labels"]]]),
            "lengths": torch.tensor([len(row["input_ids"]) for row in rows]),
        }


@dataclass(frozen=True, slots=True)
class AnswerLogprobs:
    """Log-probabilities of the answer tokens of a micro-batch, in row order."""

    logprobs: Tensor
    "(answer tokens,)"
    entropies: Tensor
    "(answer tokens,), nats"
    hits: Tensor
    "bool (answer tokens,): the token was the likeliest."

    @property
    def num_tokens(self) -> int:
        """Return the number of answer tokens."""
        return self.logprobs.numel()


def answer_logprobs(model: Any, head: Head | None, inputs: Mapping[str, Tensor]) -> AnswerLogprobs:
    """Run the model on a collated micro-batch and its head on the answer tokens only.

    Without a head that is known, the logits of every token are made.
    """
    arguments: dict[str, Any] = {"input_ids": inputs["input_ids"], "use_cache": False}
    if "lengths" in inputs:
        arguments |= joined_inputs(inputs["lengths"])
    else:
        arguments["attention_mask"] = inputs["attention_mask"]
    targets = inputs["labels"][:, 1:]
    counts = targets != IGNORED
    targets = targets[counts]
    if head is None:
        logits = model(**arguments).logits[:, :-1][counts].float()
        shares = logits.log_softmax(-1)
        logprobs = shares.gather(1, targets[:, None]).squeeze(1)
        entropies = -(shares.detach().exp() * shares.detach()).sum(-1)
        return AnswerLogprobs(logprobs, entropies, logits.argmax(-1) == targets)
    hidden = backbone(model)(**arguments).last_hidden_state[:, :-1][counts]
    hits = torch.zeros_like(targets, dtype=torch.bool)
    logprobs, entropies = head.logprobs(hidden, targets, temperature=1.0, with_entropy=True, hits=hits)
    if entropies is None:
        raise ValueError("the head gave no entropies")
    return AnswerLogprobs(logprobs, entropies, hits)


def joined_inputs(lengths: Tensor) -> dict[str, Any]:
    """Return the position ids and the segments of rows that lie end to end."""
    segments = Segments.of([(0, (length,)) for length in lengths.tolist()])
    return {"position_ids": segments.position_ids().to(lengths.device), "segments": segments}


@dataclass(frozen=True, slots=True)
class Layout:
    """How micro-batches are laid out for a model, and why not otherwise."""

    collator: PaddedRows | JoinedRows
    head: Head | None
    notes: tuple[str, ...]

    def attention(self, model: PeftModel) -> AbstractContextManager[None]:
        """Return the context in which this layout's micro-batches are run."""
        return segment_model(model) if isinstance(self.collator, JoinedRows) else nullcontext()


def choose_layout(model: PeftModel, config: SftConfig, tokenizer: PreTrainedTokenizerBase) -> Layout:
    """Ask the model whether rows can be joined and its head read; what it cannot do is done the long way."""
    notes = []
    head: Head | None = None
    try:
        read = OutputHead.of(model, backbone=backbone(model))
        head = TrainedHead(read) if config.tuning.method == "full" else read
    except ModelError as error:
        notes.append(f"{error.findings[0].message}: the logits of every token are made")
    reason = supports_segments(model, backbone=backbone(model)) if config.packing else None
    if reason is not None:
        notes.append(f"packing is off: {reason}")
    joined = config.packing and reason is None
    return Layout(JoinedRows() if joined else PaddedRows(tokenizer.pad_token_id), head, tuple(notes))


def without_base_dropout(model: PeftModel) -> bool:
    """Switch off every dropout but the adapters' own; say whether there was any.

    A frozen base that drops out trains its adapter on another model than the one that is served.
    """
    found = False
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and ".lora_dropout." not in name and module.p > 0:
            module.p, found = 0.0, True
        for attribute in ("attention_dropout", "dropout", "resid_dropout", "hidden_dropout"):
            value = getattr(module, attribute, None)
            if isinstance(value, float) and value > 0:
                setattr(module, attribute, 0.0)
                found = True
    return found
