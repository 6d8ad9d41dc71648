"""PPO on a base in 4 bits: the same exact invariants, on a CPU."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel

from pipeline.config.run import ModelConfig
from pipeline.errors import Interrupted
from stages.ppo import SPEC
from stages.runtime.loading import load_base
from stages.trainers.ppo import loop as trainer
from stages.trainers.ppo.roles import POLICY
from stages.trainers.ppo.setting import open_setting
from tests.ppo_setup import TUNING, chain, config
from tests.tiny import ManualStop, stage_context

FOUR_BITS = TUNING.model_copy(update={"method": "qlora"})
RECOMPUTED = FOUR_BITS.model_copy(update={"gradient_checkpointing": True})


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    # Wide enough for blocks of 64 weights.
    return chain(tmp_path_factory.mktemp("chain"), hidden_size=64, intermediate_size=128, head_dim=16)


@pytest.mark.parametrize(
    "tuning", [pytest.param(FOUR_BITS, id="plain"), pytest.param(RECOMPUTED, id="recomputed")]
)
def test_on_four_bits_step_zero_is_exact_and_only_policy_and_value_move(
    inputs, tmp_path, monkeypatch, tuning
):
    opened = []
    monkeypatch.setattr(trainer, "open_setting", lambda ctx: opened.append(open_setting(ctx)) or opened[-1])
    ctx = stage_context(tmp_path, config(tuning=tuning, total_iterations=2), inputs)

    result = SPEC.run(ctx)

    assert ctx.logger.lines[0]["objective/kl"] == 0.0
    assert ctx.logger.series("ppo/first_ratio_error") == [0.0, 0.0]
    assert max(ctx.logger.series("ppo/logprob_mismatch_max")) < 1e-5
    roles, ids = opened[0].roles, torch.arange(5, 25)[None]
    base = load_base(inputs["base"], ModelConfig(dtype="float32"), tuning)
    with torch.no_grad():
        with roles.switch.on(None):
            assert torch.equal(roles.model(input_ids=ids).logits, base(input_ids=ids).logits)
        saved = PeftModel.from_pretrained(base, result.outputs["adapter"]).eval()
        with roles.switch.on(POLICY):
            assert torch.equal(roles.model(input_ids=ids).logits, saved(input_ids=ids).logits)
    # Repacking for AVX512-BF16 would change the base in place at the first save.
    four_bits = [part for part in roles.model.modules() if hasattr(part, "support_avx512bf16_for_cpu")]
    assert len(four_bits) == 14
    assert not any(part.support_avx512bf16_for_cpu for part in four_bits)
    assert {p.dtype for n, p in roles.model.named_parameters() if "lora_" in n} == {torch.float32}


def test_on_four_bits_two_iterations_equal_one_and_one(inputs, tmp_path):
    settings = config(tuning=FOUR_BITS)
    whole = SPEC.run(stage_context(tmp_path / "whole", settings, inputs))

    with pytest.raises(Interrupted):
        SPEC.run(stage_context(tmp_path / "parts", settings, inputs, stop=ManualStop(after=0)))
    parts = SPEC.run(stage_context(tmp_path / "parts", settings, inputs))

    file = "adapter_model.safetensors"
    for role in ("adapter", "value"):
        assert (whole.outputs[role] / file).read_bytes() == (parts.outputs[role] / file).read_bytes()
