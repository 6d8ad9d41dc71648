"""What `plan` says of packing from config.json alone agrees with what the models themselves say."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.contract import StageCheck
from stages.dpo import SPEC as DPO
from stages.dpo import DPOConfig
from stages.runtime.loading import backbone
from stages.runtime.packing import PACKED, UNPACKED, packing_note, unpacked_because
from stages.runtime.segment_check import supports_segments
from stages.sft import SPEC as SFT
from stages.sft import SftConfig
from tests.tiny import tiny_config, tiny_model

SIZES = {
    **{"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    **{"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "n_embd": 32},
    **{
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 512,
        "n_inner": 64,
        "ffn_dim": 64,
        "word_embed_proj_dim": 32,
    },
    **{"d_model": 32, "dropout": 0.0, "attention_dropout": 0.0, "num_layers": 2, "mamba_n_heads": 4},
    **{"mamba_d_head": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8},
    **{"linear_value_head_dim": 8, "state_size": 4, "rotary_dim": 8},
}
"Small values for the sizes that some families have beside the usual ones."


def self_test(family: str, **changes) -> str | None:
    """Build a tiny random model of a family and ask it."""
    usual = AutoConfig.for_model(family)
    sizes = {name: value for name, value in SIZES.items() if hasattr(usual, name)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(tiny_config(family, **sizes, **changes)).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.15)
    return supports_segments(model, backbone=backbone(model))


@pytest.mark.parametrize("family", sorted(PACKED))
def test_every_family_that_is_forecast_packed_passes_the_self_test(family):
    assert self_test(family) is None


@pytest.mark.parametrize("family", ["gpt_oss", "bloom", "mamba", "gptj", "stablelm", "qwen3_next"])
def test_a_family_that_is_forecast_padded_is_refused_by_the_self_test(family):
    assert family in UNPACKED
    assert self_test(family) is not None


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "llama"}, None),
        ({"model_type": "llama", "layer_types": ["full_attention", "sliding_attention"]}, None),
        ({"model_type": "llama", "layer_types": ["full_attention", "conv"]}, "layers of type conv"),
        ({"model_type": "falcon", "alibi": True}, "position bias"),
        ({"model_type": "gpt_oss"}, "sinks"),
        ({"model_type": "shell", "text_config": {"model_type": "mamba"}}, "recurrent"),
        ({"model_type": "deberta-v2"}, "encoder"),
    ],
)
def test_the_reason_is_read_off_the_config(config, reason):
    found = unpacked_because(config)

    assert (found is None) == (reason is None)
    assert reason is None or reason in found


def test_the_note_names_the_family_and_says_when_nobody_knows(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "newcomer"}))

    assert "newcomer" in packing_note(tmp_path)
    assert "self-test" in packing_note(tmp_path)
    assert packing_note(tmp_path / "nowhere") is None
    (tmp_path / "config.json").write_text("[]")
    assert packing_note(tmp_path) is None


def check(base, config):
    return StageCheck("stage", config, {"base": base})


def test_stages_that_pack_say_beforehand_when_they_will_not(tmp_path):
    llama = tiny_model(tmp_path / "llama")
    bloom = tiny_model(tmp_path / "bloom", "bloom", n_head=4, n_layer=2)

    for spec, config in ((DPO, DPOConfig()), (SFT, SftConfig())):
        assert list(spec.outlook(check(llama, config))) == []
        assert "position bias" in spec.outlook(check(bloom, config))[0]
    assert list(DPO.outlook(check(bloom, DPOConfig(shared_prompts=False)))) == []
    assert list(SFT.outlook(check(bloom, SftConfig(packing=False)))) == []
