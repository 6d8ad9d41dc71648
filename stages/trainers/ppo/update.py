"""The update: from scores and readings to targets, and from targets to optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pipeline.errors import StageFailed
from stages.ops.advantages import gae, group_advantages, group_normalised, rescaled, whitened
from stages.ops.kl import k3
from stages.ops.ppo_losses import policy_losses, ratios, value_losses
from stages.ops.rewards import token_rewards
from stages.ops.stats import masked_sum
from stages.ppo import PPOConfig
from stages.runtime.optimizers import make_adamw
from stages.runtime.ranks import ONE, Ranks
from stages.trainers.ppo.batches import TokenBatch
from stages.trainers.ppo.plan import learning_rate_factor, minibatches
from stages.trainers.ppo.proof import prove_ratio
from stages.trainers.ppo.roles import Roles
from stages.trainers.ppo.rollout import Readings, Rollouts


@dataclass(frozen=True, slots=True)
class Targets:
    """What the two losses aim at, (batch, response), zero outside the mask."""

    rewards: Tensor
    advantages: Tensor
    returns: Tensor | None
    "What values aim at; None without a value function."


@dataclass(slots=True)
class UpdateSums:
    """Sums over the minibatches of one iteration; each minibatch counts once."""

    minibatches: int = 0
    steps: int = 0
    num_tokens: int = 0
    "Tokens that policy and value function computed, prompts included."
    totals: dict[str, float] = field(default_factory=dict)
    first_ratio_error: float = 0.0
    "Largest |ratio - 1| in the first minibatch: 0 unless the policy read twice differs from itself."
    stopped_early: bool = False

    def add(self, name: str, value: float) -> None:
        """Add a minibatch's number."""
        self.totals[name] = self.totals.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        """Return each number as a mean over minibatches."""
        return {name: total / max(1, self.minibatches) for name, total in self.totals.items()}


def make_targets(
    readings: Readings, scores: Tensor, mask: Tensor, config: PPOConfig, *, kl_coef: float
) -> Targets:
    """Turn scores into rewards a token, and these into advantages and returns.

    Without a value function a response is judged by the whole of its rewards against the other
    responses to its prompt. For grpo the scores of a prompt are first brought to deviation 1; the
    KL price stays in the rewards, where every estimator here has it, and not in the loss.

    Args:
        readings: of the roles before the update.
        scores: what is paid at the last real token, (batch,).
        mask: (batch, response).
        config: gamma, lam and whitening.
        kl_coef: price of a nat now.
    """
    if config.advantage == "grpo":
        scores = group_normalised(scores, group_size=config.group_size)
    rewards = token_rewards(scores, readings.logprobs, readings.ref_logprobs, mask=mask, kl_coef=kl_coef)
    if config.whiten_rewards:
        rewards = rescaled(rewards, mask)
    returns = None
    if readings.values is None:
        advantages = group_advantages(rewards, mask, group_size=config.group_size)
    else:
        values = readings.values
        advantages, returns = gae(rewards, values, mask, gamma=config.gamma, lam=config.lam)
        if config.value_lam is not None:
            _, returns = gae(rewards, values, mask, gamma=config.gamma, lam=config.value_lam)
    if config.whiten_advantages:
        advantages = whitened(advantages, mask)
    return Targets(rewards, advantages, returns)


def make_optimizer(roles: Roles, config: PPOConfig) -> torch.optim.Optimizer:
    """Make AdamW with one group for the policy and one for the value function, without decay.

    Decay would pull an adapter to zero, that is to the base and not to the SFT policy.
    """
    groups = [
        {"params": list(roles.policy_parameters().values()), "lr": config.learning_rate},
        {"params": list(roles.value_parameters().values()), "lr": config.value_peak_learning_rate},
    ]
    groups = [group for group in groups if group["params"]]
    rate, epsilon = config.learning_rate, config.adam_epsilon
    return make_adamw(groups, config.tuning.optimizer, lr=rate, eps=epsilon, weight_decay=0.0)


