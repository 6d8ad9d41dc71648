"""Every known way to lose a stage on the way to the next is caught before the first step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from pipeline.config.run import ModelConfig, TuningConfig
from pipeline.contract import ArtifactKind, Checkpoint
from pipeline.errors import HandOverError
from stages.runtime.adapters import (
    load_adapter,
    load_head,
    named_adapter_parameters,
    new_adapter,
    save_adapter,
)
from stages.runtime.handover import (
    probe_ids,
    probe_logits,
    prove_hand_over,
    prove_head,
    prove_reference,
    prove_same_policy,
    prove_trainable,
)
from stages.runtime.loading import load_base, load_tokenizer, name_base
from tests.tiny import as_checkpoint, tiny_model

MODEL = ModelConfig(dtype="float32")
TUNING = TuningConfig(lora_r=4, lora_alpha=8)


def trained_adapter(
    base: Checkpoint, folder: Path, *, seed: int = 1, head: bool = False, scale: float = 0.2
) -> Checkpoint:
    """Save an adapter whose lora_B is random, so that it changes the logits by about 1."""
    model = new_adapter(load_base(base, MODEL), TUNING, name="policy", seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in named_adapter_parameters(model, "policy"):
            if ".lora_B." in key:
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    weights = {"weight": torch.randn(1, 32, generator=generator)} if head else None
    tokenizer = load_tokenizer(base, MODEL)
    save_adapter(model, folder, name="policy", base=base, tokenizer=tokenizer, head=weights)
    kind = ArtifactKind.REWARD_MODEL if head else ArtifactKind.ADAPTER
    return as_checkpoint(folder, kind, producer="sft")


@pytest.fixture(scope="module")
def sft(tiny_base: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return trained_adapter(tiny_base, tmp_path_factory.mktemp("sft") / "adapter")


def test_a_policy_and_reference_loaded_from_the_parent_pass_with_zero_difference(
    tiny_base: Checkpoint, sft: Checkpoint
) -> None:
    model = load_adapter(load_base(tiny_base, MODEL), sft, name="policy", trainable=True)
    model = load_adapter(model, sft, name="ref", trainable=False)

    proof = prove_hand_over(model, sft, policy="policy", reference="ref", has_reference=True)

    assert proof.logit_difference <= 1e-6
    assert abs(proof.kl) < 1e-12
    # Rank 4 on the seven linear layers of two blocks: q 32+32, k and v 32+16, o 32+32, gate, up and
    # down 32+64 inputs and outputs: (64 + 48 + 48 + 64 + 3 * 96) * 4 * 2.
    assert proof.num_trainable == (64 + 48 + 48 + 64 + 3 * 96) * 4 * 2
    assert proof.metrics()["handover/num_trainable"] == proof.num_trainable


def test_the_hand_made_parent_equals_a_plain_peft_load(tiny_base: Checkpoint, sft: Checkpoint) -> None:
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base.path), sft.path)
    model = load_adapter(load_base(tiny_base, MODEL), sft, name="policy", trainable=True)
    ids = probe_ids(model)

    want, got = probe_logits(plain, ids), probe_logits(model, ids)

    assert float((want - got).abs().max()) == 0.0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_widened_policy_passes_in_a_deep_model_whatever_the_rounding(tmp_path: Path, dtype: str) -> None:
    # In bf16 another order of summation, through 24 random layers, would move logits by 0.1.
    deep = tiny_model(tmp_path / "deep", num_hidden_layers=24)
    parent = trained_adapter(deep, tmp_path / "parent", scale=0.05)
    wider = TUNING.model_copy(update={"lora_r": 12})
    model = load_base(deep, ModelConfig(dtype=dtype))

    model = load_adapter(model, parent, name="policy", trainable=True, tuning=wider)
    model = load_adapter(model, parent, name="ref", trainable=False, tuning=wider)

    proof = prove_hand_over(model, parent, policy="policy", reference="ref", has_reference=True)
    assert (proof.logit_difference, proof.kl) == (0.0, 0.0)


def test_an_adapter_that_was_silently_reset_is_caught(tiny_base: Checkpoint, sft: Checkpoint) -> None:
    # What trl's --use_peft does with an adapter folder: a new adapter, lora_B at 0.
    model = new_adapter(load_base(tiny_base, MODEL), TUNING, name="policy", seed=0)

    with pytest.raises(HandOverError, match="it equals the base: the parent's adapter was reset") as error:
        prove_hand_over(model, sft, policy="policy")

    assert "load_adapter" in error.value.findings[0].hint


def test_a_second_adapter_on_top_of_a_loaded_one_is_caught(tiny_base: Checkpoint, sft: Checkpoint) -> None:
    # What DPOTrainer(AutoModel(adapter), peft_config=...) does: peft around a model with adapters.
    inner = AutoModelForCausalLM.from_pretrained(sft_on(tiny_base, sft))
    name_base(inner, tiny_base)
    model = get_peft_model(inner, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))

    with pytest.raises(HandOverError, match="are not those of"):
        prove_hand_over(model, sft, policy="default")


def sft_on(base: Checkpoint, sft: Checkpoint) -> Path:
    """Return an adapter folder that transformers opens by itself: it names the base's folder."""
    import json
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp()) / "adapter"
    shutil.copytree(sft.path, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(base.path)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_an_adapter_that_is_switched_off_is_caught_also_in_bfloat16(
    tiny_base: Checkpoint, tmp_path: Path
) -> None:
    # A parent so lightly trained that it is within the rounding of bfloat16.
    light = trained_adapter(tiny_base, tmp_path / "light", scale=1e-3)
    model = load_base(tiny_base, ModelConfig(dtype="bfloat16"))
    model = load_adapter(model, light, name="policy", trainable=True)
    assert prove_hand_over(model, light, policy="policy").logit_difference == 0.0

    for module in model.modules():
        if hasattr(module, "lora_B") and "policy" in module.lora_B:
            module.forward = module.base_layer.forward

    with pytest.raises(HandOverError, match="equals the base, so the parent's adapter was reset or is not"):
        prove_hand_over(model, light, policy="policy")


def test_a_model_in_which_nothing_is_trainable_is_caught(tiny_base: Checkpoint, sft: Checkpoint) -> None:
    # What DPOTrainer(AutoModel(adapter)) trains: nothing.
    model = load_adapter(load_base(tiny_base, MODEL), sft, name="policy", trainable=False)

    with pytest.raises(HandOverError, match="no parameter is trainable"):
        prove_hand_over(model, sft, policy="policy")


def test_an_adapter_frozen_by_pefts_own_switching_is_caught(tiny_base: Checkpoint, sft: Checkpoint) -> None:
    model = load_adapter(load_base(tiny_base, MODEL), sft, name="policy", trainable=True)
    model = load_adapter(model, sft, name="value", trainable=True)
    model.set_adapter("policy")
    with model.disable_adapter():
        pass

    with pytest.raises(HandOverError, match="adapter 'value' is trainable"):
        prove_hand_over(model, sft, policy="value")


def test_a_reference_that_is_the_raw_base_is_caught(tiny_base: Checkpoint, sft: Checkpoint) -> None:
    model = load_adapter(load_base(tiny_base, MODEL), sft, name="policy", trainable=True)

    with pytest.raises(HandOverError, match="reference is not the policy") as error:
        prove_hand_over(model, sft, policy="policy", reference=None, has_reference=True)

    assert error.value.findings[0].code == "reference-is-not-parent"


def test_the_base_is_the_reference_of_a_new_adapter(tiny_base: Checkpoint) -> None:
    model = new_adapter(load_base(tiny_base, MODEL), TUNING, name="policy", seed=0)

    proof = prove_hand_over(model, None, policy="policy", reference=None, has_reference=True)

    assert (proof.logit_difference, proof.kl) == (0.0, 0.0)


def test_another_runs_adapter_is_caught(tiny_base: Checkpoint, sft: Checkpoint, tmp_path: Path) -> None:
    other = trained_adapter(tiny_base, tmp_path / "other", seed=2)
    model = load_adapter(load_base(tiny_base, MODEL), other, name="policy", trainable=True)

    with pytest.raises(HandOverError, match="are not those of"):
        prove_hand_over(model, sft, policy="policy")


def test_a_wrong_scale_is_caught(tiny_base: Checkpoint, sft: Checkpoint) -> None:
    model = load_adapter(load_base(tiny_base, MODEL), sft, name="policy", trainable=True)
    for module in model.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling["policy"] *= 1.01

    with pytest.raises(HandOverError, match=r"scaled by 2\.02, its parent by 2"):
        prove_hand_over(model, sft, policy="policy")


def test_one_weight_changed_by_a_millionth_is_caught(tiny_base: Checkpoint, sft: Checkpoint) -> None:
    model = load_adapter(load_base(tiny_base, MODEL), sft, name="policy", trainable=True)
    with torch.no_grad():
        named_adapter_parameters(model, "policy")[-1][1][0, 0] += 1e-6

    with pytest.raises(HandOverError, match="1 weights of adapter 'policy'"):
        prove_hand_over(model, sft, policy="policy")


def test_kl_is_that_of_two_coins_worked_by_hand() -> None:
    # p = (1/2, 1/2), q = (1/4, 3/4): KL = 1/2 ln 2 + 1/2 ln(2/3) = 0.14384...
    p, q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()

    assert prove_reference(p, q, tolerance=1.0) == pytest.approx(0.1438410362, abs=1e-7)
    with pytest.raises(HandOverError, match=r"0\.144 nats"):
        prove_reference(p, q)


def test_the_tolerance_of_logits_is_absolute_for_small_ones() -> None:
    zeros = torch.zeros(1, 3)

    assert prove_same_policy(zeros + 9e-6, zeros) == pytest.approx(9e-6)
    with pytest.raises(HandOverError):
        prove_same_policy(zeros + 1.1e-5, zeros)


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(HandOverError, match="no parameter is trainable"):
        prove_trainable([])


def test_a_head_must_hold_the_stored_numbers(tiny_base: Checkpoint, tmp_path: Path) -> None:
    reward = trained_adapter(tiny_base, tmp_path / "reward", head=True)
    head = load_head(reward)

    prove_head(head, reward)

    head["weight"][0, 3] += 1e-6
    with pytest.raises(HandOverError, match="score head is not the one"):
        prove_head(head, reward)
    with pytest.raises(HandOverError, match="score head is not the one"):
        prove_head({}, reward)
