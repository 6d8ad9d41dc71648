"""What can be said of an `accelerate:` block before a stage starts: every finding, its place and a remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import yaml

from pipeline.config.accelerate import AccelerateConfig
from pipeline.contract import StageSpec
from pipeline.errors import Finding
from pipeline.memory.card_size import num_cards

_PLAIN = ("MULTI_GPU", "MULTI_CPU")
_TYPES = {"ddp": _PLAIN, "fsdp2": _PLAIN, "deepspeed": ("DEEPSPEED",)}
"""Backend -> what an accelerate config file calls its distributed_type.

fsdp2 is not accelerate's FSDP: the stage cuts the layers of its base itself."""


def many_findings(
    spec: StageSpec,
    accelerate: AccelerateConfig,
    *,
    cards: Callable[[], int] = num_cards,
) -> list[Finding]:
    """Return what is wrong with a stage's processes.

    Args:
        spec: says how several processes may train it.
        accelerate: the block, the run's merged with the stage's.
        cards: counts the GPUs that can be seen; 0 on a machine that trains on its CPU.
    """
    if not accelerate.is_many:
        return [_place(finding) for finding in _alone(accelerate)]
    findings = [*_kind(spec, accelerate), *_machines(accelerate), *_config_file(accelerate)]
    visible, local = cards(), accelerate.num_processes // max(1, accelerate.num_machines)
    if 0 < visible < local:
        message = f"{local} processes on this machine, but {visible} visible GPUs"
        hint = f"num_processes: {visible * accelerate.num_machines}, or CUDA_VISIBLE_DEVICES"
        findings.append(Finding(message, "num_processes", hint, "too-few-gpus"))
    return [_place(finding) for finding in findings]


def _place(finding: Finding) -> Finding:
    return Finding(finding.message, f"accelerate.{finding.where}", finding.hint, finding.code)


def _alone(accelerate: AccelerateConfig) -> list[Finding]:
    """Settings that mean nothing for one process."""
    if accelerate.num_machines == 1 and accelerate.backend == "ddp":
        return []
    told = (
        f"num_machines is {accelerate.num_machines}"
        if accelerate.num_machines > 1
        else (f"backend is {accelerate.backend}")
    )
    hint = "num_processes: the processes of all machines together"
    return [Finding(f"{told}, but num_processes is 1", "num_processes", hint, "one-process")]


def _kind(spec: StageSpec, accelerate: AccelerateConfig) -> list[Finding]:
    """Refuse what the stage's trainer cannot do."""
    count, backend = accelerate.num_processes, accelerate.backend
    if not spec.backends:
        message = f"a {spec.kind} stage runs as one process, not as {count}"
        return [Finding(message, "num_processes", "num_processes: 1", "not-for-many")]
    if backend not in spec.backends:
        message = f"a {spec.kind} stage cannot be trained with {backend}"
        return [Finding(message, "backend", f"backend: {spec.backends[0]}", "not-for-many")]
    return []


def _machines(accelerate: AccelerateConfig) -> list[Finding]:
    findings = []
    count, machines = accelerate.num_processes, accelerate.num_machines
    if count % machines:
        message = f"{count} processes cannot be spread evenly over {machines} machines"
        findings.append(Finding(message, "num_processes", "a multiple of num_machines", "uneven-machines"))
    if accelerate.machine_rank >= machines:
        message = f"machine_rank is {accelerate.machine_rank}, but there are {machines} machines from 0"
        findings.append(Finding(message, "machine_rank", f"0 to {machines - 1}", "bad-machine-rank"))
    if machines > 1:
        for key in ("main_process_ip", "main_process_port"):
            if getattr(accelerate, key) is None:
                hint = f"{key}: the {key.rsplit('_', 1)[1]} at which machine 0 is reached"
                findings.append(
                    Finding(f"{machines} machines need {key}", "num_machines", hint, "no-meeting-place")
                )
    return findings


def _config_file(accelerate: AccelerateConfig) -> list[Finding]:
    """Check that an accelerate config file is there and means the backend that the block names."""
    if accelerate.config_file is None:
        return []
    path = Path(accelerate.config_file)
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        given = None
    if not isinstance(given, dict):
        message = f"{path} is no accelerate config file that can be read"
        return [Finding(message, "config_file", "configs/accelerate/ddp.yaml", "bad-config-file")]
    kind = str(given.get("distributed_type"))
    if kind in _TYPES[accelerate.backend]:
        return []
    message = f"{path.name} says distributed_type: {kind}, but backend is {accelerate.backend}"
    hint = f"distributed_type: {_TYPES[accelerate.backend][0]}"
    if kind == "DEEPSPEED":
        hint += ", or backend: deepspeed"
    return [Finding(message, "config_file", hint, "other-backend")]
