"""Time and price of a stage from its floating-point operations and a stated utilisation. An estimate.

    forward   2 operations a weight and token, and attention: 2 * row tokens * query width a layer
    backward  as much again for the activations; once more for the weights, where they are trained
    recomputing adds a forward pass

Sampling reads every weight once a step, so it takes bytes / bandwidth, whatever the batch is.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.memory.activations import Pass
from pipeline.memory.estimate import estimate
from pipeline.memory.hardware import Card
from pipeline.memory.shape import ModelShape
from pipeline.memory.work import Workload


@dataclass(frozen=True, slots=True)
class Cost:
    """What a thousand micro-batches of a stage take on one card."""

    hours: float
    usd: float | None
    "None where the card has no price."


def cost_of(work: Workload, shape: ModelShape, card: Card, *, utilisation: float) -> Cost | None:
    """Estimate a thousand micro-batches, sampling included; None where the card's speed is not known.

    Args:
        work: of the stage.
        shape: of its base.
        card: where it runs.
        utilisation: share of the card's peak that matrix products reach.
    """
    if card.bf16_tflops is None or card.bandwidth_gbs is None:
        return None
    seconds = 0.0
    if work.step is not None:
        seconds += _operations(work, shape, work.step) / (card.bf16_tflops * 1e12 * utilisation)
    if work.decoding is not None:
        weights = estimate(work, shape).terms["base"].expected
        steps = work.decoding.new_tokens
        rows = max(1, work.decoding.rows)
        share = (work.step.tokens // max(1, work.step.row_tokens)) / rows if work.step else 1.0
        seconds += share * steps * weights / (card.bandwidth_gbs * 1e9)
    hours = 1000 * seconds / 3600
    return Cost(hours, None if card.price_usd is None else hours * card.price_usd)


def _whole(work: Workload) -> bool:
    return work.tuning is None or work.tuning.method == "full"


def _operations(work: Workload, shape: ModelShape, step: Pass) -> float:
    """Return the operations of one micro-batch: its passes with gradients, and those that only read."""
    body = shape.num_active * step.tokens
    attention = shape.layers * step.tokens * step.row_tokens * shape.query_width
    head_rows = step.tokens if step.all_logits else step.answers
    forward = 2 * (body + attention + head_rows * shape.vocabulary * shape.hidden)
    passes = 2 + (1 if _whole(work) else 0) + (1 if step.checkpointing else 0)
    # Each frozen role, and each trained one before its update, reads once.
    reads = work.frozen + (work.trained if work.decoding is not None else 0)
    return forward * (passes * max(1, work.trained) + reads)
