"""Which of the processes of a stage this one is, as its launcher tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a process among those that train one stage; one process by default."""

    rank: int = 0
    "From 0; rank 0 alone writes."
    count: int = 1
    local_rank: int = 0
    "Among the processes of this machine: the number of its GPU."
    in_parts: bool = False
    "Each process holds a part of the base's layers only."

    @property
    def is_main(self) -> bool:
        """True for the process that writes checkpoints, metrics and results."""
        return self.rank == 0

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Place:
        """Read the place from the variables that torch's launcher sets; without them there is one process."""
        count = int(environment.get("WORLD_SIZE", "1"))
        if count == 1:
            return cls()
        return cls(int(environment["RANK"]), count, int(environment["LOCAL_RANK"]))


ONLY = Place()
"The place of a stage's one process."
