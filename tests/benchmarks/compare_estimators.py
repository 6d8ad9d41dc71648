"""The memory plan and other public estimates against live tensors, on the same cases, on a CPU.

    python -m tests.benchmarks.compare_estimators

Measured: bytes of the base and the peak of every tensor made in two optimizer steps.
accelerate: `accelerate estimate-memory`, its own functions on the same model.
bytes a weight: transformers' "Model training anatomy": 18 bytes a trained weight in mixed precision with
AdamW, 16 here in float32 (weight, gradient, two moments); for adapters the base's weights plus 16 an
adapter weight.
Transformer Math 101 (EleutherAI): the same plus activations of s b h L (10 + 24 + 5 a s / h) bytes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from accelerate.commands.estimate import estimate_training_usage
from accelerate.utils import calculate_maximum_sizes
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.config.run import ModelConfig, TuningConfig
from pipeline.memory.estimate import estimate, trained_weights
from pipeline.memory.families import shape_of
from pipeline.memory.shape import ModelShape
from pipeline.memory.work import Workload
from tests.gpu.bases import random_base
from tests.gpu.measure import peak_bytes_of
from tests.gpu.steps import STAGES, Sizes, make_step

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 8192,
    "tie_word_embeddings": False,
    "max_position_embeddings": 2048,
}
SIZES = Sizes(rows=4, prompt=192, answer=64)
MIB = 2**20


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    shape = shape_of(CONFIG)
    print(f"{shape.num_parameters / 1e6:.1f} million weights, {SIZES.rows} x {SIZES.length} tokens, MiB")
    print(f"{'stage':<7} {'tuning':<16} {'measured':>9} {'plan':>14} {'accelerate':>18}", end=" ")
    print(f"{'bytes a weight':>18} {'Math 101':>18}")
    for checkpointing in (False, True):
        for method in ("lora", "qlora"):
            for stage in STAGES:
                tuning = TuningConfig(method=method, lora_r=16, gradient_checkpointing=checkpointing)
                _show(stage, tuning, shape)


def _show(stage: str, tuning: TuningConfig, shape: ModelShape) -> None:
    measured, plan, *others = estimates(stage, tuning, shape)
    name = tuning.method + (", recomputed" if tuning.gradient_checkpointing else "")
    print(f"{stage:<7} {name:<16} {measured / MIB:>9.0f} {_beside(plan, measured):>14}", end=" ")
    print(" ".join(f"{_beside(other, measured):>18}" for other in others))


def estimates(stage: str, tuning: TuningConfig, shape: ModelShape) -> tuple[float, ...]:
    """Return bytes: measured, the plan's, accelerate's and those of the two formulas."""
    base = random_base(CONFIG, four_bits=tuning.method == "qlora", device=torch.device("cpu"))
    step = make_step(stage, base, tuning, SIZES)
    measured = peak_bytes_of(step, base, torch.device("cpu"))
    work = replace(step.work, model=ModelConfig(dtype="float32"), autocast=False)
    needed = estimate(work, shape)
    plan = needed.allocated.expected - needed.terms["workspace"].expected
    return float(measured), plan, _accelerate(), *_formulas(work, shape)


def _beside(value: float, measured: float) -> str:
    return f"{value / MIB:.0f} ({value / measured - 1:+.0%})"


def _accelerate() -> float:
    """Return what `accelerate estimate-memory` prints for training with Adam in float32."""
    keys = {key: value for key, value in CONFIG.items() if key != "model_type"}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **keys))
    total, _ = calculate_maximum_sizes(model)
    return float(max(estimate_training_usage(total, "float32").values()))


def _formulas(work: Workload, shape: ModelShape) -> tuple[float, float]:
    adapter = trained_weights(work, shape).num_trained
    held = shape.num_parameters * (0.5 if work.tuning and work.tuning.method == "qlora" else 4)
    weights = held + 16 * adapter
    tokens, row = (work.step.tokens, work.step.row_tokens) if work.step else (0, 0)
    # Two bytes a number there; float32 here.
    each = 2 * (10 + 24 + 5 * shape.heads * row / shape.hidden)
    return weights, weights + tokens * shape.hidden * shape.layers * each


if __name__ == "__main__":
    main()
