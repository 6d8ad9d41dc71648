"""Bradley-Terry by hand, the score head, and scores that do not depend on padding."""

from __future__ import annotations

import math

import pytest
import torch

from reward.loss import bradley_terry_loss
from reward.model import ScoreHead
from reward.scoring import score
from tests.test_segments import build

LOG2 = math.log(2)


def one(chosen, rejected, **options):
    options = {k: torch.tensor([v]) if k in ("labels", "margins") else v for k, v in options.items()}
    return bradley_terry_loss(torch.tensor([chosen]), torch.tensor([rejected]), **options).item()


def test_equal_scores_cost_ln_2():
    assert one(1.5, 1.5) == pytest.approx(LOG2, abs=1e-7)


def test_a_margin_asks_for_that_much_more():
    # gap = 3 - 1 - 2 = 0
    assert one(3.0, 1.0, margins=2.0) == pytest.approx(LOG2, abs=1e-7)
    # gap = 3 - 1 - 1 = 1: log(1 + e^-1)
    assert one(3.0, 1.0, margins=1.0) == pytest.approx(math.log1p(math.exp(-1)), abs=1e-6)


def test_a_soft_label_mixes_both_directions():
    # gap 1, p = 0.75: 0.75 log(1 + e^-1) + 0.25 log(1 + e)
    expected = 0.75 * math.log1p(math.exp(-1)) + 0.25 * math.log1p(math.exp(1))

    assert one(2.0, 1.0, labels=0.75) == pytest.approx(expected, abs=1e-6)
    assert one(2.0, 1.0, label_smoothing=0.25) == pytest.approx(expected, abs=1e-6)
    # label 0.9 smoothed by 0.1 is 0.9 * 0.9 + 0.1 * 0.1 = 0.82
    assert one(2.0, 1.0, labels=0.9, label_smoothing=0.1) == pytest.approx(
        one(2.0, 1.0, labels=0.82), abs=1e-6
    )


def test_a_tie_is_lowest_where_the_scores_are_equal():
    losses = [one(gap, 0.0, labels=0.5) for gap in (-1.0, 0.0, 1.0)]

    assert losses[1] == pytest.approx(LOG2, abs=1e-7)
    assert losses[0] == pytest.approx(losses[2], abs=1e-6)
    assert losses[0] > losses[1]


def test_the_gradient_of_a_soft_label_is_sigmoid_minus_label():
    # d/dgap of the cross entropy is sigmoid(gap) - p; at gap 1 and p 0.75: 0.7310586 - 0.75
    chosen = torch.tensor([1.0], requires_grad=True)

    bradley_terry_loss(chosen, torch.tensor([0.0]), labels=torch.tensor([0.75])).sum().backward()

    assert chosen.grad.item() == pytest.approx(1 / (1 + math.exp(-1)) - 0.75, abs=1e-6)


def test_centring_pulls_the_sum_of_scores_to_zero():
    # ln 2 at gap 0, plus 0.01 * (2 + 2)^2 = 0.16
    assert one(2.0, 2.0, centering=0.01) == pytest.approx(LOG2 + 0.16, abs=1e-6)


def test_the_head_is_seeded_and_its_spread_is_small():
    head, again, other = (ScoreHead.seeded(4095, seed=s) for s in (1, 1, 2))

    assert torch.equal(head.weight, again.weight)
    assert not torch.equal(head.weight, other.weight)
    # 1 / sqrt(4096) = 1/64; the sample deviation of 4095 draws lies within 5 % of it
    assert head.weight.std().item() == pytest.approx(1 / 64, rel=0.05)


def test_the_head_scores_bfloat16_states_in_float32():
    head = ScoreHead.from_tensors({"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([0.5])})

    scores = head(torch.tensor([[3.0, -1.0]], dtype=torch.bfloat16))

    assert scores.dtype == torch.float32
    assert scores.item() == 1.5


def test_a_head_survives_storing():
    head = ScoreHead.seeded(16, seed=3)

    again = ScoreHead.from_tensors(head.tensors())

    assert torch.equal(head.weight, again.weight)
    with pytest.raises(ValueError, match="weight"):
        ScoreHead.from_tensors({"bias": torch.zeros(1)})


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_scores_do_not_depend_on_batch_or_order(model_type):
    model, head = build(model_type), ScoreHead.seeded(32, seed=0)
    prompts = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [14, 15]]
    responses = [[20, 21], [22, 23, 24, 25, 26], [27], [28, 29, 3]]
    alone = torch.cat(
        [score(model.base_model, head, [p], [r]) for p, r in zip(prompts, responses, strict=True)]
    )

    together = score(model.base_model, head, prompts, responses)
    turned = score(model.base_model, head, prompts[::-1], responses[::-1], max_tokens=14)

    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(turned.flip(0), alone, atol=1e-6, rtol=1e-5)


def test_the_score_is_that_of_the_last_real_token():
    model, head = build("llama"), ScoreHead.seeded(32, seed=0)
    states = model.base_model(torch.tensor([[5, 6, 20, 21]])).last_hidden_state[0, -1]

    got = score(model.base_model, head, [[5, 6], [1, 2, 3, 4]], [[20, 21], [6, 7, 8, 9, 10]])

    torch.testing.assert_close(got[0], head(states).detach(), atol=1e-6, rtol=1e-5)


def test_an_empty_response_has_no_score():
    model, head = build("llama"), ScoreHead.seeded(32, seed=0)

    with pytest.raises(ValueError, match="without a token"):
        score(model.base_model, head, [[1]], [[]])
    with pytest.raises(ValueError, match="1 prompts, but 2 responses"):
        score(model.base_model, head, [[1]], [[1], [2]])
