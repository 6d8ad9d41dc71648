"""Measures a step: its peak, against the plan's, and its speed."""

from __future__ import annotations

import gc
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from pipeline.config.run import TuningConfig
from pipeline.memory.estimate import estimate
from pipeline.memory.families import shape_of
from tests.benchmarks.live_bytes import LiveBytes
from tests.gpu.bases import config_of, random_base
from tests.gpu.steps import Sizes, Step, make_step


@dataclass(frozen=True)
class Measured:
    """One case: what was planned and what was seen, in bytes."""

    base: str
    held: str
    stage: str
    planned: int
    seen: int
    tokens_a_second: float
    sample_tokens_a_second: float | None
    packed: bool

    @property
    def ratio(self) -> float:
        """Planned against seen."""
        return self.planned / max(1, self.seen)

    def plain(self) -> dict[str, Any]:
        """Return the case for JSON."""
        return {**asdict(self), "ratio": self.ratio}


def measure(
    base: str, stage: str, *, four_bits: bool, device: torch.device, sizes: Sizes, checkpointing: bool = True
) -> Measured:
    """Build a base, take steps of a stage on it, and compare the peak with the plan."""
    _settle(device)
    config = config_of(base)
    tuning = TuningConfig(
        method="qlora" if four_bits else "lora", lora_r=16, gradient_checkpointing=checkpointing
    )
    model = random_base(config, four_bits=four_bits, device=device)
    step = make_step(stage, model, tuning, sizes)
    _settle(device)
    seen = peak_bytes_of(step, model, device)
    tokens = _speed(step.take, device, step.tokens)
    sampled = None
    if step.sample is not None:
        sampled = _speed(step.sample, device, sizes.rows * sizes.answer, times=1)
    planned = int(estimate(step.work, shape_of(config)).allocated.expected)
    held = "nf4" if four_bits else "bf16"
    return Measured(base, held, stage, planned, seen, tokens, sampled, step.unpacked_because is None)


def peak_bytes_of(step: Step, model: torch.nn.Module, device: torch.device) -> int:
    """Return the most bytes that were allocated over two steps and one round of sampling."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        _run(step)
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in model.parameters()}
    with LiveBytes() as live:
        _run(step)
    return sum(held.values()) + live.peak


def _run(step: Step) -> None:
    for _ in range(2):
        step.take()
    if step.sample is not None:
        step.sample()


def _speed(take: Any, device: torch.device, tokens: int, *, times: int = 3) -> float:
    _wait(device)
    began = time.perf_counter()
    for _ in range(times):
        take()
    _wait(device)
    return times * tokens / (time.perf_counter() - began)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _settle(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