def update(
    roles: Roles,
    optimizer: torch.optim.Optimizer,
    rollouts: Rollouts,
    readings: Readings,
    targets: Targets,
    config: PPOConfig,
    *,
    iteration: int,
    ranks: Ranks = ONE,
) -> UpdateSums:
    """Take the optimizer steps of one iteration; the learning rate is one for all of them.

    Several ranks share the micro-batches of each minibatch. Both losses are over the tokens of the whole
    minibatch, so gradients and sums of ranks are added.

    Raises:
        HandOverError: the policy's ratio to itself was not 1 before the first step.
        StageFailed: a loss or a gradient is not finite.
    """
    factor = learning_rate_factor(iteration, config)
    policy_rate = config.learning_rate if iteration >= config.value_warmup_iterations else 0.0
    rates = (policy_rate, config.value_peak_learning_rate)
    for group, rate in zip(optimizer.param_groups, rates, strict=False):
        group["lr"] = factor * rate
    step = _Minibatch(roles, optimizer, rollouts, readings, targets, config, UpdateSums(), ranks)
    with roles.reading(), roles.recomputing():
        for epoch in range(config.num_ppo_epochs):
            for micro_batches in minibatches(
                rollouts.total_lengths, config, iteration=iteration, epoch=epoch, ranks=ranks.count
            ):
                step.accumulate(micro_batches)
                if step.sums.minibatches == 1:
                    prove_ratio(step.sums.first_ratio_error, roles)
                if step.sums.stopped_early:
                    return step.all_sums()
                step.apply()
    return step.all_sums()


