"""Worlds small enough to know the optimum of PPO exactly, behind the face of the trainer's own roles.

Everything but the language model is the trainer's code: readings, scores, rewards, GAE, whitening,
minibatches, losses and optimizer. The policy and the value function are tables over prefixes.

For r(x, y) and a price beta the optimum is pi*(y|x) = ref(y|x) exp(r / beta) / Z(x), and
J* = mean_x beta log Z(x), with J(pi) = E r - beta KL(pi || ref).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from stages.ops.masks import length_mask
from stages.ops.stats import RunningMoments
from stages.ppo import PPOConfig
from stages.trainers.order import seed_of
from stages.trainers.ppo import update as ppo_update
from stages.trainers.ppo.batches import Episode
from stages.trainers.ppo.plan import minibatches
from stages.trainers.ppo.roles import PolicyReading
from stages.trainers.ppo.rollout import Rollouts, read_rollouts
from stages.trainers.ppo.scores import score_rollouts
from stages.trainers.ppo.sources import Sources

Sequence_ = tuple[int, ...]


@dataclass(frozen=True)
class World:
    """Prompts, tokens, an end token or none, a longest response; rewards and reference by seed."""

    prompts: int
    tokens: int
    longest: int
    eos: int | None
    beta: float
    seed: int
    states: dict[tuple[int, Sequence_], int] = field(default_factory=dict)
    rewards: dict[tuple[int, Sequence_], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        for prompt in range(self.prompts):
            for length in range(self.longest):
                for prefix in product([t for t in range(self.tokens) if t != self.eos], repeat=length):
                    self.states[prompt, prefix] = len(self.states)
            for response in self.responses():
                self.rewards[prompt, response] = float(torch.randn((), generator=generator))

    def responses(self) -> list[Sequence_]:
        """Return every response that can be sampled."""
        inner = [t for t in range(self.tokens) if t != self.eos]
        ended = [
            (*prefix, self.eos)
            for length in range(self.longest)
            for prefix in product(inner, repeat=length)
            if self.eos is not None
        ]
        return [*ended, *product(inner, repeat=self.longest)]

    def reference(self) -> Tensor:
        """Return the reference's logits, (states, tokens)."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        return 0.5 * torch.randn(len(self.states), self.tokens, generator=generator)

    def table(self, logits: Tensor) -> Tensor:
        """Return log-probabilities of all responses, (prompts, responses), with gradient."""
        logprobs = logits.double().log_softmax(-1)
        rows = [
            torch.stack(
                [
                    logprobs[
                        [self.states[prompt, response[:t]] for t in range(len(response))], response
                    ].sum()
                    for response in self.responses()
                ]
            )
            for prompt in range(self.prompts)
        ]
        return torch.stack(rows)

    def reward_table(self) -> Tensor:
        """Return rewards of all responses, (prompts, responses)."""
        rows = [
            [self.rewards[prompt, response] for response in self.responses()]
            for prompt in range(self.prompts)
        ]
        return torch.tensor(rows, dtype=torch.float64)

    def optimum(self) -> tuple[Tensor, float]:
        """Return log pi* of all responses and J*."""
        scores = self.table(self.reference()) + self.reward_table() / self.beta
        return scores.log_softmax(1), float(self.beta * scores.logsumexp(1).mean())

    def objective(self, logits: Tensor) -> float:
        """Return J of a policy, by enumeration."""
        logp, ref = self.table(logits), self.table(self.reference())
        return float((logp.exp() * (self.reward_table() - self.beta * (logp - ref))).sum(1).mean())

    def gap(self, logits: Tensor) -> float:
        """Return J* - J, which is never negative."""
        return self.optimum()[1] - self.objective(logits)

    def kl_from_optimum(self, logits: Tensor) -> float:
        """Return KL(pi || pi*), mean over prompts."""
        logp = self.table(logits)
        return float((logp.exp() * (logp - self.optimum()[0])).sum(1).mean())


WORLD_A = World(prompts=2, tokens=6, longest=2, eos=None, beta=0.5, seed=3)
"Two prompts, always two tokens: 72 responses."
WORLD_B = World(prompts=1, tokens=5, longest=3, eos=4, beta=0.5, seed=5)
"Four tokens and an end token, at most three: 1 + 4 + 16 + 64 = 85 responses."


