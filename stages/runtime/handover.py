"""Proofs, before the first optimizer step, that a stage starts from its parent and trains what it says.

The parent's weights are read straight from its file and applied by hand, so that a mistake in how an
adapter was loaded, named, scaled or switched cannot hide in the library that made it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from pipeline.contract import Checkpoint
from pipeline.errors import HandOverError
from stages.runtime.adapter_folder import HEAD_KEY, StoredAdapter, open_adapter, read_tensors
from stages.runtime.adapter_weights import MAGNITUDE, named_adapter_parameters, stored_key
from stages.runtime.dora import with_lengths
from stages.runtime.loading import base_of, causal_lm_of
from stages.runtime.modes import evaluating
from stages.runtime.switch import AdapterSwitch

LOGGER = logging.getLogger(__name__)

LOGIT_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
"Largest logit difference, for logits of size up to 1; larger logits scale it."
KL_TOLERANCE = 1e-6
"Largest KL(policy, reference) in nats a token."
_PREFIX = "base_model.model."
_LOAD_PARENT = (
    "load the parent with load_adapter(..., trainable=True); never wrap an adapter folder a second time"
)


@dataclass(frozen=True, slots=True)
class HandOver:
    """What was measured before the first step."""

    logit_difference: float
    "Largest difference between the policy and the parent as its file says."
    kl: float
    "KL(policy, reference), nats a token; 0 without a reference."
    num_trainable: int
    "Parameters that get gradients."

    def metrics(self) -> dict[str, float]:
        """Return the measurements under their metric names."""
        return {
            "handover/logit_difference": self.logit_difference,
            "handover/kl": self.kl,
            "handover/num_trainable": float(self.num_trainable),
        }


def prove_hand_over(
    model: PeftModel,
    parent: Checkpoint | None,
    *,
    policy: str,
    reference: str | None = None,
    has_reference: bool = False,
    probe: Tensor | None = None,
) -> HandOver:
    """Prove that a policy adapter is its parent's, that the reference equals it, and that it can learn.

    Args:
        model: base with its adapters, as the stage will train it.
        parent: the adapter that the policy must equal; None when the parent is the base itself.
        policy: name of the policy's adapter.
        reference: name of the reference's adapter; None stands for the base alone.
        has_reference: whether the stage compares the policy with a reference at all.
        probe: token ids (rows, tokens) to compare on; a few fixed ids when None.

    Raises:
        HandOverError: one of the three does not hold.
    """
    switch = AdapterSwitch(model)
    trainable = [(key, value) for key, value in model.named_parameters() if value.requires_grad]
    prove_trainable(trainable, adapter=policy)
    stored = None if parent is None else open_adapter(parent, base_of(model))
    if stored is not None:
        prove_same_weights(model, stored, adapter=policy)
    ids = probe_ids(model) if probe is None else probe
    with switch.on(policy):
        got = probe_logits(model, ids)
    with switch.on(None):
        alone = probe_logits(model, ids)
        want = alone if stored is None else _parent_logits(model, stored, ids, policy=policy)
    difference = prove_same_policy(got, want, base=alone, parent=parent)
    kl = 0.0
    if has_reference:
        with switch.on(reference):
            kl = prove_reference(got, probe_logits(model, ids))
    return HandOver(difference, kl, sum(value.numel() for _, value in trainable))


def prove_same_policy(
    logits: Tensor,
    parent_logits: Tensor,
    *,
    tolerance: float | None = None,
    base: Tensor | None = None,
    parent: Checkpoint | None = None,
) -> float:
    """Check that two sets of logits are the same policy; return their largest difference.

    Args:
        logits: of the policy at step 0 (..., vocabulary).
        parent_logits: of the parent, same shape.
        tolerance: largest difference allowed; None takes it from the dtype and the size of the logits.
        base: of the base without any adapter, to say what went wrong.
        parent: named in the message.

    Raises:
        HandOverError: they differ by more.
    """
    allowed = _tolerance(parent_logits) if tolerance is None else tolerance
    difference = _largest(logits - parent_logits)
    # In bf16 a lightly trained parent may be within the tolerance of the base itself.
    without_effect = base is not None and torch.equal(logits, base) and not torch.equal(parent_logits, base)
    if difference <= allowed and not without_effect:
        return difference
    name = (parent.source or str(parent.path)) if parent else "its parent"
    what = f"the policy differs from {name} by up to {difference:.3g} in its logits before the first step"
    if without_effect:
        what += ": it equals the base, so the parent's adapter was reset or is not in effect"
    raise HandOverError(what, where=name, hint=_LOAD_PARENT, code="policy-is-not-parent")


def prove_same_weights(model: PeftModel, parent: StoredAdapter, *, adapter: str) -> None:
    """Check that an adapter holds its parent's numbers bit for bit, with the parent's scale.

    A wider one holds them in its first ranks and zeros in the rest of lora_B.

    Raises:
        HandOverError: a weight or the scale differs.
    """
    named = named_adapter_parameters(model, adapter)
    held = {stored_key(key, adapter): value.detach() for key, value in named}
    different = sorted(held.keys() ^ parent.tensors.keys())
    different += [
        key
        for key in sorted(held.keys() & parent.tensors.keys())
        if not _holds(held[key], parent.tensors[key], axis=0 if ".lora_A." in key else 1)
    ]
    what = ""
    if different:
        what = f"{len(different)} weights of adapter {adapter!r} are not those of {parent.name}"
        what += f", first {different[0]}"
        if not any(bool(value.any()) for key, value in held.items() if ".lora_B." in key):
            what += ": lora_B is zero, so it equals the base: the parent's adapter was reset"
    elif scales := {scale for scale in _scales(model, adapter) if not math.isclose(scale, parent.scale)}:
        what = f"adapter {adapter!r} is scaled by {scales.pop():g}, its parent by {parent.scale:g}"
    if what:
        raise HandOverError(what, where=parent.name, hint=_LOAD_PARENT, code="policy-is-not-parent")


def prove_trainable(parameters: Sequence[tuple[str, nn.Parameter]], *, adapter: str | None = None) -> int:
    """Check that there is something to train and that it gets gradients; return the number of weights.

    Args:
        parameters: what the optimizer will be given.
        adapter: the adapter that must be among them.

    Raises:
        HandOverError: nothing is trainable, or the adapter is not.
    """
    learning = [(name, value) for name, value in parameters if value.requires_grad]
    if not learning:
        hint = "load the adapter with trainable=True; a model opened from an adapter folder alone is frozen"
        raise HandOverError("no parameter is trainable", hint=hint, code="nothing-trainable")
    if adapter is not None and not any(f".{adapter}." in name for name, _ in learning):
        message = f"no parameter of adapter {adapter!r} is trainable"
        hint = "something froze it: switch adapters with AdapterSwitch, not with set_adapter"
        raise HandOverError(message, hint=hint, code="nothing-trainable")
    return sum(value.numel() for _, value in learning)


def prove_reference(policy_logits: Tensor, ref_logits: Tensor, *, tolerance: float = KL_TOLERANCE) -> float:
    """Check that the reference is the policy at step 0; return KL(policy, reference), nats a token.

    KL = mean over tokens of sum_v p(v) (log p(v) - log q(v)), in fp64.

    Args:
        policy_logits: (..., vocabulary).
        ref_logits: same shape.
        tolerance: largest KL allowed.

    Raises:
        HandOverError: the KL is larger.
    """
    log_p, log_q = policy_logits.double().log_softmax(-1), ref_logits.double().log_softmax(-1)
    kl = float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
    if abs(kl) <= tolerance:
        return kl
    raise HandOverError(
        f"the reference is not the policy at step 0: KL(policy, reference) is {kl:.3g} nats a token",
        hint="load the parent twice, as the policy and as the frozen reference; "
        "the base without an adapter is the reference only where nothing was trained before",
        code="reference-is-not-parent",
    )


def prove_head(head: Mapping[str, Tensor], source: Checkpoint) -> None:
    """Check that a score head holds exactly the numbers of its folder.

    Raises:
        HandOverError: a weight is missing, added or different.
    """
    stored = {
        key.removeprefix(HEAD_KEY): value
        for key, value in read_tensors(source).items()
        if key.startswith(HEAD_KEY)
    }
    same = stored.keys() == head.keys() and all(
        torch.equal(head[key].detach().cpu().float(), stored[key].float()) for key in stored
    )
    if not same or not stored:
        raise HandOverError(
            f"the score head is not the one that {source.source or source.path} holds",
            where=source.source,
            hint="read it with load_head; a head that a library makes anew is random",
            code="other-head",
        )


def probe_ids(model: nn.Module, *, rows: int = 2, tokens: int = 12) -> Tensor:
    """Return fixed token ids (rows, tokens) spread over the vocabulary, on the model's device."""
    inner = causal_lm_of(model)
    embedding = inner.get_input_embeddings().weight
    count = rows * tokens
    ids = torch.arange(count) * 2654435761 % embedding.shape[0]
    return ids.reshape(rows, tokens).to(embedding.device)


