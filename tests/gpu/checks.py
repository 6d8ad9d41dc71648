"""What must hold on a device: exact starts, exact stops, and 4 bits that are the CPU's 4 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from safetensors.torch import load_file

from pipeline.config.run import ModelConfig, TuningConfig
from pipeline.errors import Interrupted
from stages.runtime.adapters import new_adapter
from stages.runtime.loading import load_base
from tests.test_tunings import Chain, gives
from tests.tiny import ManualStop, tiny_model

TUNINGS = {
    "lora": TuningConfig(lora_r=4, lora_alpha=8),
    "qlora": TuningConfig(method="qlora", lora_r=4, lora_alpha=8, gradient_checkpointing=True),
    "full": TuningConfig(method="full"),
}
KL, DPO_START, RATIO = 1e-4, 2e-2, 1e-4
"Largest KL to the reference (nats), |first DPO loss - ln 2| and |ratio - 1| in half precision."


def start_checks(root: Path, dtype: str) -> list[dict[str, Any]]:
    """Run every stage of three tunings on the device and return what was proven at step 0."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    base = tiny_model(root / "base", **sizes)
    rows = []
    for name, tuning in TUNINGS.items():
        chain = Chain(root / name, base, tuning, model=ModelConfig(dtype=dtype))
        for kind in ("sft", "reward", "dpo", "ppo"):
            if name == "full" and kind == "ppo":
                continue
            made = chain.run(kind)
            metrics, lines = made.result.metrics, made.ctx.logger
            kl = metrics.get("handover/kl", 0.0) if kind != "ppo" else lines.lines[0]["objective/kl"]
            first = max(lines.series("ppo/first_ratio_error"), default=0.0)
            start = metrics.get("handover/loss_minus_ln2", 0.0)
            holds = abs(kl) <= KL and start <= DPO_START and first <= RATIO
            found = {"kl": kl, "dpo": start, "ratio": first, "holds": holds}
            rows.append({"check": f"start {name} {kind}", **found})
    return rows


def resume_checks(root: Path, dtype: str) -> list[dict[str, Any]]:
    """Stop each stage in the middle, go on, and compare with a run that was not stopped."""
    base = tiny_model(root / "resumed", hidden_size=64, intermediate_size=128, head_dim=16)
    rows = []
    for name in ("lora", "qlora"):
        chain = Chain(root / f"resume-{name}", base, TUNINGS[name], model=ModelConfig(dtype=dtype))
        for kind in ("sft", "reward", "dpo", "ppo"):
            whole = chain.run(kind).result.outputs[gives(name, kind)]
            spec, ctx = chain.context(kind, f"{kind}-parts", stop=ManualStop(after=0 if kind == "ppo" else 1))
            stopped = False
            try:
                spec.run(ctx)
            except Interrupted:
                stopped = True
            spec, ctx = chain.context(kind, f"{kind}-parts")
            parts = spec.run(ctx).outputs[gives(name, kind)]
            apart = _largest_difference(whole, parts)
            # A GPU's sums may come in another order; a lost optimizer state is off by far more.
            rows.append(
                {"check": f"resume {name} {kind}", "difference": apart, "holds": stopped and apart <= 1e-3}
            )
    return rows


def nf4_check(device: torch.device) -> dict[str, Any]:
    """Quantise one matrix on the CPU and on the device and compare what comes back."""
    weight = torch.randn(512, 256, generator=torch.Generator().manual_seed(0))

    def back(on: torch.device) -> torch.Tensor:
        made = bnb.nn.Params4bit(
            weight.clone(), requires_grad=False, quant_type="nf4", compress_statistics=True
        ).to(on)
        return bnb.functional.dequantize_4bit(made.data, made.quant_state).float().cpu()

    apart = float((back(device) - back(torch.device("cpu"))).abs().max())
    return {"check": "nf4 on the device is the CPU's", "difference": apart, "holds": apart <= 1e-2}


def offload_check(root: Path, device: torch.device, dtype: str) -> dict[str, Any]:
    """Compare one pass with offloaded activations and one without: gradients to the bit, and the peak."""
    base = tiny_model(root / "offloaded", hidden_size=256, intermediate_size=1024, head_dim=64)
    ids = (torch.arange(8 * 256).reshape(8, 256) % 250).to(device)
    gradients, peaks = [], []
    for on in (False, True):
        tuning = TuningConfig(lora_r=8, activation_offloading=on)
        model = new_adapter(load_base(base, ModelConfig(dtype=dtype), tuning), tuning, name="policy", seed=0)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        model(input_ids=ids, use_cache=False).logits.float().square().mean().backward()
        peaks.append(torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0)
        gradients.append([w.grad.clone() for w in model.parameters() if w.grad is not None])
        del model
    same = all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    less = peaks[1] < peaks[0] or device.type != "cuda"
    name = "offloaded activations: the same gradients, a lower peak"
    return {"check": name, "peaks": peaks, "holds": same and less}


def _largest_difference(one: Path, other: Path) -> float:
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    return max(float((first[key] - second[key]).abs().max()) for key in first)
