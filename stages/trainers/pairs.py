"""Pairs to batches: prompts shared, micro-batches by tokens, steps by pairs.

An optimizer step always holds the same pairs, and each pair's weight is its share of the
step: how a step is cut into micro-batches, and packed or padded, changes rounding only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stages.pair_config import PairTrainingConfig
from stages.runtime.segments import pack_row
from stages.trainers.order import order
from stages.trainers.pair_data import TokenPair

Group = tuple[tuple[int, ...], list[tuple[int, ...]]]
"A prompt and its different answers."


@dataclass(frozen=True, slots=True)
class PairBatch:
    """Some pairs of a step, laid out for the model. Positions count in the flattened input."""

    input_ids: Tensor
    "(1, total) packed, or (rows, longest) padded on the right."
    before: Tensor
    "Position of the state that predicts each answer token, (tokens,)."
    targets: Tensor
    "The answer tokens, answer after answer, (tokens,)."
    owner: Tensor
    "Which answer each of them belongs to, (tokens,)."
    last: Tensor
    "Position of the last token of each answer, (answers,)."
    lengths: Tensor
    "Tokens of each answer, (answers,)."
    chosen: Tensor
    "Which answer is the chosen one of each pair, (pairs,)."
    rejected: Tensor
    labels: Tensor
    margins: Tensor
    weights: Tensor
    "Share of each pair in its step, (pairs,); they sum to 1 over the step."
    numbers: Tensor
    "Number of each pair in the data, (pairs,)."
    options: Mapping[str, Any] = field(default_factory=dict)
    "Further arguments of the model's forward."

    def to(self, device: torch.device) -> PairBatch:
        """Return the batch on a device."""
        if device.type == "cpu":
            return self
        values = {name: getattr(self, name) for name in self.__slots__}
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in values.items()}
        options = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in self.options.items()}
        return PairBatch(**{**moved, "options": options})


class PairSchedule:
    """Which pairs an optimizer step holds, and how they are cut into micro-batches.

    Args:
        pairs: the training pairs.
        config: batch size, accumulation, seed and token budget.
        packed: lay answers beside their prompt in one row; else one padded row an answer.
        ranks: processes that share each step; it is cut finer until each has something to do.
    """

    def __init__(
        self, pairs: Sequence[TokenPair], config: PairTrainingConfig, *, packed: bool, ranks: int = 1
    ) -> None:
        if not pairs:
            raise ValueError("there are no pairs to train on")
        self._pairs, self._config, self._packed, self._ranks = pairs, config, packed, ranks
        self._units: dict[int, list[int]] = {}
        for number, pair in enumerate(pairs):
            self._units.setdefault(pair.unit, []).append(number)
        self._epoch: tuple[int, list[int]] = (-1, [])

    @property
    def steps_an_epoch(self) -> int:
        """Optimizer steps of one pass; the last one may hold fewer pairs."""
        return math.ceil(len(self._pairs) / self._config.pairs_per_step)

    @property
    def total_steps(self) -> int:
        """max_steps when it is set, else the steps of num_train_epochs, rounded up."""
        if self._config.max_steps is not None:
            return self._config.max_steps
        return max(1, math.ceil(self._config.num_train_epochs * self.steps_an_epoch))

    def pairs_of(self, step: int) -> list[int]:
        """Return the pairs of a step (from 0): a function of the seed and the step only.

        Comparisons are shuffled as a whole, so that the pairs of one ranking share its prompt.
        """
        epoch, within = divmod(step, self.steps_an_epoch)
        if self._epoch[0] != epoch:
            units = list(self._units.values())
            shuffled = [units[i] for i in order(self._config.seed, epoch, len(units))]
            self._epoch = epoch, [number for unit in shuffled for number in unit]
        size = self._config.pairs_per_step
        return self._epoch[1][within * size : (within + 1) * size]

    def batches(self, step: int) -> list[PairBatch]:
        """Return the micro-batches of a step."""
        return make_batches(
            self._pairs,
            self.pairs_of(step),
            max_tokens=self._config.token_budget,
            packed=self._packed,
            ranks=self._ranks,
        )


def make_batches(
    pairs: Sequence[TokenPair], numbers: Sequence[int], *, max_tokens: int, packed: bool, ranks: int = 1
) -> list[PairBatch]:
    """Cut pairs into batches of at most `max_tokens` computed tokens; one pair always fits.

    Their weights sum to 1 over all batches. With several ranks there are as many batches for each one,
    as far as there are pairs.
    """
    total = sum(pairs[number].weight for number in numbers)
    parts = _cut(pairs, numbers, max_tokens, packed)
    if len(parts) % ranks:
        parts = _halved(pairs, parts, packed, least=ranks * math.ceil(len(parts) / ranks))
    return [_batch(pairs, part, total, packed=packed) for part in parts]


def _halved(
    pairs: Sequence[TokenPair], parts: list[list[int]], packed: bool, *, least: int
) -> list[list[int]]:
    """Cut the largest part in two, where its halves are most alike in size, until there are enough."""
    parts = list(parts)
    while len(parts) < least:
        place = max(range(len(parts)), key=lambda at: (len(parts[at]) > 1, _size(pairs, parts[at], packed)))
        part = parts[place]
        if len(part) == 1:
            return parts
        cut = min(
            range(1, len(part)),
            key=lambda at: abs(_size(pairs, part[:at], packed) - _size(pairs, part[at:], packed)),
        )
        parts[place : place + 1] = [part[:cut], part[cut:]]
    return parts


def _cut(
    pairs: Sequence[TokenPair], numbers: Sequence[int], max_tokens: int, packed: bool
) -> list[list[int]]:
    """Put pairs with the same prompt side by side, long ones first, and cut where the budget ends."""
    longest: dict[tuple[int, ...], int] = {}
    for number in numbers:
        pair = pairs[number]
        size = len(pair.prompt) + max(len(pair.chosen), len(pair.rejected))
        longest[pair.prompt] = max(size, longest.get(pair.prompt, 0))
    ordered = sorted(numbers, key=lambda n: (-longest[pairs[n].prompt], pairs[n].prompt, n))
    parts: list[list[int]] = []
    for number in ordered:
        if parts and _size(pairs, [*parts[-1], number], packed) <= max_tokens:
            parts[-1].append(number)
        else:
            parts.append([number])
    return parts


def _size(pairs: Sequence[TokenPair], numbers: Sequence[int], packed: bool) -> int:
    """Return the tokens that a batch computes."""
    groups = _groups(pairs, numbers)
    if packed:
        return sum(len(prompt) + sum(map(len, answers)) for prompt, answers in groups)
    rows = [len(prompt) + len(answer) for prompt, answers in groups for answer in answers]
    return len(rows) * max(rows)


def _groups(pairs: Sequence[TokenPair], numbers: Sequence[int]) -> list[Group]:
    """Return each prompt once with its different answers, in order of first appearance."""
    found: dict[tuple[int, ...], dict[tuple[int, ...], None]] = {}
    for number in numbers:
        pair = pairs[number]
        found.setdefault(pair.prompt, {}).update({pair.chosen: None, pair.rejected: None})
    return [(prompt, list(answers)) for prompt, answers in found.items()]


def _batch(pairs: Sequence[TokenPair], numbers: Sequence[int], total: float, *, packed: bool) -> PairBatch:
    groups = _groups(pairs, numbers)
    flat = [(prompt, answer) for prompt, answers in groups for answer in answers]
    index = {key: i for i, key in enumerate(flat)}
    chosen_pairs = [pairs[number] for number in numbers]
    input_ids, ends, options = _packed(groups) if packed else _padded(flat)
    starts = [end - len(answer) for end, (_, answer) in zip(ends, flat, strict=True)]
    prompts = _prompt_ends(groups, starts, packed)
    before = [
        place
        for prompt_end, start, (_, answer) in zip(prompts, starts, flat, strict=True)
        for place in (prompt_end, *range(start, start + len(answer) - 1))
    ]
    lengths = torch.tensor([len(answer) for _, answer in flat])
    return PairBatch(
        input_ids=input_ids,
        before=torch.tensor(before),
        targets=torch.tensor([token for _, answer in flat for token in answer]),
        owner=torch.arange(len(flat)).repeat_interleave(lengths),
        last=torch.tensor(ends) - 1,
        lengths=lengths,
        chosen=torch.tensor([index[pair.prompt, pair.chosen] for pair in chosen_pairs]),
        rejected=torch.tensor([index[pair.prompt, pair.rejected] for pair in chosen_pairs]),
        labels=torch.tensor([pair.label for pair in chosen_pairs], dtype=torch.float32),
        margins=torch.tensor([pair.margin for pair in chosen_pairs], dtype=torch.float32),
        weights=torch.tensor([pair.weight / total for pair in chosen_pairs], dtype=torch.float32),
        numbers=torch.tensor(list(numbers)),
        options=options,
    )


def _packed(groups: Sequence[Group]) -> tuple[Tensor, list[int], dict[str, Any]]:
    """Return one row, where each answer ends in it, and what the model's forward needs."""
    row, segments = pack_row(groups)
    ends, at = [], 0
    for prompt, answers in groups:
        at += len(prompt)
        for answer in answers:
            at += len(answer)
            ends.append(at)
    return row, ends, {"position_ids": segments.position_ids(), "segments": segments}


def _padded(
    flat: Sequence[tuple[tuple[int, ...], tuple[int, ...]]],
) -> tuple[Tensor, list[int], dict[str, Any]]:
    """Return one row an answer, padded on the right.

    No mask is passed: attention is causal, so no counted token ever sees a pad.
    """
    width = max(len(prompt) + len(answer) for prompt, answer in flat)
    input_ids = torch.zeros(len(flat), width, dtype=torch.long)
    ends = []
    for row, (prompt, answer) in enumerate(flat):
        length = len(prompt) + len(answer)
        input_ids[row, :length] = torch.tensor([*prompt, *answer])
        ends.append(row * width + length)
    return input_ids, ends, {}


def _prompt_ends(groups: Sequence[Group], starts: Sequence[int], packed: bool) -> list[int]:
    """Return the position of the last prompt token of each answer."""
    if not packed:
        return [start - 1 for start in starts]
    ends, at = [], 0
    for _, answers in groups:
        ends += [starts[at] - 1] * len(answers)
        at += len(answers)
    return ends