class TableRoles:
    """The face of stages.trainers.ppo.roles.Roles over tables."""

    def __init__(self, world: World, config: PPOConfig) -> None:
        self.world = world
        self.value_on = config.value_on
        self.logits = nn.Parameter(world.reference())
        self.ref_logits = world.reference()
        self.table = nn.Parameter(torch.zeros(len(world.states)))
        self.device = torch.device("cpu")
        self.reward_head = None
        self.output_head = SimpleNamespace(weight=torch.zeros(1))

    @contextmanager
    def reading(self) -> Iterator[None]:
        yield

    recomputing = reading

    def policy_parameters(self) -> dict[str, nn.Parameter]:
        return {"logits": self.logits}

    def value_parameters(self) -> dict[str, nn.Parameter]:
        return {} if self.value_on is None else {"table": self.table}

    def batch(self, episodes: Sequence[Episode]) -> Any:
        states = [
            self.world.states[episode.prompt[0], tuple(episode.response[:t])]
            for episode in episodes
            for t in range(len(episode.response))
        ]
        targets = [token for episode in episodes for token in episode.response]
        return SimpleNamespace(states=torch.tensor(states), targets=torch.tensor(targets))

    def read_policy(self, batch: Any, *, with_entropy: bool = False) -> PolicyReading:
        logprobs = self.logits[batch.states].log_softmax(-1)
        chosen = logprobs.gather(1, batch.targets[:, None]).squeeze(1)
        entropies = -(logprobs.exp() * logprobs).sum(1) if with_entropy else None
        return PolicyReading(chosen, entropies, self.values(batch) if self.value_on == "trunk" else None)

    def logprobs(self, role: str, batch: Any) -> Tensor:
        assert role == "ref"
        return self.ref_logits[batch.states].log_softmax(-1).gather(1, batch.targets[:, None]).squeeze(1)

    def values(self, batch: Any) -> Tensor:
        return self.table[batch.states]

    @torch.no_grad()
    def sample(self, rows: int, generator: torch.Generator, *, group_size: int) -> Rollouts:
        """Sample responses, prompts in turn, each answered `group_size` times in a row."""
        world = self.world
        probabilities = self.logits.softmax(-1)
        prompts = [row // group_size % world.prompts for row in range(rows)]
        responses: list[list[int]] = [[] for _ in range(rows)]
        live = list(range(rows))
        for _ in range(world.longest):
            states = [world.states[prompts[row], tuple(responses[row])] for row in live]
            tokens = torch.multinomial(probabilities[states], 1, generator=generator).squeeze(1).tolist()
            for row, token in zip(live, tokens, strict=True):
                responses[row].append(token)
            live = [row for row, token in zip(live, tokens, strict=True) if token != world.eos]
            if not live:
                break
        lengths = torch.tensor([len(response) for response in responses])
        mask = length_mask(lengths, width=int(lengths.max()))
        finished = torch.tensor([world.eos is None or response[-1] == world.eos for response in responses])
        encoded = [SimpleNamespace(row=SimpleNamespace(id=str(p), prompt=p, meta={})) for p in prompts]
        episodes = [Episode((p,), response) for p, response in zip(prompts, responses, strict=True)]
        return Rollouts(encoded, episodes, mask, finished, torch.zeros(mask.shape))


@dataclass(frozen=True)
class Faults:
    """Where a test may plant a fault between the trainer's steps."""

    rollouts: Callable[[Any], Any] = field(default=lambda rollouts: rollouts)
    update_readings: Callable[[Any], Any] = field(default=lambda readings: readings)


def solve(world: World, config: PPOConfig, *, faults: Faults = Faults()) -> Tensor:
    """Train a table with the trainer's own steps and return the policy's logits."""
    roles: Any = TableRoles(world, config)
    optimizer = ppo_update.make_optimizer(roles, config)
    chat: Any = SimpleNamespace(decode=tuple)

    def reward(prompt: int, response: Sequence_, row: Any) -> float:
        return world.rewards[prompt, response]

    sources: Any = Sources({"reward_function": reward})
    for iteration in range(config.iterations):
        generator = torch.Generator().manual_seed(seed_of(config.seed, "sample", iteration))
        rollouts = roles.sample(config.rollout_batch_size, generator, group_size=config.group_size)
        scored = faults.rollouts(rollouts)
        plan = minibatches(rollouts.total_lengths, config, iteration=iteration, epoch=0)
        readings = read_rollouts(roles, scored, [micro for part in plan for micro in part])
        scores = score_rollouts(
            rollouts, readings, config, chat=chat, sources=sources, moments=RunningMoments()
        )
        targets = ppo_update.make_targets(
            readings, scores.shaped, scored.mask, config, kl_coef=config.kl_coef
        )
        ppo_update.update(
            roles, optimizer, scored, faults.update_readings(readings), targets, config, iteration=iteration
        )
    return roles.logits.detach()


def settings(world: World, **changes: Any) -> PPOConfig:
    """Return settings under which a table reaches the optimum in a few seconds."""
    given = {
        "kl_coef": world.beta,
        "total_iterations": 300,
        "rollout_batch_size": 256,
        "per_device_train_batch_size": 256,
        "num_mini_batches": 1,
        "num_ppo_epochs": 4,
        "learning_rate": 0.05,
        "value_learning_rate": 0.1,
        "lam": 0.95,
        "missing_eos_penalty": 0.0,
        "cliprange_value": None,
        "max_grad_norm": 100.0,
        "target_kl": None,
        "max_new_tokens": 8,
    }
    return PPOConfig(**{**given, **changes})
