"""The DPO family. Tensors in, one loss a pair out; no model, no data.

Every member is a function f of a gap between chosen and rejected. A soft label p mixes both
directions: p * f(gap) + (1 - p) * f(-gap), so p = 0.5 is a tie and p = 1 the published loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

LossType = Literal["sigmoid", "ipo", "hinge", "robust", "sigmoid_norm", "simpo", "orpo"]
REFERENCE_FREE: frozenset[str] = frozenset({"simpo", "orpo"})
"Members that compare with no reference policy."


@dataclass(frozen=True, slots=True)
class PairLogps:
    """What the losses are made of. Every tensor is (pairs,)."""

    chosen: Tensor
    "Log-probability of the chosen response, summed over its tokens, under the policy."
    rejected: Tensor
    chosen_lengths: Tensor
    "Tokens of the chosen response, its stop token included."
    rejected_lengths: Tensor
    ref_chosen: Tensor | None = None
    "The same sums under the reference; None for the members that need none."
    ref_rejected: Tensor | None = None

    @property
    def chosen_logratios(self) -> Tensor:
        """Return log policy / reference of the chosen responses."""
        return self.chosen if self.ref_chosen is None else self.chosen - self.ref_chosen

    @property
    def rejected_logratios(self) -> Tensor:
        """Return log policy / reference of the rejected responses."""
        return self.rejected if self.ref_rejected is None else self.rejected - self.ref_rejected


def preference_loss(
    loss_type: LossType,
    logps: PairLogps,
    *,
    beta: float,
    labels: Tensor | None = None,
    label_smoothing: float = 0.0,
    simpo_gamma: float = 0.5,
    sft_coef: float = 0.0,
) -> Tensor:
    """Return the loss of each pair, (pairs,).

        delta        = chosen_logratios - rejected_logratios
        sigmoid      : -logsigmoid(beta * delta)
        hinge        : relu(1 - beta * delta)
        ipo          : (delta of per-token means - 1 / (2 beta))^2
        robust       : ((1 - e) f(delta) - e f(-delta)) / (1 - 2 e), f the sigmoid loss
        sigmoid_norm : -logsigmoid(beta * delta of per-token means)
        simpo        : -logsigmoid(beta * (mean chosen - mean rejected) - simpo_gamma)
        orpo         : -mean chosen - beta * logsigmoid(log odds chosen - log odds rejected)
        all          : + sft_coef * -(mean chosen)

    Args:
        loss_type: the member.
        logps: what the policy and the reference gave.
        beta: strength of the pull towards the reference (SimPO: scale; ORPO: weight lambda).
        labels: probability that chosen is better, (pairs,); None is 1.
        label_smoothing: share of labels taken to be wrong, below 0.5. For robust it is e.
        simpo_gamma: SimPO's target margin.
        sft_coef: weight of the negative log-likelihood of chosen, a mean over its tokens (RPO).

    Raises:
        ValueError: the member needs a reference and logps has none.

    Source:
        DPO: Rafailov et al. 2023, https://arxiv.org/abs/2305.18290, eq. 7. Label smoothing:
        Mitchell 2023 (cDPO). IPO: Azar et al. 2023, https://arxiv.org/abs/2310.12036, eq. 17, on
        per-token means. Hinge: Zhao et al. 2023, https://arxiv.org/abs/2305.10425. Robust:
        Chowdhury et al. 2024, https://arxiv.org/abs/2403.00409, eq. 6. SimPO: Meng et al. 2024,
        https://arxiv.org/abs/2405.14734, eq. 6. ORPO: Hong et al. 2024,
        https://arxiv.org/abs/2403.07691, eq. 6-7. RPO: Pang et al. 2024, https://arxiv.org/abs/2404.19733.
    """
    if loss_type not in REFERENCE_FREE and (logps.ref_chosen is None or logps.ref_rejected is None):
        raise ValueError(f"{loss_type} needs the reference's log-probabilities")
    smoothing = 0.0 if loss_type == "robust" else label_smoothing
    one_way = _one_way(loss_type, beta=beta, noise=label_smoothing, simpo_gamma=simpo_gamma)
    gap = _gap(loss_type, logps)
    if labels is None and smoothing == 0:
        loss = one_way(gap)
    else:
        target = gap.new_ones(()) if labels is None else labels.to(gap.dtype)
        p = target * (1 - smoothing) + (1 - target) * smoothing
        loss = p * one_way(gap) + (1 - p) * one_way(-gap)
    mean_chosen = logps.chosen / logps.chosen_lengths
    weight = sft_coef + (1.0 if loss_type == "orpo" else 0.0)
    return loss - weight * mean_chosen if weight else loss


def implicit_rewards(loss_type: LossType, logps: PairLogps, *, beta: float) -> tuple[Tensor, Tensor]:
    """Return the rewards that the policy implies for chosen and rejected, without gradient.

    beta * log ratio; for SimPO and ORPO beta * mean log-probability.
    """
    if loss_type in REFERENCE_FREE:
        chosen = logps.chosen / logps.chosen_lengths
        rejected = logps.rejected / logps.rejected_lengths
    else:
        chosen, rejected = logps.chosen_logratios, logps.rejected_logratios
    return beta * chosen.detach(), beta * rejected.detach()


def _one_way(
    loss_type: LossType, *, beta: float, noise: float, simpo_gamma: float
) -> Callable[[Tensor], Tensor]:
    """Return the loss of a gap for a pair whose label is certain."""

    def sigmoid(gap: Tensor) -> Tensor:
        return -functional.logsigmoid(beta * gap)

    def robust(gap: Tensor) -> Tensor:
        return ((1 - noise) * sigmoid(gap) - noise * sigmoid(-gap)) / (1 - 2 * noise)

    members: dict[str, Callable[[Tensor], Tensor]] = {
        "sigmoid": sigmoid,
        "sigmoid_norm": sigmoid,
        "robust": robust,
        "hinge": lambda gap: torch.relu(1 - beta * gap),
        "ipo": lambda gap: (gap - 1 / (2 * beta)).square(),
        "simpo": lambda gap: -functional.logsigmoid(beta * gap - simpo_gamma),
        "orpo": lambda gap: -beta * functional.logsigmoid(gap),
    }
    return members[loss_type]


def _gap(loss_type: LossType, logps: PairLogps) -> Tensor:
    """Return by how much the policy favours chosen, in the member's own measure."""
    if loss_type in ("sigmoid", "hinge", "robust"):
        return logps.chosen_logratios - logps.rejected_logratios
    if loss_type in ("ipo", "sigmoid_norm"):
        return (
            logps.chosen_logratios / logps.chosen_lengths - logps.rejected_logratios / logps.rejected_lengths
        )
    chosen, rejected = logps.chosen / logps.chosen_lengths, logps.rejected / logps.rejected_lengths
    return chosen - rejected if loss_type == "simpo" else _log_odds(chosen) - _log_odds(rejected)


def _log_odds(mean_logp: Tensor) -> Tensor:
    """Return log(p / (1 - p)) of p = exp(mean_logp), mean_logp below 0."""
    return mean_logp - torch.log(-torch.expm1(mean_logp))
