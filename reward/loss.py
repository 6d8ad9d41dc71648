"""The Bradley-Terry loss of a reward model. Tensors in, one loss a pair out."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def bradley_terry_loss(
    chosen_scores: Tensor,
    rejected_scores: Tensor,
    *,
    labels: Tensor | None = None,
    margins: Tensor | None = None,
    label_smoothing: float = 0.0,
    centering: float = 0.0,
) -> Tensor:
    """Return the loss of each pair.

        gap  = chosen_scores - rejected_scores - margins
        p    = labels * (1 - label_smoothing) + (1 - labels) * label_smoothing
        loss = -p * logsigmoid(gap) - (1 - p) * logsigmoid(-gap)
               + centering * (chosen_scores + rejected_scores)^2

    Args:
        chosen_scores: scores of the preferred responses, (pairs,).
        rejected_scores: scores of the others, (pairs,).
        labels: probability that chosen is better, such as its share of the votes, (pairs,);
            None is 1. At 0.5 (a tie) the two scores are pulled together.
        margins: how much higher chosen should score, (pairs,); None is 0.
        label_smoothing: share of labels taken to be wrong, below 0.5.
        centering: weight of the term that keeps scores around 0.

    Source:
        Bradley and Terry 1952; margin: Llama 2 (2023, https://arxiv.org/abs/2307.09288, eq. 2);
        centring: Eisenstein et al. 2023, https://arxiv.org/abs/2312.09244, section 2.
    """
    gap = chosen_scores - rejected_scores
    if margins is not None:
        gap = gap - margins
    if labels is None and label_smoothing == 0:
        loss = -functional.logsigmoid(gap)
    else:
        p = smoothed_labels(gap.new_ones(()) if labels is None else labels, label_smoothing)
        loss = -p * functional.logsigmoid(gap) - (1 - p) * functional.logsigmoid(-gap)
    if centering:
        loss = loss + centering * (chosen_scores + rejected_scores).square()
    return loss


def smoothed_labels(labels: Tensor, label_smoothing: float) -> Tensor:
    """Return labels * (1 - label_smoothing) + (1 - labels) * label_smoothing."""
    return labels * (1 - label_smoothing) + (1 - labels) * label_smoothing
