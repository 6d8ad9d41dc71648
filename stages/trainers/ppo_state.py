"""What PPO carries from one iteration to the next, and how it is written and read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import torch
from torch import nn

from stages.ops.stats import RunningMoments
from stages.runtime.checkpoints import CheckpointFolder
from stages.runtime.training_state import (
    NamedParameters,
    pack_optimizer,
    pack_parameters,
    restore_optimizer,
    restore_parameters,
)
from stages.trainers.ppo_roles import Roles

RECENT = 10
"Iterations over which the final metrics are averaged."


@dataclass(slots=True)
class PPOState:
    """Everything beyond weights and optimizer: random numbers are a function of seed and iteration."""

    kl_coef: float
    iteration: int = 0
    "Iterations finished."
    episodes: int = 0
    optimizer_steps: int = 0
    moments: RunningMoments = field(default_factory=RunningMoments)
    recent: list[dict[str, float]] = field(default_factory=list)
    "Metrics of the last iterations."

    def finish_iteration(self, metrics: Mapping[str, float]) -> None:
        """Count an iteration and keep its metrics among the recent ones."""
        self.iteration += 1
        self.recent = [*self.recent, dict(metrics)][-RECENT:]

    def final_metrics(self) -> dict[str, float]:
        """Return each metric as a mean over the last iterations."""
        names = self.recent[-1] if self.recent else {}
        return {name: sum(line[name] for line in self.recent) / len(self.recent) for name in names}


class PPOCheckpoints:
    """Checkpoints at iteration boundaries: trained weights, optimizer state and PPOState."""

    def __init__(self, folder: CheckpointFolder, roles: Roles, optimizer: torch.optim.AdamW) -> None:
        self._folder = folder
        self._optimizer = optimizer
        self._policy: NamedParameters = sorted(roles.policy_parameters().items())
        self._value: NamedParameters = sorted(roles.value_parameters().items())

    def save(self, state: PPOState) -> None:
        """Write the state after its last finished iteration."""
        tensors = {
            "policy": pack_parameters(self._policy),
            "value": pack_parameters(self._value),
            "optimizer": pack_optimizer(self._optimizer, self._trained),
        }
        self._folder.save(state.iteration, tensors, asdict(state))

    def restore(self, fresh: PPOState) -> PPOState:
        """Put weights and optimizer back and return the newest whole state, or `fresh` when there is none."""
        found = self._folder.latest()
        if found is None:
            return fresh
        restore_parameters(self._policy, found.tensors["policy"])
        restore_parameters(self._value, found.tensors["value"])
        restore_optimizer(self._optimizer, self._trained, found.tensors["optimizer"])
        return PPOState(**{**found.state, "moments": RunningMoments(**found.state["moments"])})

    @property
    def notes(self) -> tuple[str, ...]:
        """Damaged checkpoints that were passed over."""
        return tuple(str(finding) for finding in self._folder.damages)

    @property
    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [*self._policy, *self._value]
