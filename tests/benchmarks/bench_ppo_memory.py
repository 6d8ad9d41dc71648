"""Peak memory of the PPO stage against the SFT stage at equal batch and length.

    python -m tests.benchmarks.bench_ppo_memory [--hidden 512] [--layers 6] [--batch 8] [--checkpointing]

Exact bytes of live tensors: the base once, and everything that a stage makes beyond it: adapters,
optimizer state, gradients, activations, key-value cache. SFT is two optimizer steps of its loss on
packed rows; PPO is sampling, reading by all roles, and an update of two minibatches.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.config.run import ModelConfig, TuningConfig
from pipeline.contract import Checkpoint
from stages.ppo import PPOConfig
from stages.runtime.adapters import (
    AdapterSwitch,
    enable_checkpointing,
    load_adapter,
    named_adapter_parameters,
)
from stages.runtime.backends import OwnSampler
from stages.runtime.loading import backbone, load_base
from stages.runtime.output_head import OutputHead
from stages.runtime.segments import segment_model
from stages.trainers.pair_model import recompute_layers
from stages.trainers.ppo import roles as ppo_roles
from stages.trainers.ppo.plan import minibatches, sampling_generator
from stages.trainers.ppo.rollout import EncodedPrompt, read_rollouts, sample_rollouts
from stages.trainers.ppo.update import make_optimizer, make_targets, update
from stages.trainers.sft_layout import JoinedRows, answer_logprobs
from stages.trainers.sft_rows import IGNORED
from tests.benchmarks.live_bytes import LiveBytes
from tests.ppo_setup import adapter
from tests.tiny import tiny_model

PROMPT, RESPONSE = 64, 64


@dataclass(frozen=True)
class Peaks:
    """Bytes of live tensors at the worst moment, the base's weights included."""

    base: int
    sft: int
    sampling: int
    reading: int
    update: int

    @property
    def ppo(self) -> int:
        """The worst moment of the PPO stage."""
        return max(self.sampling, self.reading, self.update)

    @property
    def ratio(self) -> float:
        """PPO against SFT, both with the base once."""
        return self.ppo / self.sft


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--vocabulary", type=int, default=16_384)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--checkpointing", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        peaks = measure(
            Path(folder),
            batch=options.batch,
            checkpointing=options.checkpointing,
            hidden_size=options.hidden,
            intermediate_size=options.hidden * 11 // 4,
            num_hidden_layers=options.layers,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=options.hidden // 8,
            vocab_size=options.vocabulary,
        )
    print(f"base {mebibytes(peaks.base)}, SFT {mebibytes(peaks.sft)}")
    for phase in ("sampling", "reading", "update"):
        print(
            f"PPO {phase:9} {mebibytes(getattr(peaks, phase))}  {getattr(peaks, phase) / peaks.sft:.3f} x SFT"
        )
    print(f"PPO / SFT, whole stage: {peaks.ratio:.3f}")


def measure(folder: Path, *, batch: int, checkpointing: bool, lora_r: int = 16, **architecture: Any) -> Peaks:
    """Build a random model and its adapters in `folder` and return the peaks of both stages."""
    base = tiny_model(folder / "base", **architecture)
    tuning = TuningConfig(lora_r=lora_r, gradient_checkpointing=checkpointing)
    inputs = {
        "base": base,
        "policy": adapter(folder / "sft", base, seed=1, tuning=tuning),
        "reward": adapter(folder / "reward", base, seed=2, scored=True, tuning=tuning),
    }
    config = PPOConfig(
        model=ModelConfig(dtype="float32"),
        tuning=tuning,
        rollout_batch_size=2 * batch,
        per_device_train_batch_size=batch,
        generation_batch_size=2 * batch,
        max_new_tokens=RESPONSE,
        num_ppo_epochs=1,
        target_kl=None,
    )
    sft = _sft_peak(inputs, tuning, batch=batch)
    return Peaks(_base_bytes(base), sft, **_ppo_peaks(inputs, config))


def _sft_peak(inputs: dict[str, Checkpoint], tuning: TuningConfig, *, batch: int) -> int:
    causal_lm = load_base(inputs["base"], ModelConfig(dtype="float32"), tuning)
    held = bytes_of(causal_lm)
    rows = [_row(number) for number in range(batch)]
    labels = [[IGNORED] * PROMPT + row[PROMPT:] for row in rows]
    joined = JoinedRows()([{"input_ids": a, "labels": b} for a, b in zip(rows, labels, strict=True)])
    with LiveBytes() as live, ExitStack() as stack:
        model = load_adapter(causal_lm, inputs["policy"], name="policy", trainable=True, tuning=tuning)
        if tuning.gradient_checkpointing:
            enable_checkpointing(model, AdapterSwitch(model))
            recompute_layers(model)
        head = OutputHead.of(model, backbone=backbone(model))
        optimizer = torch.optim.AdamW([p for _, p in named_adapter_parameters(model, "policy")])
        stack.enter_context(segment_model(model))
        for _ in range(2):
            (-answer_logprobs(model, head, joined).logprobs.mean()).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return held + live.peak


def _ppo_peaks(inputs: dict[str, Checkpoint], config: PPOConfig) -> dict[str, int]:
    causal_lm = load_base(inputs["base"], config.model, config.tuning)
    held = bytes_of(causal_lm)
    opened, ppo_roles.load_base = ppo_roles.load_base, lambda *_, **__: causal_lm
    peaks = {}
    with LiveBytes() as live:

        def worst() -> int:
            peak, live.peak = held + live.peak, live.now
            return peak

        roles = ppo_roles.load_roles(inputs, config)
        ppo_roles.load_base = opened
        optimizer = make_optimizer(roles, config)
        prompts: Any = [
            EncodedPrompt(None, tuple(_row(n)[:PROMPT])) for n in range(config.rollout_batch_size)
        ]
        live.peak = live.now
        rollouts = sample_rollouts(
            roles,
            prompts,
            config,
            backend=OwnSampler(roles.model, 0, config.generation_batch_size),
            stop_token_ids=(),
            generator=sampling_generator(0, 0),
        )
        peaks["sampling"] = worst()
        plan = minibatches(rollouts.total_lengths, config, iteration=0, epoch=0)
        readings = read_rollouts(roles, rollouts, [micro for part in plan for micro in part])
        peaks["reading"] = worst()
        scores = torch.zeros(config.rollout_batch_size)
        targets = make_targets(readings, scores, rollouts.mask, config, kl_coef=config.kl_coef)
        update(roles, optimizer, rollouts, readings, targets, config, iteration=0)
        peaks["update"] = worst()
    return peaks


def _row(number: int) -> list[int]:
    return [(7 * number + 3 * t) % 200 + 5 for t in range(PROMPT + RESPONSE)]


def _base_bytes(base: Checkpoint) -> int:
    return bytes_of(load_base(base, ModelConfig(dtype="float32")))


def bytes_of(model: torch.nn.Module) -> int:
    """Return the bytes of all weights, each storage once."""
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    return sum(storages.values())


def mebibytes(count: int) -> str:
    """Return bytes as MiB."""
    return f"{count / 2**20:8.1f} MiB"


if __name__ == "__main__":
    main()
