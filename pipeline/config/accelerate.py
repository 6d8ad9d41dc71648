"""The `accelerate:` block: how many processes train one stage, where, and how they share it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.config.strict import StrictModel

Backend = Literal["ddp", "fsdp2", "deepspeed"]


class AccelerateConfig(StrictModel):
    """Several processes for one stage. They share the work, not the result: it is that of one process."""

    num_processes: int = Field(1, ge=1)
    "Processes in all, one a GPU; 1 starts the stage directly, without accelerate."
    num_machines: int = Field(1, ge=1)
    "Machines that the processes are spread over evenly."
    machine_rank: int = Field(0, ge=0)
    "Number of this machine, from 0. Machine 0 makes the run; the others help, on the same store folder."
    main_process_ip: str | None = None
    "Address of machine 0, as the others reach it."
    main_process_port: int | None = Field(None, ge=1, le=65535)
    "Port on machine 0; None takes a free one where there is one machine."
    backend: Backend = "ddp"
    "ddp: every process holds the model; fsdp2: a part of each layer; deepspeed (ZeRO-3): no stage can yet."
    config_file: str | None = None
    "An accelerate config file for all that is not said here; configs/accelerate/ holds three."

    def over(self, under: AccelerateConfig) -> AccelerateConfig:
        """Return these settings where they were given, and those of `under` where they were not."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return under.model_copy(update=given)

    @property
    def is_many(self) -> bool:
        """True when a stage is more than one process."""
        return self.num_processes > 1

    @property
    def in_parts(self) -> bool:
        """True when each process holds a part of the base's layers."""
        return self.is_many and self.backend == "fsdp2"


ONE_PROCESS = AccelerateConfig()
