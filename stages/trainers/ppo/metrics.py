"""Metrics of one iteration, under TRL's names where TRL has them. Means over tokens are masked."""

from __future__ import annotations

from torch import Tensor

from stages.ops.kl import k1, k3
from stages.ops.stats import correlation, explained_variance, masked_mean, masked_sum
from stages.ppo import FUNCTION, OUTSIDE
from stages.trainers.ppo.rollout import Readings, Rollouts
from stages.trainers.ppo.scores import Scores
from stages.trainers.ppo.update import Targets, UpdateSums

_SCORE_NAMES = {FUNCTION: "ppo/function_score", OUTSIDE: "ppo/outside_score"}
"Metrics of the sources whose role is fixed; another function's is named after its role."


def rollout_metrics(
    rollouts: Rollouts, readings: Readings, scores: Scores, targets: Targets, *, kl_coef: float
) -> dict[str, float]:
    """Describe a rollout batch before its update.

    objective/kl is the mean KL of a response (k1, summed over its tokens), objective/scores the
    mean of what the reward sources say, before normalisation and penalties, and
    objective/rlhf_reward the mean sum of all rewards paid to a response.
    """
    mask = rollouts.mask
    rows = len(mask)
    kl = k1(readings.logprobs, readings.ref_logprobs)
    mismatch = (readings.logprobs - rollouts.sampled_logprobs).abs()
    metrics = {
        "objective/kl": masked_sum(kl, mask) / rows,
        "objective/entropy": masked_sum(-readings.logprobs, mask) / rows,
        "objective/non_score_reward": -kl_coef * masked_sum(kl, mask) / rows,
        "objective/rlhf_reward": targets.rewards.sum() / rows,
        "objective/scores": scores.mixed.mean(),
        "policy/entropy_avg": masked_mean(readings.entropies, mask),
        "val/num_eos_tokens": rollouts.finished.sum(),
        "ppo/score_std": scores.mixed.std(correction=0),
        "ppo/shaped_score": scores.shaped.mean(),
        "ppo/sqrt_kl": (masked_sum(kl, mask) / rows).clamp_min(0.0).sqrt(),
        "ppo/kl_k3": masked_sum(k3(readings.logprobs, readings.ref_logprobs), mask) / rows,
        "ppo/response_length": rollouts.lengths.float().mean(),
        "ppo/eos_rate": rollouts.finished.float().mean(),
        "ppo/score_length_correlation": correlation(scores.mixed, rollouts.lengths.float()),
        "ppo/distinct_ratio": _distinct_ratio(rollouts),
        "ppo/logprob_mismatch": masked_mean(mismatch, mask),
        "ppo/logprob_mismatch_max": mismatch.max(),
    }
    if readings.values is not None and targets.returns is not None:
        metrics["ppo/explained_variance"] = explained_variance(readings.values, targets.returns, mask)
        metrics["ppo/value_mean"] = masked_mean(readings.values, mask)
    if readings.model_scores is not None:
        metrics["ppo/model_score"] = readings.model_scores.mean()
    for role, said in scores.parts.items():
        metrics[_SCORE_NAMES.get(role, f"ppo/{role}_score")] = said.mean()
    if scores.watched is not None:
        metrics["ppo/watched_score"] = scores.watched.mean()
        metrics["ppo/watched_std"] = scores.watched.std(correction=0)
    return {name: float(value) for name, value in metrics.items()} | {"ppo/kl_coef": kl_coef}


def update_metrics(sums: UpdateSums) -> dict[str, float]:
    """Describe the optimizer steps of an iteration: means over its minibatches."""
    return {
        **sums.means(),
        "ppo/first_ratio_error": sums.first_ratio_error,
        "ppo/optimizer_steps": float(sums.steps),
        "ppo/stopped_early": float(sums.stopped_early),
    }


def _distinct_ratio(rollouts: Rollouts) -> Tensor:
    """Return the mean share of a response's tokens that occur in it for the first time: low is repetition."""
    shares = [len(set(episode.response)) / len(episode.response) for episode in rollouts.episodes]
    return rollouts.sampled_logprobs.new_tensor(shares).mean()
