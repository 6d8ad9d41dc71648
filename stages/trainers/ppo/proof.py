"""Proofs at step 0: the policy is its parent and its reference, its ratio is 1, the right weights learn."""

from __future__ import annotations

import torch

from pipeline.contract import Checkpoint
from pipeline.errors import HandOverError
from stages.ops.kl import k3
from stages.ops.stats import masked_mean
from stages.runtime.handover import prove_hand_over, prove_head
from stages.trainers.ppo.roles import POLICY, REFERENCE, Roles
from stages.trainers.ppo.rollout import Readings, Rollouts

STEP_ZERO_TOLERANCE = 1e-6
"Largest KL(policy, reference) a token and |ratio - 1| of a policy that has not been trained."
STEP_ZERO_TOLERANCE_HALF = 1e-2
"The same on a base in half precision, where an adapter of larger rank rounds differently."


def prove_start(parent: Checkpoint, reward: Checkpoint | None, roles: Roles) -> dict[str, float]:
    """Prove what can be proven before any sampling; return the measurements."""
    found = prove_hand_over(roles.model, parent, policy=POLICY, reference=REFERENCE, has_reference=True)
    if reward is not None and roles.reward_head is not None:
        prove_head(roles.reward_head.tensors(), reward)
    trained = {id(p) for p in (*roles.policy_parameters().values(), *roles.value_parameters().values())}
    head = [] if roles.value_head is None else roles.value_head.parameters()
    learning = {id(p) for p in (*roles.model.parameters(), *head) if p.requires_grad}
    if trained != learning:
        raise HandOverError(
            f"{len(learning - trained)} weights outside policy and value would learn, "
            f"{len(trained - learning)} inside would not",
            hint="report this: nothing but the policy and value adapters may be trainable",
            code="wrong-trainable-set",
        )
    return found.metrics()


def prove_reference_on(rollouts: Rollouts, readings: Readings, roles: Roles) -> None:
    """Check on the first responses that the reference is the policy.

    Raises:
        HandOverError: it is not.
    """
    kl = float(masked_mean(k3(readings.logprobs, readings.ref_logprobs), rollouts.mask))
    if kl > _tolerance(roles):
        raise HandOverError(
            f"KL(policy, reference) is {kl:.3g} nats a token before the first step",
            hint="give the adapter of the policy's own SFT stage",
            code="reference-is-not-parent",
        )


def prove_ratio(error: float, roles: Roles) -> None:
    """Check, before an iteration's first optimizer step, that the policy's ratio to itself is 1.

    Raises:
        HandOverError: the policy read twice is not itself, so its ratios mean nothing.
    """
    if error > _tolerance(roles):
        raise HandOverError(
            f"the policy's ratio to itself is off by {error:.3g} before the first step",
            hint="switch off what is random in the model, such as dropout",
            code="ratio-not-one",
        )


def _tolerance(roles: Roles) -> float:
    in_full = roles.output_head.weight.dtype == torch.float32
    return STEP_ZERO_TOLERANCE if in_full else STEP_ZERO_TOLERANCE_HALF
