"""Ranks on torch.distributed: sums of gradients in large flat buckets, small facts as objects."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.errors import StageFailed
from pipeline.place import Place
from stages.runtime.ranks import ONE, Ranks

T = TypeVar("T")
BUCKET_ELEMENTS = 2**25
"Numbers that one meeting adds: fewer meetings, and a copy of at most 128 MiB."
PATIENCE = timedelta(hours=2)
"How long a rank waits for another, such as one that measures or writes."


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """The ranks of one stage, met through torch.distributed."""

    place: Place
    device: torch.device

    @classmethod
    def joined(cls, place: Place) -> ProcessGroup:
        """Meet the other ranks, with NCCL between GPUs and gloo between CPUs."""
        on_gpu = torch.cuda.is_available()
        if on_gpu:
            torch.cuda.set_device(place.local_rank)
        if not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=PATIENCE)
        return cls(place, torch.device("cuda", place.local_rank) if on_gpu else torch.device("cpu"))

    @property
    def rank(self) -> int:
        """Number of this process."""
        return self.place.rank

    @property
    def count(self) -> int:
        """Processes in all."""
        return self.place.count

    @property
    def is_main(self) -> bool:
        """True for rank 0."""
        return self.place.is_main

    @property
    def readers(self) -> Ranks:
        """Return the group; one rank alone where each holds a part of the base."""
        return ONE if self.place.in_parts else self

    def share(self, parts: Sequence[T]) -> Sequence[T]:
        """Return every count-th part, from this rank's number on."""
        return parts[self.rank :: self.count]

    def turns(self, parts: Sequence[T]) -> Sequence[tuple[T, bool]]:
        """Return this rank's parts; where it has too few to keep up, the first of all, not counted."""
        own = [(part, True) for part in self.share(parts)]
        missing = math.ceil(len(parts) / self.count) - len(own) if self.place.in_parts else 0
        return own + [(parts[0], False)] * missing

    def add_gradients(self, parameters: Sequence[nn.Parameter], total: float) -> float:
        """Add gradients bucket by bucket; see Ranks.add_gradients."""
        facts = torch.tensor([total, *(float(p.grad is not None) for p in parameters)], dtype=torch.float64)
        dist.all_reduce(facts)
        total, *present = facts.tolist()
        learned = [p for p, number in zip(parameters, present, strict=True) if number]
        for parameter in learned:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets(learned):
            flat = torch.cat([_gradient(parameter).flatten() for parameter in bucket])
            dist.all_reduce(flat)
            parts = flat.split([parameter.numel() for parameter in bucket])
            for parameter, part in zip(bucket, parts, strict=True):
                _gradient(parameter).copy_(part.view_as(parameter))
        return float(total)

    def add(self, *grids: Tensor) -> None:
        """Add tensors in place."""
        for grid in grids:
            dist.all_reduce(grid)

    def any(self, fact: bool) -> bool:
        """Return whether it is true on any rank."""
        facts = torch.tensor([float(fact)])
        dist.all_reduce(facts, op=dist.ReduceOp.MAX)
        return bool(facts.item())

    def gathered(self, part: T) -> list[T]:
        """Return what every rank gave, by rank."""
        parts: list[T | None] = [None] * self.count
        dist.all_gather_object(parts, part)
        return cast("list[T]", parts)

    def from_main(self, make: Callable[[], T]) -> T:
        """Return what the main rank makes, on every one."""
        held = [make() if self.is_main else None]
        dist.broadcast_object_list(held, src=0)
        return held[0]  # type: ignore[return-value]

    def prove_equal(self, parameters: Sequence[nn.Parameter]) -> None:
        """Compare a digest of every weight's bytes; see Ranks.prove_equal."""
        digest = hashlib.sha256()
        for parameter in parameters:
            digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        if len(set(self.gathered(digest.hexdigest()))) > 1:
            raise StageFailed(
                f"the trained weights of {self.count} ranks differ",
                hint="the same command goes on from the last checkpoint, where they were equal",
                code="ranks-differ",
            )


def _buckets(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Cut parameters into runs of one type and device, of about BUCKET_ELEMENTS numbers."""
    buckets: list[list[nn.Parameter]] = []
    size = 0
    for parameter in parameters:
        kind = (parameter.dtype, parameter.device)
        fits = buckets and (buckets[-1][0].dtype, buckets[-1][0].device) == kind
        if not fits or size + parameter.numel() > BUCKET_ELEMENTS:
            buckets.append([])
            size = 0
        buckets[-1].append(parameter)
        size += parameter.numel()
    return buckets


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        raise ValueError("a parameter without a gradient cannot be added")
    return parameter.grad
