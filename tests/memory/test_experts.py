"""Mixtures of experts: every weight counted against live models, adapters that reach no expert."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.config.run import ModelConfig, TuningConfig
from pipeline.errors import ModelError
from pipeline.memory.activations import Pass, Precision, logits_bytes, peak_bytes, saved_bytes
from pipeline.memory.choice import workload
from pipeline.memory.cost import cost_of
from pipeline.memory.families import read_shape, shape_of
from pipeline.memory.hardware import Card
from pipeline.memory.storage import weight_bytes
from pipeline.memory.trained import Trained
from stages.runtime.adapters import named_adapter_parameters, new_adapter
from stages.runtime.loading import load_base
from tests.memory.saved import saved_by_dpo, saved_by_ppo, saved_by_reward, saved_by_sft
from tests.memory.shapes import FAMILIES, keys_of
from tests.memory.test_activations import SIZES
from tests.pair_fixtures import FP32
from tests.tiny import tiny_model

MIXED = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe")
FOUR = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96}
SMALL = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 96},
    "qwen2_moe": {**FOUR, "shared_expert_intermediate_size": 80},
    "qwen3_moe": FOUR,
    "olmoe": {**FOUR, "intermediate_size": 96},
}
TRAINERS = {"sft": saved_by_sft, "reward": saved_by_reward, "dpo": saved_by_dpo, "ppo": saved_by_ppo}
TUNING = TuningConfig(lora_r=8, lora_alpha=8)


def _sizes(name):
    return {**SIZES, "num_key_value_heads": 2, **SMALL[name]}


@pytest.mark.parametrize("name", MIXED)
def test_experts_and_routers_are_counted_apart_from_the_linear_maps(name):
    config = AutoConfig.for_model(FAMILIES[name][0], **keys_of(name))
    with torch.device("meta"):
        live = dict(AutoModelForCausalLM.from_config(config).named_parameters())

    shape = shape_of(config.to_dict())

    blocks = [
        value.numel() for key, value in live.items() if ".experts." in key or key.endswith("mlp.gate.weight")
    ]
    assert shape.num_experts == sum(blocks)
    assert shape.num_parameters == sum(value.numel() for value in live.values())


def test_the_weights_that_compute_a_token_are_those_worked_by_hand():
    # Mixtral-8x7B: a layer has 2 * 4096^2 + 2 * 4096 * 1024 of attention, 2 experts of 3 * 4096 * 14336,
    # and a router of 8 * 4096. 12.9 billion with embeddings, norms and head, as its paper says.
    shape = shape_of(
        {
            "model_type": "mixtral",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 32000,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        }
    )
    layer = 2 * 4096**2 + 2 * 4096 * 1024 + 2 * 3 * 4096 * 14336 + 8 * 4096

    assert shape.num_active == 32 * layer
    assert round((shape.num_active + 2 * 32000 * 4096) / 1e9, 1) == 12.9


def test_hours_follow_from_the_experts_that_compute_a_token():
    shape = shape_of({**keys_of("mixtral"), "model_type": "mixtral"})
    card = Card(name="made up", memory_mib=1024, bf16_tflops=1, bandwidth_gbs=1)
    dense = shape_of({**keys_of("mixtral"), "model_type": "mixtral", "num_local_experts": 50})

    work = workload("sft", "lora", batch=1, max_length=64)
    few, many = (cost_of(work, one, card, utilisation=0.5).hours for one in (shape, dense))

    # Ten times the experts, and no more of them a token: only the router grows.
    assert few < many < 1.5 * few


@pytest.mark.parametrize("method", ["qlora", "8bit"])
def test_experts_keep_their_precision_whatever_holds_the_base(method, tmp_path):
    base = tiny_model(tmp_path / "base", "mixtral", **_sizes("mixtral"))
    model = load_base(base, ModelConfig(dtype="bfloat16"), TuningConfig(method=method))

    held = weight_bytes(read_shape(base.path), method, "bfloat16")

    live = [value for key, value in model.named_parameters() if ".experts." in key or ".mlp.gate." in key]
    assert {value.dtype for value in live} == {torch.bfloat16}
    assert held["experts"] == sum(value.numel() * 2 for value in live)


@pytest.mark.parametrize("name", MIXED)
def test_an_adapter_on_all_linear_maps_reaches_no_expert_and_is_as_large_as_planned(name, tmp_path):
    base = tiny_model(tmp_path / "base", name, **_sizes(name))

    model = new_adapter(load_base(base, FP32), TUNING, name="policy", seed=0)

    weights = named_adapter_parameters(model, "policy")
    assert not [key for key, _ in weights if ".experts" in key or ".mlp.gate." in key]
    assert sum(value.numel() for _, value in weights) == Trained(read_shape(base.path), rank=8).num_adapter
    config = model.peft_config["policy"]
    assert not config.target_parameters
    assert not config.rank_pattern


@pytest.mark.parametrize("targets", [("w1",), ("gate_proj", "up_proj"), ("q_proj", "w1", "w3", "w2")])
def test_targets_inside_the_experts_are_refused_before_anything_trains(targets, tmp_path):
    family = "olmoe" if "gate_proj" in targets else "mixtral"
    base = tiny_model(tmp_path / "base", family, **_sizes(family))
    tuning = TUNING.model_copy(update={"target_modules": targets})

    with pytest.raises(ModelError, match="reaches into the experts") as caught:
        new_adapter(load_base(base, FP32), tuning, name="policy", seed=0)

    assert caught.value.findings[0].hint == "all-linear, or of k_proj, o_proj, q_proj, v_proj"


ALWAYS = (("mixtral", "sft", "float32"), ("qwen2_moe", "dpo", "bfloat16"))
CASES = [
    pytest.param(name, stage, dtype, marks=[] if (name, stage, dtype) in ALWAYS else [pytest.mark.slow])
    for name in MIXED
    for stage in TRAINERS
    for dtype in ("float32", "bfloat16")
]


@pytest.mark.parametrize(("name", "stage", "dtype"), CASES)
def test_the_plan_is_within_a_tenth_of_what_hooks_see(name, stage, dtype, tmp_path):
    seen = TRAINERS[stage](tmp_path, name, _sizes(name), dtype=dtype)

    step = Pass(seen.tokens, seen.row_tokens, seen.answers, key_share=seen.key_share)
    precision = Precision(torch.finfo(getattr(torch, dtype)).bits // 8)
    planned = saved_bytes(Trained(read_shape(seen.base), rank=8), precision, step)
    assert sum(planned.values()) == pytest.approx(seen.bytes, rel=0.1)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("name", "stage"), [("mixtral", "sft"), ("qwen3_moe", "ppo")])
def test_the_peak_of_a_backward_pass_is_within_a_tenth_of_the_live_tensors(
    name, stage, checkpointing, tmp_path
):
    tuning = TUNING.model_copy(update={"gradient_checkpointing": checkpointing})
    wide = {**_sizes(name), "hidden_size": 256}

    seen = TRAINERS[stage](tmp_path, name, wide, dtype="bfloat16", tuning=tuning, peak=True)

    trained = Trained(read_shape(seen.base), rank=8)
    logits = logits_bytes(trained.shape, seen.answers, with_entropy=stage == "sft")
    step = Pass(seen.tokens, seen.row_tokens, seen.answers, seen.key_share, checkpointing=checkpointing)
    assert peak_bytes(trained, Precision(2), step, logits=logits) == pytest.approx(seen.bytes, rel=0.1)
