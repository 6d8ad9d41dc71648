"""What PPO carries from one iteration to the next, and how it is written and read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from stages.ops.stats import RunningMoments
from stages.runtime.ranks import ONE, Ranks
from stages.runtime.saving.checkpoints import CheckpointFolder
from stages.runtime.saving.training_state import (
    NamedParameters,
    pack_optimizer,
    pack_parameters,
    restore_optimizer,
    restore_parameters,
)
from stages.trainers.ppo.monitor import HISTORY
from stages.trainers.ppo.roles import Roles

FINAL = 10
"Iterations over which the final metrics are averaged."
SMOOTHED = 3
"Iterations whose mean score says how good a policy is: one batch alone is noise."


@dataclass(slots=True)
class PPOState:
    """Everything beyond weights and optimizer: random numbers are a function of seed and iteration."""

    kl_coef: float
    iteration: int = 0
    "Iterations finished."
    episodes: int = 0
    optimizer_steps: int = 0
    num_tokens: int = 0
    "Tokens computed: every pass over a prompt and its response, of whatever role, counts."
    moments: RunningMoments = field(default_factory=RunningMoments)
    first: dict[str, float] = field(default_factory=dict)
    "Metrics of the first iteration."
    recent: list[dict[str, float]] = field(default_factory=list)
    "Metrics of the last iterations."
    alarms: dict[str, str] = field(default_factory=dict)
    "What went wrong, by name: the first time it did, in one sentence."
    stopped: bool = False
    "An alarm ended the training."
    best_score: float | None = None
    "Of the policy to be kept, as best_score() gave it."
    best_iteration: int = 0
    "Iterations after which that policy stood."

    def finish_iteration(self, metrics: Mapping[str, float]) -> None:
        """Count an iteration and keep its metrics among the recent ones."""
        self.iteration += 1
        self.first = self.first or dict(metrics)
        self.recent = [*self.recent, dict(metrics)][-HISTORY:]

    def final_metrics(self) -> dict[str, float]:
        """Return each metric as a mean over the last iterations."""
        lines = self.recent[-FINAL:]
        names = lines[-1] if lines else {}
        return {name: sum(line[name] for line in lines) / len(lines) for name in names}


class BestPolicy:
    """A copy, on the CPU, of the policy that scored best so far."""

    def __init__(self, roles: Roles) -> None:
        self._policy: NamedParameters = sorted(roles.policy_parameters().items())
        self.weights: dict[str, Tensor] = {}

    def offer(self, state: PPOState, metrics: Mapping[str, float]) -> None:
        """Copy the policy that gave these metrics, before its update, if it is the best so far."""
        lines = [*state.recent[1 - SMOOTHED :], metrics]
        score = sum(best_score(line) for line in lines) / len(lines)
        if state.best_score is None or score > state.best_score:
            state.best_score, state.best_iteration = score, state.iteration
            self.weights = {
                name: value.cpu().clone() for name, value in pack_parameters(self._policy).items()
            }

    def put_back(self) -> None:
        """Give the policy its best weights again."""
        restore_parameters(self._policy, self.weights)


def best_score(metrics: Mapping[str, float]) -> float:
    """Return what a policy is judged by: the watched score if there is one, else all rewards, KL included."""
    return metrics.get("ppo/watched_score", metrics["objective/rlhf_reward"])


class PPOCheckpoints:
    """Checkpoints at iteration boundaries: trained weights, optimizer state and PPOState."""

    def __init__(
        self,
        folder: CheckpointFolder,
        roles: Roles,
        optimizer: torch.optim.Optimizer,
        best: BestPolicy,
        *,
        ranks: Ranks = ONE,
    ) -> None:
        self._folder, self._ranks = folder, ranks
        self._best = best
        self._optimizer = optimizer
        self._policy: NamedParameters = sorted(roles.policy_parameters().items())
        self._value: NamedParameters = sorted(roles.value_parameters().items())

    def save(self, state: PPOState) -> None:
        """Write the state after its last finished iteration; of several ranks the main one does."""
        self.prove_equal()
        if not self._ranks.is_main:
            return
        tensors = {
            "policy": pack_parameters(self._policy),
            "value": pack_parameters(self._value),
            "optimizer": pack_optimizer(self._optimizer, self._trained),
            "best": self._best.weights,
        }
        self._folder.save(state.iteration, tensors, asdict(state))

    def restore(self, fresh: PPOState) -> PPOState:
        """Put weights and optimizer back and return the newest whole state, or `fresh` when there is none."""
        found = self._ranks.from_main(self._folder.latest)
        if found is None:
            self.prove_equal()
            return fresh
        restore_parameters(self._policy, found.tensors["policy"])
        restore_parameters(self._value, found.tensors.get("value", {}))
        restore_optimizer(self._optimizer, self._trained, found.tensors["optimizer"])
        self._best.weights = dict(found.tensors.get("best", {}))
        self.prove_equal()
        return PPOState(**{**found.state, "moments": RunningMoments(**found.state["moments"])})

    def prove_equal(self) -> None:
        """Check that every rank holds the same trained weights."""
        self._ranks.prove_equal([parameter for _, parameter in self._trained])

    @property
    def notes(self) -> tuple[str, ...]:
        """Damaged checkpoints that were passed over."""
        return tuple(str(finding) for finding in self._folder.damages)

    @property
    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [*self._policy, *self._value]
