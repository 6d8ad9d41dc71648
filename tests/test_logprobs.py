"""The fused log-probabilities against log_softmax, and the promises about chunks and memory."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from stages.ops.logprobs import linear_logprobs

ROWS, HIDDEN, VOCABULARY = 23, 8, 37


def make_inputs(dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(ROWS, HIDDEN, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator, dtype=dtype)
    bias = torch.randn(VOCABULARY, generator=generator, dtype=dtype)
    targets = torch.randint(VOCABULARY, (ROWS,), generator=generator)
    return hidden, weight, bias, targets


def reference(hidden, weight, targets, *, temperature=1.0, bias=None, softcap=None):
    logits = functional.linear(hidden, weight, bias)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logprobs = torch.log_softmax(logits / temperature, dim=-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(1, targets[:, None]).squeeze(1), entropy


@pytest.mark.parametrize(
    ("temperature", "with_bias", "softcap"),
    [
        pytest.param(1.0, False, None, id="plain"),
        pytest.param(0.7, False, None, id="temperature"),
        pytest.param(1.0, True, None, id="bias"),
        pytest.param(1.3, True, 3.0, id="all"),
    ],
)
def test_values_entropies_and_gradients_equal_log_softmax(temperature, with_bias, softcap):
    hidden, weight, bias, targets = make_inputs(torch.float32)
    options = {"temperature": temperature, "bias": bias if with_bias else None, "softcap": softcap}
    upstream = torch.linspace(-1, 2, ROWS)
    expected, expected_entropy = reference(hidden, weight, targets, **options)
    (expected_grad,) = torch.autograd.grad((expected * upstream).sum(), hidden)

    got, entropy = linear_logprobs(hidden, weight, targets, chunk=5, with_entropy=True, **options)
    (grad,) = torch.autograd.grad((got * upstream).sum(), hidden)

    torch.testing.assert_close(got, expected, atol=2e-6, rtol=1e-6)
    torch.testing.assert_close(entropy, expected_entropy.detach(), atol=2e-6, rtol=1e-6)
    torch.testing.assert_close(grad, expected_grad, atol=2e-6, rtol=1e-5)


def test_two_words_worked_by_hand():
    # logits = [2, 0] for hidden 1 and weights [2, 0]: p = sigmoid(2) and its complement.
    hidden = torch.tensor([[1.0]], requires_grad=True)
    weight = torch.tensor([[2.0], [0.0]])
    p = 1 / (1 + math.exp(-2.0))

    logprobs, entropy = linear_logprobs(hidden, weight, torch.tensor([0]), with_entropy=True)
    logprobs.sum().backward()

    assert logprobs.item() == pytest.approx(math.log(p), abs=1e-6)
    assert entropy.item() == pytest.approx(-p * math.log(p) - (1 - p) * math.log(1 - p), abs=1e-6)
    # d/dh [2h - log(e^2h + 1)] = 2 - 2p
    assert hidden.grad.item() == pytest.approx(2 - 2 * p, abs=1e-6)


@pytest.mark.parametrize("chunk", [1, 2, 7, 23, 1000])
def test_the_chunk_size_changes_nothing(chunk):
    hidden, weight, _, targets = make_inputs()
    whole, _ = linear_logprobs(hidden, weight, targets, chunk=ROWS)
    (whole_grad,) = torch.autograd.grad(whole.sum(), hidden)

    got, _ = linear_logprobs(hidden, weight, targets, chunk=chunk)
    (grad,) = torch.autograd.grad(got.sum(), hidden)

    torch.testing.assert_close(got, whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(grad, whole_grad, atol=1e-6, rtol=0)


def test_without_gradients_the_values_are_the_same_bits():
    hidden, weight, _, targets = make_inputs(torch.float32)
    with_grad, _ = linear_logprobs(hidden, weight, targets)

    with torch.no_grad():
        without, entropy = linear_logprobs(hidden, weight, targets)

    assert torch.equal(with_grad.detach(), without)
    assert entropy is None
    assert not without.requires_grad


def test_only_the_rows_gradient_survives_the_forward_pass():
    hidden, weight, _, targets = make_inputs(torch.float32)

    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        linear_logprobs(hidden * 1, weight, targets, chunk=4)

    assert (ROWS, VOCABULARY) not in saved
    assert [tuple(shape) for shape in saved].count((ROWS, HIDDEN)) == 1


def test_no_rows_give_no_logprobs():
    hidden = torch.zeros(0, HIDDEN, requires_grad=True)

    logprobs, _ = linear_logprobs(hidden, torch.zeros(VOCABULARY, HIDDEN), torch.zeros(0, dtype=torch.long))

    assert logprobs.shape == (0,)
    logprobs.sum().backward()
    assert hidden.grad.shape == (0, HIDDEN)


def test_bfloat16_states_keep_float32_logprobs():
    hidden, weight, _, targets = make_inputs(torch.bfloat16)
    logits = functional.linear(hidden, weight).float()
    expected = torch.log_softmax(logits, -1).gather(1, targets[:, None]).squeeze(1)

    got, _ = linear_logprobs(hidden, weight, targets)
    got.sum().backward()

    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert hidden.grad.dtype == torch.bfloat16


def test_a_trainable_head_is_refused():
    hidden, weight, _, targets = make_inputs(torch.float32)

    with pytest.raises(ValueError, match="trainable"):
        linear_logprobs(hidden, weight.requires_grad_(), targets)


def test_shapes_and_temperature_are_checked():
    hidden, weight, _, targets = make_inputs(torch.float32)

    with pytest.raises(ValueError, match="targets"):
        linear_logprobs(hidden, weight, targets[:-1])
    with pytest.raises(ValueError, match="hidden size"):
        linear_logprobs(hidden[:, :-1], weight, targets)
    with pytest.raises(ValueError, match="temperature"):
        linear_logprobs(hidden, weight, targets, temperature=0.0)


def test_hits_are_the_rows_whose_target_is_the_likeliest_token():
    hidden = torch.eye(3)
    weight = torch.tensor([[5.0, 0, 0], [0, 5, 0], [0, 1, 0], [0, 0, 5]])  # rows: 4 tokens
    hits = torch.zeros(3, dtype=torch.bool)

    linear_logprobs(hidden, weight, torch.tensor([0, 2, 3]), chunk=2, hits=hits)

    # Row 1 of the states scores (0, 5, 1, 0): its likeliest token is 1, not its target 2.
    assert hits.tolist() == [True, False, True]
