"""The tensor maths of PPO against numbers worked by hand and brute force."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.ops.advantages import (
    gae,
    group_advantages,
    group_normalised,
    leave_one_out,
    rescaled,
    whitened,
)
from stages.ops.kl import adapted_kl_coef, k1, k3
from stages.ops.masks import last_token_mask, length_mask
from stages.ops.ppo_losses import policy_losses, ratios, value_losses
from stages.ops.rewards import length_penalties, normalised, token_rewards, with_missing_eos_penalty
from stages.ops.stats import RunningMoments, explained_variance, masked_mean, masked_var
from stages.ppo import PPOConfig
from stages.trainers.ppo.rollout import Readings
from stages.trainers.ppo.update import make_targets

NAN = float("nan")


def test_a_length_mask_counts_the_tokens_of_each_row():
    mask = length_mask(torch.tensor([0, 1, 3]), width=3)

    assert mask.tolist() == [[False] * 3, [True, False, False], [True] * 3]


def test_the_last_token_is_the_last_counted_one_also_behind_a_gap():
    mask = torch.tensor([[1, 1, 0], [1, 0, 1], [0, 0, 0]]).bool()

    assert last_token_mask(mask).int().tolist() == [[0, 1, 0], [0, 0, 1], [0, 0, 0]]


def test_masked_statistics_never_look_at_what_does_not_count():
    values = torch.tensor([[1.0, 3.0, NAN], [8.0, NAN, NAN]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()

    # mean (1 + 3 + 8) / 3 = 4; squared distances 9, 1, 16; population variance 26 / 3
    assert float(masked_mean(values, mask)) == pytest.approx(4.0)
    assert float(masked_var(values, mask)) == pytest.approx(26 / 3)
    assert float(masked_mean(values, torch.zeros_like(mask))) == 0.0


def test_explained_variance_is_one_for_the_truth_and_zero_for_a_constant():
    returns = torch.tensor([[0.0, 2.0, 4.0]])
    mask = torch.ones_like(returns, dtype=torch.bool)

    assert float(explained_variance(returns, returns, mask)) == pytest.approx(1.0)
    assert float(explained_variance(torch.full_like(returns, 7.0), returns, mask)) == pytest.approx(0.0)
    # values 4, 2, 0: errors -4, 0, 4 of variance 32/3 against 8/3: 1 - 4 = -3
    assert float(explained_variance(returns.flip(1), returns, mask)) == pytest.approx(-3.0)
    assert float(explained_variance(returns, torch.ones_like(returns), mask)) == 0.0


def test_running_moments_equal_those_of_all_numbers_at_once():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(50, generator=generator, dtype=torch.float64) * 3 + 7

    moments = RunningMoments().updated(values[:1]).updated(values[1:20]).updated(values[20:])

    assert moments.mean == pytest.approx(float(values.mean()))
    assert moments.deviation == pytest.approx(float(values.std(correction=0)))
    assert moments.count == 50
    assert RunningMoments().updated(torch.tensor([5.0])).deviation == 1.0


def test_the_score_stands_on_the_last_real_token_and_every_token_pays_its_kl():
    logprobs = torch.tensor([[-1.0, -2.0, NAN], [-1.0, -1.0, -1.0]])
    ref_logprobs = torch.tensor([[-2.0, -1.0, NAN], [-1.0, -1.0, -3.0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()

    rewards = token_rewards(torch.tensor([10.0, 20.0]), logprobs, ref_logprobs, mask=mask, kl_coef=0.5)

    # row 0: -0.5 * (-1 + 2) = -0.5; -0.5 * (-2 + 1) + 10 = 10.5; row 1: 0; 0; -0.5 * 2 + 20 = 19
    assert rewards.tolist() == [[-0.5, 10.5, 0.0], [0.0, 0.0, 19.0]]


def test_a_response_without_its_end_pays_the_penalty_once():
    scores = with_missing_eos_penalty(torch.tensor([1.0, 1.0]), torch.tensor([True, False]), penalty=0.25)

    assert scores.tolist() == [1.0, 0.75]


def test_the_length_penalty_grows_linearly_over_its_buffer():
    lengths = torch.tensor([1, 6, 7, 8, 10])

    # limit 10, buffer 4: nothing up to 6, then a quarter of 2.0 a token
    assert length_penalties(lengths, limit=10, buffer=4, coef=2.0).tolist() == [0.0, 0.0, 0.5, 1.0, 2.0]


def test_scores_are_shifted_and_scaled_by_given_moments():
    assert normalised(torch.tensor([3.0, 7.0]), mean=5.0, deviation=2.0).tolist() == [-1.0, 1.0]


def test_gae_of_a_row_worked_by_hand():
    rewards = torch.tensor([[1.0, 2.0, 4.0]])
    values = torch.tensor([[0.5, 1.0, 1.5]])

    advantages, returns = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), gamma=0.5, lam=0.5)

    # deltas: 4 - 1.5 = 2.5; 2 + 0.75 - 1 = 1.75; 1 + 0.5 - 0.5 = 1
    # advantages: 2.5; 1.75 + 0.25 * 2.5 = 2.375; 1 + 0.25 * 2.375 = 1.59375
    assert advantages.tolist() == [[1.59375, 2.375, 2.5]]
    assert returns.tolist() == [[2.09375, 3.375, 4.0]]


def brute_force_gae(rewards, values, mask, gamma, lam):
    """A_t = sum_l (gamma lam)^l delta_{t+l} over counted tokens, row by row, without recursion."""
    advantages = torch.zeros_like(values)
    for row in range(len(mask)):
        counted = mask[row].nonzero().flatten().tolist()
        v = [float(values[row, t]) for t in counted] + [0.0]
        r = [float(rewards[row, t]) for t in counted]
        deltas = [r[i] + gamma * v[i + 1] - v[i] for i in range(len(counted))]
        for i, t in enumerate(counted):
            advantages[row, t] = sum((gamma * lam) ** (j - i) * deltas[j] for j in range(i, len(counted)))
    return advantages


def random_rollout(seed, *, gaps=True, rows=5, width=9):
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, rows, width, generator=generator, dtype=torch.float64)
    if gaps:
        mask = torch.rand(rows, width, generator=generator) < 0.7
    else:
        mask = length_mask(torch.randint(1, width + 1, (rows,), generator=generator), width=width)
    return torch.where(mask, rewards, NAN), torch.where(mask, values, 77.0), mask


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), gamma=st.floats(0.1, 1.0), lam=st.floats(0.0, 1.0))
def test_gae_equals_its_definition_for_any_mask(seed, gamma, lam):
    rewards, values, mask = random_rollout(seed)

    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam)

    expected = brute_force_gae(rewards, values, mask, gamma, lam)
    assert torch.allclose(advantages, expected, atol=1e-10)
    assert torch.allclose(returns[mask], (expected + values)[mask], atol=1e-10)
    assert not advantages[~mask].any()
    assert not returns[~mask].any()


def test_lambda_one_is_the_monte_carlo_return_and_lambda_zero_the_one_step_error():
    rewards, values, mask = random_rollout(3, gaps=False)

    _, monte_carlo = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    one_step, _ = gae(rewards, values, mask, gamma=1.0, lam=0.0)

    for row in range(len(mask)):
        n = int(mask[row].sum())
        for t in range(n):
            assert float(monte_carlo[row, t]) == pytest.approx(float(rewards[row, t:n].sum()))
            following = float(values[row, t + 1]) if t + 1 < n else 0.0
            expected = float(rewards[row, t]) + following - float(values[row, t])
            assert float(one_step[row, t]) == pytest.approx(expected)


def test_padding_and_the_order_of_rows_change_no_advantage():
    rewards, values, mask = random_rollout(5, gaps=False)
    padding = torch.full((len(mask), 4), 99.0, dtype=values.dtype)
    order = torch.tensor([3, 0, 4, 1, 2])

    plain, _ = gae(rewards, values, mask, gamma=1.0, lam=0.95)
    padded, _ = gae(
        torch.cat([rewards, padding], 1),
        torch.cat([values, padding], 1),
        torch.cat([mask, torch.zeros_like(padding, dtype=torch.bool)], 1),
        gamma=1.0,
        lam=0.95,
    )
    shuffled, _ = gae(rewards[order], values[order], mask[order], gamma=1.0, lam=0.95)

    assert torch.equal(padded[:, :-4], plain)
    assert torch.equal(shuffled, plain[order])
    assert torch.allclose(
        whitened(padded, torch.cat([mask, padding > 1e9], 1))[:, :-4], whitened(plain, mask)
    )


def test_whitening_gives_mean_zero_and_population_variance_one_over_what_counts():
    values = torch.tensor([[1.0, 3.0, 1000.0], [5.0, NAN, NAN]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()

    white = whitened(values, mask)

    # mean 3, variance (4 + 0 + 4) / 3 = 8/3, so +-2 / sqrt(8/3)
    edge = 2 / math.sqrt(8 / 3)
    assert white[mask].tolist() == pytest.approx([-edge, 0.0, edge], abs=1e-6)
    assert white[~mask].tolist() == [0.0, 0.0, 0.0]


def test_whitening_a_single_token_gives_zero_and_not_nan():
    assert whitened(torch.tensor([[5.0]]), torch.ones(1, 1, dtype=torch.bool)).tolist() == [[0.0]]


def test_rescaling_keeps_the_sign_of_every_reward():
    values = torch.tensor([[1.0, 3.0, 5.0]])
    mask = torch.ones_like(values, dtype=torch.bool)

    assert rescaled(values, mask).tolist()[0] == pytest.approx([x / math.sqrt(8 / 3) for x in (1, 3, 5)])


def test_group_baselines_worked_by_hand():
    scores = torch.tensor([1.0, 2.0, 6.0, 4.0, 4.0, 4.0])

    # leave one out: 1 - (2 + 6) / 2, 2 - (1 + 6) / 2, 6 - (1 + 2) / 2
    assert leave_one_out(scores, group_size=3).tolist() == [-3.0, -1.5, 4.5, 0.0, 0.0, 0.0]
    # mean 3, population deviation sqrt((4 + 1 + 9) / 3)
    deviation = math.sqrt(14 / 3)
    expected = [-2 / deviation, -1 / deviation, 3 / deviation, 0.0, 0.0, 0.0]
    assert group_normalised(scores, group_size=3).tolist() == pytest.approx(expected, abs=1e-6)


def test_the_advantage_of_a_group_is_what_its_whole_response_earned_beyond_the_others():
    rewards = torch.tensor([[1.0, 2.0, 50.0], [5.0, 9.0, 9.0], [0.0, 0.0, 1.0], [2.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 0, 0]]).bool()

    # Earned: 3, 5 | 1, 2. Beyond the other of the pair: 3 - 5, 5 - 3 | 1 - 2, 2 - 1.
    assert group_advantages(rewards, mask, group_size=2).tolist() == [
        [-2.0, -2.0, 0.0],
        [2.0, 0.0, 0.0],
        [-1.0, -1.0, -1.0],
        [1.0, 0.0, 0.0],
    ]


@pytest.mark.parametrize(
    ("advantage", "expected"),
    [
        # KL a token 0.5 at a price of 0.2; lengths 2, 1 and scores 4, 2: earned 4 - 0.2, 2 - 0.1.
        pytest.param("rloo", [[1.9, 1.9], [-1.9, 0.0]], id="rloo"),
        # Scores first 1 and -1 (mean 3, deviation 1): earned 1 - 0.2, -1 - 0.1.
        pytest.param("grpo", [[1.9, 1.9], [-1.9, 0.0]], id="grpo"),
    ],
)
def test_targets_of_groups_pay_the_kl_price_and_need_no_value_function(advantage, expected):
    mask = torch.tensor([[True, True], [True, False]])
    logprobs = torch.where(mask, 0.5, 0.0)
    readings = Readings(logprobs, torch.zeros(2, 2), torch.zeros(2, 2), None, None)
    settings = PPOConfig(advantage=advantage, num_generations=2, whiten_advantages=False)

    targets = make_targets(readings, torch.tensor([4.0, 2.0]), mask, settings, kl_coef=0.2)
    halved = make_targets(readings, torch.tensor([2.0, 1.0]), mask, settings, kl_coef=0.2)

    assert targets.returns is None
    assert targets.advantages.tolist() == [pytest.approx(row, abs=1e-6) for row in expected]
    # Half the scores: 2 - 0.2 against 1 - 0.1; to grpo the scale of a prompt's scores means nothing.
    expected_half = 0.9 if advantage == "rloo" else 1.9
    assert float(halved.advantages[0, 0]) == pytest.approx(expected_half, abs=1e-6)


def test_the_value_function_can_learn_returns_of_another_lambda():
    mask = torch.ones(1, 2, dtype=torch.bool)
    readings = Readings(
        torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([[0.5, 0.25]]), None
    )
    settings = PPOConfig(lam=0.0, value_lam=1.0, whiten_advantages=False)

    targets = make_targets(readings, torch.tensor([2.0]), mask, settings, kl_coef=0.0)

    # Rewards 0, 2. Lambda 0: V_1 - V_0 and 2 - V_1. Lambda 1: both returns are what follows, 2.
    assert targets.advantages.tolist() == [[-0.25, 1.75]]
    assert targets.returns.tolist() == [[2.0, 2.0]]


def test_weights_of_tokens_scale_losses_and_slopes_and_get_none_themselves():
    x = torch.zeros(2, requires_grad=True)
    weights = torch.tensor([0.5, 2.0], requires_grad=True)

    terms = policy_losses(x, torch.zeros(2), torch.tensor([1.0, -3.0]), cliprange=0.2).weighted(weights)
    terms.losses.sum().backward()

    # -A w at ratio 1, and the same slope.
    assert terms.losses.tolist() == x.grad.tolist() == [-0.5, 6.0]
    assert weights.grad is None


def surrogate(ratio, advantage, **options):
    logprob = torch.tensor([math.log(ratio)], requires_grad=True)
    terms = policy_losses(logprob, torch.zeros(1), torch.tensor([advantage]), cliprange=0.2, **options)
    terms.losses.sum().backward()
    return float(terms.losses.detach()), float(logprob.grad), bool(terms.clipped)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        # inside the clip: loss -A ratio, slope in log ratio -A ratio
        pytest.param(1.1, 2.0, -2.2, -2.2, id="inside, good action"),
        pytest.param(0.9, -2.0, 1.8, 1.8, id="inside, bad action"),
        # outside on the favourable side: the bound, without slope
        pytest.param(1.5, 2.0, -2.4, 0.0, id="good action, likely enough"),
        pytest.param(0.5, -2.0, 1.6, 0.0, id="bad action, unlikely enough"),
        # outside on the other side: the way back stays open
        pytest.param(0.5, 2.0, -1.0, -1.0, id="good action became unlikely"),
        pytest.param(1.5, -2.0, 3.0, 3.0, id="bad action became likely"),
    ],
)
def test_the_clipped_surrogate_stops_only_where_nothing_is_left_to_gain(ratio, advantage, loss, slope):
    got = surrogate(ratio, advantage)

    assert got[0] == pytest.approx(loss)
    assert got[1] == pytest.approx(slope)
    assert got[2] is (slope == 0.0)


def test_the_upper_clip_can_be_wider():
    assert surrogate(1.25, 1.0, cliprange_high=0.28) == (pytest.approx(-1.25), pytest.approx(-1.25), False)
    assert surrogate(1.35, 1.0, cliprange_high=0.28) == (pytest.approx(-1.28), 0.0, True)


def test_dual_clip_bounds_what_a_bad_likely_action_can_cost():
    # A = -2, ratio 5: free loss 10, bound 3 * 2 = 6 without slope; ratio 2: 4 stays
    assert surrogate(5.0, -2.0, dual_clip=3.0) == (pytest.approx(6.0), 0.0, True)
    assert surrogate(2.0, -2.0, dual_clip=3.0) == (pytest.approx(4.0), pytest.approx(4.0), False)
    assert surrogate(0.5, 2.0, dual_clip=3.0)[0] == pytest.approx(-1.0)


def test_ratios_of_impossible_moves_stay_finite():
    assert torch.isfinite(ratios(torch.tensor([1000.0, -1000.0]), torch.zeros(2))).all()


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "slope"),
    [
        pytest.param(1.1, 1.0, 3.0, 0.5 * 1.9**2, -1.9, id="inside the clip"),
        # moved past the clip towards the target: the clipped error is larger, no slope
        pytest.param(2.0, 1.0, 3.0, 0.5 * 1.8**2, 0.0, id="towards the target"),
        # moved away from the target: the free error is larger, the way back stays open
        pytest.param(0.0, 1.0, 3.0, 0.5 * 3.0**2, -3.0, id="away from the target"),
    ],
)
def test_the_clipped_value_loss_takes_the_larger_error(value, old, target, loss, slope):
    values = torch.tensor([value], requires_grad=True)

    terms = value_losses(values, torch.tensor([old]), torch.tensor([target]), cliprange_value=0.2)
    terms.losses.sum().backward()

    assert float(terms.losses.detach()) == pytest.approx(loss)
    assert float(values.grad) == pytest.approx(slope)


def test_without_a_clip_the_value_loss_is_half_the_squared_error():
    terms = value_losses(torch.tensor([5.0]), torch.tensor([0.0]), torch.tensor([2.0]), cliprange_value=None)

    assert terms.losses.tolist() == [4.5]
    assert not terms.clipped.any()


def test_a_loss_over_parts_of_a_minibatch_adds_up_to_the_loss_over_the_whole():
    generator = torch.Generator().manual_seed(1)
    new, old, advantages = torch.randn(3, 6, 5, generator=generator)
    mask = length_mask(torch.tensor([5, 1, 3, 2, 5, 4]), width=5)
    tokens = int(mask.sum())

    def loss(rows):
        terms = policy_losses(new[rows], old[rows], advantages[rows], cliprange=0.2)
        return float(terms.mean_over(mask[rows], num_tokens=tokens))

    whole = loss(list(range(6)))

    assert loss([0, 1]) + loss([2, 3, 4, 5]) == pytest.approx(whole, abs=1e-6)
    assert sum(loss([row]) for row in range(6)) == pytest.approx(whole, abs=1e-6)


def test_kl_estimators_worked_by_hand_and_unbiased():
    p, q = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.2, 0.2, 0.6]).double()

    exact = float((p * (p.log() - q.log())).sum())

    # E_p k1 = KL; E_p k3 = sum q - 1 - E_p log(q/p) = KL, every term at least 0
    assert float((p * k1(p.log(), q.log())).sum()) == pytest.approx(exact)
    assert float((p * k3(p.log(), q.log())).sum()) == pytest.approx(exact)
    assert float(k3(p.log(), q.log()).min()) >= 0.0
    assert float(k3(p.log(), p.log()).abs().max()) == 0.0


def test_the_kl_price_follows_its_target_by_a_fifth_at_most():
    move = {"target": 6.0, "horizon": 100.0, "num_episodes": 10}

    # twice the target: error clipped to 0.2, times 10 / 100
    assert adapted_kl_coef(0.1, 12.0, **move) == pytest.approx(0.1 * 1.02)
    assert adapted_kl_coef(0.1, 0.0, **move) == pytest.approx(0.1 * 0.98)
    # 6.6 / 6 - 1 = 0.1
    assert adapted_kl_coef(0.1, 6.6, **move) == pytest.approx(0.1 * 1.01)
    assert adapted_kl_coef(0.1, 6.0, **move) == pytest.approx(0.1)
