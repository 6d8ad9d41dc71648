"""Log-probabilities of chosen tokens straight from hidden states, without a (tokens, vocabulary) tensor.

Tensors in, tensors out: no model, no tokenizer, no masks. Only rows that count are passed in.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

CPU_CHUNK_ELEMENTS = 2**22
"Logits held at once on a CPU (16 MiB in float32): about what its caches can hold."
GPU_CHUNK_ELEMENTS = 2**26
"Logits held at once on a GPU (256 MiB in float32): enough rows to fill it."


def linear_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
    with_entropy: bool = False,
    bias: Tensor | None = None,
    softcap: float | None = None,
    hits: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return log softmax(logits)[target] of each row, with its gradient to `hidden`.

        logits  = softcap * tanh((hidden @ weight.T + bias) / softcap) / temperature
        d logprob / d hidden = (onehot(target) - softmax(logits)) @ weight / temperature

    The upstream gradient is one number a row, so the forward pass already computes that
    row vector, chunk by chunk, keeps it (rows, hidden) and drops the logits; the backward
    pass multiplies. The head must be frozen: no gradient flows to `weight` or `bias`.

    Args:
        hidden: last hidden states that predict `targets`, (rows, hidden).
        weight: output embedding, (vocabulary, hidden), frozen.
        targets: token ids, (rows,).
        temperature: divides the logits.
        chunk: rows computed at once; None chooses by vocabulary and device. The result does
            not depend on it beyond rounding.
        with_entropy: also return the entropy of each row's distribution (no gradient).
        bias: output bias, (vocabulary,), frozen.
        softcap: bound of the logits before the temperature (Gemma); None is no bound.
        hits: bool (rows,), filled in place: True where the target is the likeliest token.

    Returns:
        Log-probabilities (rows,) in float32, and entropies (rows,) in nats or None.

    Raises:
        ValueError: a trainable head, shapes that do not fit, or a temperature that is not positive.
    """
    _check(hidden, weight, targets, bias)
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    chunk = chunk if chunk is not None else _chunk_rows(weight)
    options = (temperature, chunk, with_entropy, softcap, hits)
    if torch.is_grad_enabled() and hidden.requires_grad:
        logprobs, entropies = _LinearLogprobs.apply(hidden, weight, targets, bias, *options)
    else:
        logprobs, entropies, _ = _forward(hidden, weight, targets, bias, *options, with_jacobian=False)
    return logprobs, (entropies if with_entropy else None)


class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, *options: Any
    ) -> tuple[Tensor, Tensor]:
        logprobs, entropies, jacobian = _forward(hidden, weight, targets, *options, with_jacobian=True)
        ctx.save_for_backward(jacobian)
        ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, grad_logprobs: Tensor, _grad_entropies: Tensor) -> tuple[Tensor | None, ...]:
        (jacobian,) = ctx.saved_tensors
        grad_hidden = (grad_logprobs[:, None] * jacobian).to(jacobian.dtype)
        return grad_hidden, None, None, None, None, None, None, None, None


def _forward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    temperature: float,
    chunk: int,
    with_entropy: bool,
    softcap: float | None,
    hits: Tensor | None,
    *,
    with_jacobian: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    rows = hidden.shape[0]
    logprobs = torch.empty(rows, dtype=torch.float32, device=hidden.device)
    entropies = torch.empty(rows if with_entropy else 0, dtype=torch.float32, device=hidden.device)
    jacobian = torch.empty_like(hidden) if with_jacobian else hidden.new_empty(0)
    # Autocast would round the head to another precision than the model's own forward uses.
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        for start in range(0, rows, chunk):
            part = slice(start, start + chunk)
            target = targets[part, None]
            logits = functional.linear(hidden[part].to(weight.dtype), weight, bias).float()
            slope = _softcap_(logits, softcap) if softcap is not None else None
            if temperature != 1.0:
                logits.div_(temperature)
            chosen = logits.gather(1, target).squeeze(1)
            norm = logits.logsumexp(1)
            if hits is not None:
                hits[part] = chosen >= logits.amax(1)
            logprobs[part] = chosen - norm
            if not (with_jacobian or with_entropy):
                continue
            logits.sub_(norm[:, None])
            probs = logits.exp() if with_entropy else logits.exp_()
            if with_entropy:
                entropies[part] = -torch.linalg.vecdot(probs, logits)
            if with_jacobian:
                jacobian[part] = _row_gradients(probs, weight, target, slope).div_(temperature)
    return logprobs, entropies, jacobian


def _row_gradients(probs: Tensor, weight: Tensor, target: Tensor, slope: Tensor | None) -> Tensor:
    """Return (onehot(target) - probs) @ weight, each logit scaled by the slope of its softcap."""
    if slope is None:
        return weight[target.squeeze(1)].float() - torch.mm(probs.to(weight.dtype), weight).float()
    chosen = weight[target.squeeze(1)].float() * slope.gather(1, target)
    return chosen - torch.mm(probs.mul_(slope).to(weight.dtype), weight).float()


def _softcap_(logits: Tensor, softcap: float) -> Tensor:
    """Bound the logits in place and return the derivative of the bound."""
    logits.div_(softcap).tanh_()
    slope = 1 - logits.square()
    logits.mul_(softcap)
    return slope


def _chunk_rows(weight: Tensor) -> int:
    elements = GPU_CHUNK_ELEMENTS if weight.is_cuda else CPU_CHUNK_ELEMENTS
    return max(16, elements // weight.shape[0])


def _check(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None) -> None:
    if hidden.ndim != 2 or targets.shape != hidden.shape[:1] or weight.ndim != 2:
        raise ValueError(
            "needs hidden (rows, hidden), weight (vocabulary, hidden), targets (rows,), got "
            f"{tuple(hidden.shape)}, {tuple(weight.shape)}, {tuple(targets.shape)}"
        )
    if weight.shape[1] != hidden.shape[1]:
        raise ValueError(f"the head has hidden size {weight.shape[1]}, the states {hidden.shape[1]}")
    if torch.is_grad_enabled() and (weight.requires_grad or (bias is not None and bias.requires_grad)):
        raise ValueError("the output embedding is trainable, but gets no gradient here: freeze it")
