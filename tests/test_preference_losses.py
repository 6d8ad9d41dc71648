"""Two pairs worked by hand for every member of the DPO family."""

from __future__ import annotations

import math

import pytest
import torch

from stages.ops.preference_losses import PairLogps, implicit_rewards, preference_loss

BETA = 0.5


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def log_odds(mean):
    return mean - math.log(1 - math.exp(mean))


def two_pairs(*, reference=True):
    # log ratios: chosen -10 + 12 = 2 and -6 + 5 = -1; rejected -8 + 9 = 1 and -9 + 10 = 1
    # delta: 1 and -2.  Per token: chosen 2/4, -1/2; rejected 1/2, 1/3; delta 0, -5/6
    # means: chosen -2.5, -3; rejected -4, -3; difference 1.5 and 0
    return PairLogps(
        chosen=torch.tensor([-10.0, -6.0], dtype=torch.float64),
        rejected=torch.tensor([-8.0, -9.0], dtype=torch.float64),
        chosen_lengths=torch.tensor([4, 2]),
        rejected_lengths=torch.tensor([2, 3]),
        ref_chosen=torch.tensor([-12.0, -5.0], dtype=torch.float64) if reference else None,
        ref_rejected=torch.tensor([-9.0, -10.0], dtype=torch.float64) if reference else None,
    )


def orpo(chosen, rejected):
    return -chosen - BETA * math.log(sigmoid(log_odds(chosen) - log_odds(rejected)))


def robust(x, e):
    return ((1 - e) * -math.log(sigmoid(x)) - e * -math.log(sigmoid(-x))) / (1 - 2 * e)


@pytest.mark.parametrize(
    ("loss_type", "options", "expected"),
    [
        pytest.param("sigmoid", {}, [-math.log(sigmoid(0.5)), -math.log(sigmoid(-1.0))], id="sigmoid"),
        pytest.param(
            "sigmoid",
            {"label_smoothing": 0.1},
            [
                -0.9 * math.log(sigmoid(0.5)) - 0.1 * math.log(sigmoid(-0.5)),
                -0.9 * math.log(sigmoid(-1.0)) - 0.1 * math.log(sigmoid(1.0)),
            ],
            id="smoothed",
        ),
        # 1 - 0.5 * 1 and 1 + 0.5 * 2
        pytest.param("hinge", {}, [0.5, 2.0], id="hinge"),
        # (0 - 1)^2 and (-5/6 - 1)^2
        pytest.param("ipo", {}, [1.0, (11 / 6) ** 2], id="ipo"),
        pytest.param("robust", {"label_smoothing": 0.2}, [robust(0.5, 0.2), robust(-1.0, 0.2)], id="robust"),
        pytest.param("sigmoid_norm", {}, [math.log(2), -math.log(sigmoid(-5 / 12))], id="length-normalised"),
        # beta * 1.5 - 0.25 and beta * 0 - 0.25
        pytest.param(
            "simpo",
            {"simpo_gamma": 0.25},
            [-math.log(sigmoid(0.5)), -math.log(sigmoid(-0.25))],
            id="simpo",
        ),
        pytest.param("orpo", {}, [orpo(-2.5, -4.0), orpo(-3.0, -3.0)], id="orpo"),
        # plus 0.2 * 2.5 and 0.2 * 3
        pytest.param(
            "sigmoid",
            {"sft_coef": 0.2},
            [-math.log(sigmoid(0.5)) + 0.5, -math.log(sigmoid(-1.0)) + 0.6],
            id="rpo",
        ),
    ],
)
def test_two_pairs_by_hand(loss_type, options, expected):
    loss = preference_loss(loss_type, two_pairs(), beta=BETA, **options)

    assert loss.tolist() == pytest.approx(expected, abs=1e-6)


def test_the_start_of_dpo_costs_ln_2():
    same = torch.tensor([-3.0, -4.0])
    logps = PairLogps(same, same - 1, torch.ones(2), torch.ones(2), same, same - 1)

    assert preference_loss("sigmoid", logps, beta=0.1).tolist() == pytest.approx([math.log(2)] * 2, abs=1e-7)


@pytest.mark.parametrize("loss_type", ["sigmoid", "hinge", "ipo", "simpo", "orpo", "sigmoid_norm", "robust"])
def test_a_certain_soft_label_is_the_published_loss_and_a_half_is_even(loss_type):
    logps = two_pairs()
    swapped = PairLogps(
        logps.rejected,
        logps.chosen,
        logps.rejected_lengths,
        logps.chosen_lengths,
        logps.ref_rejected,
        logps.ref_chosen,
    )

    plain = preference_loss(loss_type, logps, beta=BETA)
    certain = preference_loss(loss_type, logps, beta=BETA, labels=torch.ones(2))

    torch.testing.assert_close(certain, plain)
    if loss_type != "orpo":  # its likelihood term names one side
        half = torch.full((2,), 0.5)
        one_way = preference_loss(loss_type, logps, beta=BETA, labels=half)
        other_way = preference_loss(loss_type, swapped, beta=BETA, labels=half)
        torch.testing.assert_close(one_way, other_way)


def test_smoothing_takes_its_share_from_both_sides_of_a_soft_label():
    # 7 of 10 votes and one label of ten taken to be wrong: p = 0.7 * 0.9 + 0.3 * 0.1 = 0.66.
    # 2 of 10 votes: p = 0.2 * 0.9 + 0.8 * 0.1 = 0.26. beta * delta: 0.5 and -1.
    labels = torch.tensor([0.7, 0.2], dtype=torch.float64)

    found = preference_loss("sigmoid", two_pairs(), beta=BETA, labels=labels, label_smoothing=0.1)

    expected = [
        -0.66 * math.log(sigmoid(0.5)) - 0.34 * math.log(sigmoid(-0.5)),
        -0.26 * math.log(sigmoid(-1.0)) - 0.74 * math.log(sigmoid(1.0)),
    ]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_the_gradient_pulls_chosen_up_and_rejected_down():
    logps = two_pairs()
    logps.chosen.requires_grad_()
    logps.rejected.requires_grad_()

    preference_loss("sigmoid", logps, beta=BETA)[0].backward()

    # d/d delta of -logsigmoid(beta delta) is -beta * sigmoid(-beta delta), delta = 1
    assert logps.chosen.grad[0].item() == pytest.approx(-BETA * sigmoid(-0.5), abs=1e-6)
    assert logps.rejected.grad[0].item() == pytest.approx(BETA * sigmoid(-0.5), abs=1e-6)


def test_implicit_rewards_by_hand():
    chosen, rejected = implicit_rewards("sigmoid", two_pairs(), beta=BETA)
    assert (chosen.tolist(), rejected.tolist()) == ([1.0, -0.5], [0.5, 0.5])

    chosen, rejected = implicit_rewards("simpo", two_pairs(reference=False), beta=2.0)
    assert (chosen.tolist(), rejected.tolist()) == ([-5.0, -6.0], [-8.0, -6.0])


def test_a_member_that_needs_a_reference_says_so():
    with pytest.raises(ValueError, match="ipo needs the reference"):
        preference_loss("ipo", two_pairs(reference=False), beta=BETA)