def probe_logits(model: nn.Module, ids: Tensor) -> Tensor:
    """Return the logits (rows, tokens, vocabulary) of a model in eval() under the adapter in effect now."""
    with torch.no_grad(), evaluating(model):
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits


def _parent_logits(model: PeftModel, parent: StoredAdapter, ids: Tensor, *, policy: str) -> Tensor:
    """Return the logits of the base with the parent's stored weights added by hand at every layer.

    They are filled up with zeros to the policy's rank: the same sums in the same order, so that the
    rounding of bf16, which grows from layer to layer, is the same too.
    """
    with _added_by_hand(causal_lm_of(model), parent, rank=int(model.peft_config[policy].r)):
        return probe_logits(model, ids)


@contextmanager
def _added_by_hand(inner: nn.Module, parent: StoredAdapter, *, rank: int) -> Iterator[None]:
    """y + scale * (x A^T) B^T at every layer that the parent's file names; adapters must be disabled."""
    hooks = []
    try:
        for key in sorted(key for key in parent.tensors if key.endswith(".lora_A.weight")):
            path = key.removeprefix(_PREFIX).removesuffix(".lora_A.weight")
            more = max(0, rank - parent.rank)
            down = nn.functional.pad(parent.tensors[key], (0, 0, 0, more))
            up = nn.functional.pad(parent.tensors[key.replace(".lora_A.", ".lora_B.")], (0, more))
            lengths = parent.tensors.get(_PREFIX + path + MAGNITUDE)
            adding = _adding(down, up, parent.scale, lengths)
            hooks.append(inner.get_submodule(path).register_forward_hook(adding))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _adding(
    down: Tensor, up: Tensor, scale: float, lengths: Tensor | None
) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0].to(torch.float32)
        a, b = (weight.to(x) for weight in (down, up))
        plain = output + nn.functional.linear(nn.functional.linear(x, a), b) * scale
        if lengths is not None and isinstance(module, LoraLayer):
            plain = with_lengths(plain, module, down=a, up=b, scale=scale, lengths=lengths)
        return plain.to(output.dtype)

    return hook


def _holds(held: Tensor, stored: Tensor, *, axis: int) -> bool:
    """True when the first ranks are the stored ones and, in lora_B, the rest is zero."""
    if stored.dim() == 1:
        return torch.equal(held, stored.to(held))
    ranks = stored.shape[axis]
    if held.dim() != stored.dim() or held.shape[axis] < ranks:
        return False
    rest = held.narrow(axis, ranks, held.shape[axis] - ranks)
    return torch.equal(held.narrow(axis, 0, ranks), stored.to(held)) and (axis == 0 or not bool(rest.any()))


def _scales(model: PeftModel, adapter: str) -> set[float]:
    found = (getattr(module, "scaling", None) for module in model.modules())
    return {float(scaling[adapter]) for scaling in found if isinstance(scaling, dict) and adapter in scaling}


def _tolerance(logits: Tensor) -> float:
    return LOGIT_TOLERANCE.get(logits.dtype, 1e-5) * max(1.0, _largest(logits))


def _largest(values: Tensor) -> float:
    return float(values.detach().abs().max())
