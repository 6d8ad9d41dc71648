"""DPO on a tabular policy meets the exact optimum of the KL-regularised reward.

Two prompts, responses of two tokens over six words (36 each), a reward r for every response:
the policy that maximises E[r] - beta KL(policy, ref) is pi* = softmax(log ref + r / beta), and
its value is J* = beta * log sum ref * exp(r / beta). Labels follow Bradley-Terry:
P(a beats b) = sigmoid(r_a - r_b); all pairs are used with that probability as a soft label, so
the DPO loss has its minimum exactly at pi*.

Source: Rafailov et al. 2023, https://arxiv.org/abs/2305.18290, eq. 4 and 5.
"""

from __future__ import annotations

import pytest
import torch

from stages.ops.preference_losses import PairLogps, preference_loss

PROMPTS, WORDS, BETA = 2, 6, 0.7


def world(seed):
    generator = torch.Generator().manual_seed(seed)
    ref = (torch.randn(PROMPTS, WORDS**2, generator=generator, dtype=torch.float64)).log_softmax(-1)
    rewards = torch.randn(PROMPTS, WORDS**2, generator=generator, dtype=torch.float64) * 1.5
    return ref, rewards


def value(logprobs, ref, rewards, beta=BETA):
    """J = E[r] - beta * KL(policy, ref), a mean over prompts."""
    return (logprobs.exp() * (rewards - beta * (logprobs - ref))).sum(-1).mean().item()


def trained(ref, rewards, **changes):
    """Minimise DPO's loss over the two conditional tables of the policy, on all pairs at once."""
    first = torch.zeros(PROMPTS, WORDS, dtype=torch.float64, requires_grad=True)
    second = torch.zeros(PROMPTS, WORDS, WORDS, dtype=torch.float64, requires_grad=True)
    one, other = torch.triu_indices(WORDS**2, WORDS**2, offset=1)
    labels = torch.sigmoid(rewards[:, one] - rewards[:, other])
    lengths = torch.full_like(labels, 2)
    if changes.pop("flip_labels", False):
        labels = 1 - labels
    optimizer = torch.optim.LBFGS(
        [first, second], max_iter=400, line_search_fn="strong_wolfe", tolerance_grad=1e-10
    )

    def policy():
        return (first.log_softmax(-1)[..., None] + second.log_softmax(-1)).flatten(1)

    def closure():
        optimizer.zero_grad()
        logprobs = policy()
        logps = PairLogps(logprobs[:, one], logprobs[:, other], lengths, lengths, ref[:, one], ref[:, other])
        loss = preference_loss("sigmoid", logps, **{"beta": BETA, "labels": labels, **changes}).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return policy().detach()


@pytest.mark.parametrize("seed", [0, 1])
def test_dpo_meets_the_optimal_policy(seed):
    ref, rewards = world(seed)
    best = (ref + rewards / BETA).log_softmax(-1)
    best_value = (BETA * (ref + rewards / BETA).logsumexp(-1)).mean().item()
    assert value(best, ref, rewards) == pytest.approx(best_value, abs=1e-12)
    assert best_value - value(ref, ref, rewards) > 0.3

    policy = trained(ref, rewards)

    assert (policy.exp() * (policy - best)).sum(-1).max().item() < 1e-4
    assert best_value - value(policy, ref, rewards) < 1e-3


@pytest.mark.parametrize(
    "mistake",
    [
        pytest.param({"beta": 2 * BETA}, id="beta twice as large"),
        pytest.param({"labels": None}, id="hard labels for soft ones"),
        pytest.param({"flip_labels": True}, id="chosen and rejected swapped"),
        pytest.param({"label_smoothing": 0.2}, id="labels smoothed"),
    ],
)
def test_a_planted_mistake_misses_it(mistake):
    ref, rewards = world(0)
    best_value = (BETA * (ref + rewards / BETA).logsumexp(-1)).mean().item()

    policy = trained(ref, rewards, **mistake)

    assert best_value - value(policy, ref, rewards) > 1e-2
