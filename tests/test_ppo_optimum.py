"""PPO reaches the optimum that enumeration knows, and every planted fault is noticed by some check."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pipeline.errors import HandOverError
from stages.ops import advantages as advantage_ops
from stages.ops import ppo_losses as loss_ops
from stages.ops import rewards as reward_ops
from stages.ops.masks import last_token_mask, length_mask
from stages.ops.preference_losses import PairLogps, preference_loss
from stages.trainers.ppo import scores as ppo_scores
from stages.trainers.ppo import update as ppo_update
from tests.ppo_world import WORLD_A, WORLD_B, Faults, settings, solve

GAP = 1e-3
"J* - J, nats; at the start it is 1.19 in world A and 0.77 in world B."
QUICK = {"total_iterations": 100, "num_ppo_epochs": 2, "learning_rate": 0.1, "value_learning_rate": 0.2}


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("world", [pytest.param(WORLD_A, id="A"), pytest.param(WORLD_B, id="B")])
def test_ppo_reaches_the_exact_optimum(world, seed):
    start = world.gap(world.reference())

    logits = solve(world, settings(world, seed=seed, **QUICK))

    assert start > 0.5
    assert world.gap(logits) < GAP
    assert world.kl_from_optimum(logits) < 2 * GAP / world.beta


@pytest.mark.parametrize("world", [pytest.param(WORLD_A, id="A"), pytest.param(WORLD_B, id="B")])
@pytest.mark.parametrize("white", [False, True])
def test_leave_one_out_reaches_the_exact_optimum_without_a_value_function(world, white):
    changes = {**QUICK, "advantage": "rloo", "num_generations": 8, "whiten_advantages": white}

    logits = solve(world, settings(world, seed=1, **changes))

    assert world.gap(logits) < GAP
    assert world.kl_from_optimum(logits) < 2 * GAP / world.beta


def test_the_optimum_by_enumeration_beats_any_other_policy():
    log_optimum, best = WORLD_B.optimum()
    reference = WORLD_B.table(WORLD_B.reference())
    value = log_optimum.exp() * (WORLD_B.reward_table() - WORLD_B.beta * (log_optimum - reference))

    assert float(value.sum(1).mean()) == pytest.approx(best)
    assert len(WORLD_A.responses()) * WORLD_A.prompts == 72
    assert len(WORLD_B.responses()) == 85
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        other = WORLD_B.reference() + torch.randn(21, 5, generator=generator)
        assert WORLD_B.objective(other) < best


def test_dpo_on_the_same_rewards_and_price_meets_ppo_at_the_same_optimum():
    world = WORLD_A
    rewards = world.reward_table().flatten()
    per_prompt = len(world.responses())
    first, second = torch.triu_indices(per_prompt, per_prompt, offset=1)
    first, second = (torch.cat([part, part + per_prompt]) for part in (first, second))
    reference = world.table(world.reference()).flatten()
    lengths = torch.full_like(first, world.longest)
    logits = world.reference().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=100, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        logps = world.table(logits).flatten()
        pairs = PairLogps(logps[first], logps[second], lengths, lengths, reference[first], reference[second])
        # Bradley-Terry labels in expectation: every pair, judged by the true reward.
        labels = torch.sigmoid(rewards[first] - rewards[second])
        total = preference_loss("sigmoid", pairs, beta=world.beta, labels=labels).mean()
        total.backward()
        return total

    optimizer.step(loss)
    by_ppo = solve(world, settings(world, seed=1, **QUICK))

    assert world.gap(logits.detach()) < 1e-5
    apart = world.table(by_ppo).exp() * (world.table(by_ppo) - world.table(logits.detach()))
    assert float(apart.sum(1).mean()) < 2 * GAP / world.beta


# Faults. Each takes monkeypatch and returns the Faults between steps, or None.


def patched_rewards(place):
    """Return a fault that spreads scores by `place(scores, mask)` and leaves the KL price alone."""

    def plant(patch):
        def token_rewards(scores, logprobs, ref_logprobs, *, mask, kl_coef):
            price = reward_ops.token_rewards(
                torch.zeros_like(scores), logprobs, ref_logprobs, mask=mask, kl_coef=kl_coef
            )
            return price + place(scores, mask)

        patch.setattr(ppo_update, "token_rewards", token_rewards)

    return plant


def in_last_column(scores, mask):
    out = torch.zeros(mask.shape)
    out[:, -1] = scores
    return out


def truncated_rows_unpaid(patch):
    shaped = ppo_scores._shaped

    def only_finished(mixed, rollouts, *others):
        return torch.where(rollouts.finished, shaped(mixed, rollouts, *others), 0.0)

    patch.setattr(ppo_scores, "_shaped", only_finished)


def scaled_kl(factor):
    def plant(patch):
        def token_rewards(*arguments, kl_coef, **named):
            return reward_ops.token_rewards(*arguments, kl_coef=factor * kl_coef, **named)

        patch.setattr(ppo_update, "token_rewards", token_rewards)

    return plant


def doubled_scores(patch):
    shaped = ppo_scores._shaped
    patch.setattr(ppo_scores, "_shaped", lambda *arguments: 2 * shaped(*arguments))


def eos_not_an_action(patch):
    def without_eos(rollouts):
        lengths = rollouts.lengths - rollouts.finished.long()
        mask = length_mask(lengths, width=rollouts.mask.shape[1])
        episodes = [
            replace(e, response=e.response[:n])
            for e, n in zip(rollouts.episodes, lengths.tolist(), strict=True)
        ]
        return replace(rollouts, mask=mask, episodes=episodes)

    return Faults(rollouts=without_eos)


def patched_gae(change):
    def plant(patch):
        patch.setattr(ppo_update, "gae", change)

    return plant


def no_bootstrap(rewards, values, mask, *, gamma, lam):
    advantages = torch.zeros_like(values)
    following = torch.zeros(len(values))
    for t in reversed(range(values.shape[1])):
        following = torch.where(mask[:, t], rewards[:, t] - values[:, t] + gamma * lam * following, following)
        advantages[:, t] = torch.where(mask[:, t], following, 0.0)
    return advantages, torch.where(mask, advantages + values, 0.0)


def values_one_late(rewards, values, mask, *, gamma, lam):
    shifted = torch.cat([values[:, 1:], torch.zeros(len(values), 1)], 1)
    return advantage_ops.gae(rewards, torch.where(mask, shifted, 0.0), mask, gamma=gamma, lam=lam)


def swapped(rewards, values, mask, *, gamma, lam):
    return advantage_ops.gae(rewards, values, mask, gamma=lam, lam=gamma)


def negative(rewards, values, mask, *, gamma, lam):
    advantages, returns = advantage_ops.gae(rewards, values, mask, gamma=gamma, lam=lam)
    return -advantages, returns


def ratio_against_reference(patch):
    return Faults(update_readings=lambda readings: replace(readings, logprobs=readings.ref_logprobs))


OPTIMUM_FAULTS = [
    pytest.param(patched_rewards(in_last_column), id="score in the last column"),
    pytest.param(
        patched_rewards(lambda s, m: torch.where(m, (s / m.sum(1))[:, None], 0.0)),
        id="score spread over tokens",
    ),
    pytest.param(patched_rewards(lambda s, m: torch.where(m, s[:, None], 0.0)), id="score at every token"),
    pytest.param(truncated_rows_unpaid, id="no score on truncated rows"),
    pytest.param(doubled_scores, id="score twice"),
    pytest.param(scaled_kl(0.0), id="no KL"),
    pytest.param(scaled_kl(-1.0), id="KL of the other sign"),
    pytest.param(eos_not_an_action, id="end token not an action"),
    pytest.param(patched_gae(no_bootstrap), id="no bootstrap"),
    pytest.param(patched_gae(values_one_late), id="values one token late"),
    pytest.param(patched_gae(negative), id="advantages of the other sign"),
    pytest.param(patched_gae(swapped), id="gamma and lambda swapped"),
    pytest.param(ratio_against_reference, id="ratio against the reference"),
]


@pytest.mark.parametrize("plant", OPTIMUM_FAULTS)
def test_a_planted_fault_misses_the_optimum(plant, monkeypatch):
    faults = plant(monkeypatch) or Faults()

    try:
        gap = WORLD_B.gap(solve(WORLD_B, settings(WORLD_B, seed=1, **QUICK), faults=faults))
    except HandOverError as noticed:
        gap = f"noticed before: {noticed}"

    assert isinstance(gap, str) or not gap < GAP


# Faults that leave the optimum where it is: the invariants of tests/test_ppo_ops.py must see them.


def advantages_are_white(mask):
    generator = torch.Generator().manual_seed(0)
    values = torch.where(mask, torch.randn(mask.shape, generator=generator) + 3, 1000.0)
    white = ppo_update.whitened(values, mask)
    mean, variance = white[mask].mean(), white[mask].var(correction=0)
    return abs(float(mean)) < 1e-5 and abs(float(variance) - 1) < 1e-4


def pads_pay_no_kl(mask):
    ones = torch.ones(mask.shape)
    rewards = ppo_update.token_rewards(torch.zeros(len(mask)), ones, 0 * ones, mask=mask, kl_coef=1.0)
    return not rewards[~mask].any()


def pads_change_no_advantage(mask):
    generator = torch.Generator().manual_seed(1)
    rewards, values = torch.randn(2, *mask.shape, generator=generator)
    clean, _ = ppo_update.gae(
        torch.where(mask, rewards, 0.0), torch.where(mask, values, 0.0), mask, gamma=1.0, lam=0.9
    )
    dirty, _ = ppo_update.gae(
        torch.where(mask, rewards, 7.0), torch.where(mask, values, 7.0), mask, gamma=1.0, lam=0.9
    )
    return torch.equal(clean[mask], dirty[mask])


def clip_closes_the_right_side(mask):
    slopes = []
    for log_ratio, advantage in ((0.5, 1.0), (-0.5, 1.0), (0.5, -1.0), (-0.5, -1.0)):
        x = torch.tensor([log_ratio], requires_grad=True)
        terms = ppo_update.policy_losses(x, torch.zeros(1), torch.tensor([advantage]), cliprange=0.2)
        terms.losses.sum().backward()
        slopes.append(float(x.grad) != 0)
    return slopes == [False, True, True, False]


def value_clip_takes_the_larger_error(mask):
    x = torch.tensor([2.0], requires_grad=True)
    terms = ppo_update.value_losses(x, torch.ones(1), torch.tensor([3.0]), cliprange_value=0.2)
    terms.losses.sum().backward()
    return float(x.grad) == 0.0


INVARIANTS = (
    advantages_are_white,
    pads_pay_no_kl,
    pads_change_no_advantage,
    clip_closes_the_right_side,
    value_clip_takes_the_larger_error,
)


def white_over_pads(values, mask):
    return (values - values.mean()) / (values.var(correction=0) + 1e-8).sqrt()


def kl_on_pads(scores, logprobs, ref_logprobs, *, mask, kl_coef):
    return -kl_coef * (logprobs - ref_logprobs) + torch.where(last_token_mask(mask), scores[:, None], 0.0)


def unmasked_gae(rewards, values, mask, *, gamma, lam):
    return advantage_ops.gae(rewards, values, torch.ones_like(mask), gamma=gamma, lam=lam)


def smaller_of_both(logprobs, old_logprobs, advantages, *, cliprange, **_options):
    ratio = loss_ops.ratios(logprobs, old_logprobs)
    losses = torch.minimum(-advantages * ratio, -advantages * ratio.clamp(1 - cliprange, 1 + cliprange))
    return loss_ops.TokenLosses(losses, losses > 1e9)


def smaller_value_error(values, old_values, returns, *, cliprange_value):
    near = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
    losses = 0.5 * torch.minimum((values - returns).square(), (near - returns).square())
    return loss_ops.TokenLosses(losses, losses > 1e9)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        pytest.param("whitened", lambda values, mask: values, id="no whitening"),
        pytest.param("whitened", white_over_pads, id="whitening over pads"),
        pytest.param("token_rewards", kl_on_pads, id="KL on pads"),
        pytest.param("gae", unmasked_gae, id="GAE without mask"),
        pytest.param("policy_losses", smaller_of_both, id="min for max in the clip"),
        pytest.param("value_losses", smaller_value_error, id="min for max in the value clip"),
    ],
)
def test_a_planted_fault_that_keeps_the_optimum_breaks_an_invariant(name, fault, monkeypatch):
    mask = length_mask(torch.tensor([5, 2, 3, 1]), width=6)
    assert all(invariant(mask) for invariant in INVARIANTS)

    monkeypatch.setattr(ppo_update, name, fault)

    assert not all(invariant(mask) for invariant in INVARIANTS)
