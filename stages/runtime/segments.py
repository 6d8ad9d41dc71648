"""One row of many sequences: prompts computed once, nothing padded, no dense mask.

A row is `[p1 a11 a12 ... p2 a21 ...]`: a prompt, its answers, the next prompt. Each answer
attends to its prompt and to itself, never to another answer. The first answer of a prompt
shares one causal block with it; every further answer is a block of its own whose keys and
values are those of the prompt, gathered, followed by its own (causal, aligned bottom right).
Position ids of every answer go on from its prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

NAME = "shared_prompt"
"The name under which transformers knows this attention."


@dataclass(frozen=True, slots=True)
class Segments:
    """Which tokens of a row belong together."""

    groups: tuple[tuple[int, tuple[int, ...]], ...]
    "(tokens of the prompt, tokens of each answer) of each prompt, in row order."
    masks: dict[Any, Tensor] = field(default_factory=dict, compare=False, repr=False)
    "Masks of answer blocks, made in the first layer and used by all."

    @classmethod
    def of(cls, groups: Sequence[tuple[int, Sequence[int]]]) -> Segments:
        """Build the segments of a row.

        Raises:
            ValueError: a prompt without an answer, or an answer without a token.
        """
        for prompt, answers in groups:
            if prompt < 0 or not answers or min(answers) < 1:
                raise ValueError(
                    f"a group needs a prompt and answers of at least one token: {prompt}, {answers}"
                )
        return cls(tuple((prompt, tuple(answers)) for prompt, answers in groups))

    @property
    def query_lengths(self) -> list[int]:
        """Return the tokens of each attention block, in row order."""
        return [n for p, answers in self.groups for n in (p + answers[0], *answers[1:])]

    @property
    def key_lengths(self) -> list[int]:
        """Return the keys that each attention block sees, its prompt included."""
        return [p + n for p, answers in self.groups for n in answers]

    @property
    def total(self) -> int:
        """Return the tokens of the row."""
        return sum(self.query_lengths)

    def position_ids(self) -> Tensor:
        """Return positions (1, total): each answer goes on where its prompt ends."""
        parts = [torch.arange(q) + (k - q) for q, k in zip(self.query_lengths, self.key_lengths, strict=True)]
        return torch.cat(parts)[None]

    def gather(self, states: Tensor) -> list[Tensor]:
        """Return the keys or values of each block from (batch, heads, total, head size)."""
        pieces = states.split([n for p, answers in self.groups for n in (p, *answers)], dim=2)
        blocks, at = [], 0
        for prompt, answers in self.groups:
            for number in range(len(answers)):
                answer = pieces[at + 1 + number]
                blocks.append(torch.cat((pieces[at], answer), dim=2) if prompt else answer)
            at += 1 + len(answers)
        return blocks

    def mask(self, q: int, k: int, window: int | None, like: Tensor) -> Tensor | None:
        """Return the additive mask (q, k) of a block, or None where plain causal attention does."""
        if window is not None and window >= k:
            window = None
        if q == k and window is None:
            return None
        key = (q, k, window, like.dtype, like.device)
        if key not in self.masks:
            distance = torch.arange(k - q, k)[:, None] - torch.arange(k)[None]
            seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
            mask = torch.zeros(q, k, dtype=like.dtype).masked_fill(~seen, float("-inf"))
            self.masks[key] = mask.to(like.device)
        return self.masks[key]


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Segments | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend within each block of a row; the attention function given to transformers.

    Args:
        query: (1, heads, total, head size); key and value may have fewer heads.
        segments: the blocks, passed to the model's forward as `segments=`.
        sliding_window: keys that a token sees, itself included; None is all.
        softcap: bound of the attention scores (Gemma 2).

    Returns:
        (1, total, heads, head size) and no weights.

    Raises:
        NotImplementedError: a form of attention this function does not compute, such as sinks,
            dropout or a position bias.
    """
    refused = [name for name in ("s_aux", "position_bias", "cache") if others.get(name) is not None]
    if segments is None or dropout or refused:
        raise NotImplementedError(
            f"shared-prompt attention needs segments, no dropout, and none of {refused}"
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if softcap is None and query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        return _varlen(segments, query, key, value, scaling, sliding_window), None
    queries = query.split(segments.query_lengths, dim=2)
    outputs = []
    for q, k, v in zip(queries, segments.gather(key), segments.gather(value), strict=True):
        mask = segments.mask(q.shape[2], k.shape[2], sliding_window, q)
        if softcap is None:
            grouped = q.shape[1] != k.shape[1]
            causal = mask is None
            outputs.append(
                functional.scaled_dot_product_attention(
                    q, k, v, attn_mask=mask, is_causal=causal, scale=scaling, enable_gqa=grouped
                )
            )
        else:
            outputs.append(_softcapped(q, k, v, _full_mask(segments, q, k, mask), scaling, softcap))
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def pack_row(groups: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]]) -> tuple[Tensor, Segments]:
    """Lay (prompt ids, ids of each answer) out as one row.

    Returns:
        Token ids (1, total) and the row's segments.
    """
    row = [token for prompt, answers in groups for part in (prompt, *answers) for token in part]
    lengths = [(len(prompt), [len(answer) for answer in answers]) for prompt, answers in groups]
    return torch.tensor(row, dtype=torch.long)[None], Segments.of(lengths)


@contextmanager
def segment_model(model: nn.Module) -> Iterator[None]:
    """Give the model this attention for the time of the block, backward passes included.

    Every forward inside must pass `segments=`. The attention of before is set again at the end.
    """
    configs = {id(part.config): part.config for part in model.modules() if isinstance(part, PreTrainedModel)}
    before = {key: config._attn_implementation for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation = NAME
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]


def _full_mask(segments: Segments, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    if mask is not None:
        return mask
    key = (q.shape[2], q.dtype, q.device)
    if key not in segments.masks:
        empty = torch.full((q.shape[2], k.shape[2]), float("-inf"), dtype=q.dtype, device=q.device)
        segments.masks[key] = empty.triu(1)
    return segments.masks[key]


def _softcapped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float, softcap: float) -> Tensor:
    """Attend with scores bounded by softcap * tanh(scores / softcap), in the model's own order."""
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
    scores = softcap * torch.tanh(q @ k.transpose(2, 3) * scaling / softcap) + mask
    return scores.softmax(-1, dtype=torch.float32).to(q.dtype) @ v


def _varlen(
    segments: Segments, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None
) -> Tensor:
    """Run all blocks as one variable-length kernel call. Not yet run on a GPU."""
    from torch.nn.attention.varlen import varlen_attn

    lengths = segments.query_lengths, segments.key_lengths
    cumulative = [torch.tensor([0, *accumulate(n)], dtype=torch.int32, device=query.device) for n in lengths]
    keys, values = (torch.cat(segments.gather(states), dim=2)[0].transpose(0, 1) for states in (key, value))
    out = varlen_attn(
        query[0].transpose(0, 1),
        keys,
        values,
        *cumulative,
        max(lengths[0]),
        max(lengths[1]),
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out[None]


def _no_mask(*_arguments: Any, **_options: Any) -> None:
    """Make no dense mask: the segments say what sees what."""


AttentionInterface.register(NAME, segment_attention)
AttentionMaskInterface.register(NAME, _no_mask)
