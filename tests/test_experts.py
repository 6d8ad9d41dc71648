"""A mixture of experts through the stages: what SFT says it learned, and adapters that are handed on."""

from __future__ import annotations

import json

import pytest

from pipeline.config.run import TuningConfig
from tests.test_tunings import Chain
from tests.tiny import tiny_model

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_experts_per_tok": 2}
FAMILIES = {
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {
        "num_experts": 4,
        "moe_intermediate_size": 48,
        "shared_expert_intermediate_size": 80,
        "head_dim": 16,
    },
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 48, "head_dim": 16},
    "olmoe": {"num_experts": 4, "head_dim": 16},
}
CASES = [
    pytest.param(name, method, marks=[] if (name, method) == ("mixtral", "lora") else [pytest.mark.slow])
    for name in FAMILIES
    for method in ("lora", "qlora", "full")
]


@pytest.mark.parametrize(("name", "method"), CASES)
def test_experts_pass_through_every_stage(name, method, tmp_path):
    base = tiny_model(tmp_path / "base", name, **SIZES, **FAMILIES[name])
    chain = Chain(tmp_path / "chain", base, TuningConfig(method=method, lora_r=4, lora_alpha=8))

    for kind in ("sft", "reward", "dpo") if method == "full" else ("sft", "reward", "dpo", "ppo"):
        made = chain.run(kind)
        assert made.counts[0] == chain.planned(kind), kind
        assert made.result.metrics["handover/logit_difference"] < 1e-5

    # The loss of the answers, not nothing: a loss on the routers' balance takes another way.
    assert chain.run("sft").result.metrics["train_loss"] > 1.0


def test_a_whole_mixture_keeps_the_balance_of_its_config(tmp_path):
    base = tiny_model(
        tmp_path / "base", "mixtral", **SIZES, **FAMILIES["mixtral"], router_aux_loss_coef=0.037
    )
    chain = Chain(tmp_path / "chain", base, TuningConfig(method="full"))

    folder = chain.run("sft").result.outputs["model"]

    assert json.loads((folder / "config.json").read_text())["router_aux_loss_coef"] == 0.037