@dataclass(slots=True)
class _Minibatch:
    """Accumulates the gradients of one minibatch and applies them."""

    roles: Roles
    optimizer: torch.optim.Optimizer
    rollouts: Rollouts
    readings: Readings
    targets: Targets
    config: PPOConfig
    sums: UpdateSums
    ranks: Ranks

    def accumulate(self, micro_batches: Sequence[Sequence[int]]) -> None:
        """Run both losses over the micro-batches, each over the tokens of the whole minibatch."""
        rows = [row for micro in micro_batches for row in micro]
        num_tokens = int(self.rollouts.mask[rows].sum())
        before = self.sums.totals.get("policy/approxkl_avg", 0.0)
        self.optimizer.zero_grad(set_to_none=True)
        for micro, counts in self.ranks.turns(micro_batches):
            batch = self.roles.batch(self.rollouts.take(micro))
            if not counts:
                self._keep_up(batch)
                continue
            reading = self.roles.read_policy(batch)
            loss = self._policy_loss(reading.logprobs, micro, num_tokens)
            if reading.values is not None:
                loss = loss + self.config.vf_coef * self._value_loss(reading.values, micro, num_tokens)
            loss.backward()
            if self.roles.value_on == "adapter":
                # Only now the forward pass of the value function: never both graphs at once.
                del reading, loss
                value_loss = self._value_loss(self.roles.values(batch), micro, num_tokens)
                (self.config.vf_coef * value_loss).backward()
        self.sums.minibatches += 1
        passes = 2 if self.roles.value_on == "adapter" else 1
        self.sums.num_tokens += passes * sum(episode.length for episode in self.rollouts.take(rows))
        moved = sum(self.ranks.gathered(self.sums.totals.get("policy/approxkl_avg", 0.0) - before))
        if self.sums.minibatches == 1:
            self.sums.first_ratio_error = max(self.ranks.gathered(self.sums.first_ratio_error))
        if self.config.target_kl is not None and moved > self.config.target_kl:
            self.sums.stopped_early = True
            self.optimizer.zero_grad(set_to_none=True)

    def _keep_up(self, batch: TokenBatch) -> None:
        """Run both passes of a micro-batch that is another rank's, for layers that all ranks run together."""
        reading = self.roles.read_policy(batch)
        loss = 0.0 * reading.logprobs.sum()
        if reading.values is not None:
            loss = loss + 0.0 * reading.values.sum()
        loss.backward()
        if self.roles.value_on == "adapter":
            del reading, loss
            (0.0 * self.roles.values(batch).sum()).backward()

    def apply(self) -> None:
        """Clip the two gradients apart and take the step."""
        groups = self.optimizer.param_groups
        self.ranks.add_gradients([parameter for group in groups for parameter in group["params"]], 0.0)
        for group, name in zip(groups, ("policy", "value"), strict=False):
            norm = float(nn.utils.clip_grad_norm_(group["params"], self.config.max_grad_norm))
            _require_finite(norm, f"{name} gradient's norm", self.config)
            if self.ranks.is_main:
                self.sums.add(f"ppo/{name}_grad_norm", norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.sums.steps += 1

    def all_sums(self) -> UpdateSums:
        """Return the sums of all ranks' micro-batches."""
        self.sums.totals, *others = self.ranks.gathered(self.sums.totals)
        for totals in others:
            for name, value in totals.items():
                self.sums.add(name, value)
        return self.sums

    def _policy_loss(self, logprobs: Tensor, rows: Sequence[int], num_tokens: int) -> Tensor:
        old = self._flat(self.readings.logprobs, rows)
        terms = policy_losses(
            logprobs,
            old,
            self._flat(self.targets.advantages, rows),
            cliprange=self.config.cliprange,
            cliprange_high=self.config.cliprange_high,
            dual_clip=self.config.dual_clip,
        )
        if self.config.importance_cap is not None:
            # The generator sampled from another distribution: truncated importance weights.
            drawn = self._flat(self.rollouts.sampled_logprobs, rows)
            terms = terms.weighted(ratios(old, drawn).clamp(max=self.config.importance_cap))
        every = torch.ones_like(old, dtype=torch.bool)
        loss = terms.mean_over(every, num_tokens=num_tokens)
        new = logprobs.detach()
        ratio = ratios(new, old)
        if not self.sums.minibatches:
            worst = float((ratio - 1).abs().max())
            self.sums.first_ratio_error = max(self.sums.first_ratio_error, worst)
        self._add("loss/policy_avg", loss, "policy loss")
        self._add("policy/approxkl_avg", masked_sum(k3(old, new), every) / num_tokens, "policy KL")
        self._add("policy/clipfrac_avg", terms.clipped.sum() / num_tokens, "clip fraction")
        self._add("val/ratio", ratio.sum() / num_tokens, "ratio")
        return loss

    def _value_loss(self, values: Tensor, rows: Sequence[int], num_tokens: int) -> Tensor:
        if self.readings.values is None or self.targets.returns is None:
            raise ValueError("there is a value function, but it was not read")
        terms = value_losses(
            values,
            self._flat(self.readings.values, rows),
            self._flat(self.targets.returns, rows),
            cliprange_value=self.config.cliprange_value,
        )
        every = torch.ones_like(terms.clipped)
        loss = terms.mean_over(every, num_tokens=num_tokens)
        self._add("loss/value_avg", loss, "value loss")
        self._add("val/clipfrac_avg", terms.clipped.sum() / num_tokens, "clip fraction")
        return loss

    def _flat(self, grid: Tensor, rows: Sequence[int]) -> Tensor:
        """Return one number an action of the named rows, in the order of a batch."""
        return grid[list(rows)][self.rollouts.mask[list(rows)]]

    def _add(self, name: str, value: Tensor, what: str) -> None:
        number = float(value.detach())
        _require_finite(number, what, self.config)
        self.sums.add(name, number)


def _require_finite(value: float, what: str, config: PPOConfig) -> None:
    if not math.isfinite(value):
        raise StageFailed(
            f"the {what} is {value}",
            hint=f"a learning_rate below {config.learning_rate:g}, or a larger kl_coef",
            code="non-finite-loss",
        )
