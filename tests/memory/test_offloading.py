"""Offloaded activations: the same gradients to the bit, fewer bytes on the card, and what the plan says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from pipeline.config.run import TuningConfig
from pipeline.contract import ArtifactKind
from pipeline.memory.activations import Pass, Precision, logits_bytes, peak_bytes, waiting_bytes
from pipeline.memory.choice import workload
from pipeline.memory.estimate import estimate
from pipeline.memory.families import read_shape, shape_of
from pipeline.memory.trained import Trained
from stages.pretrain import SPEC as PRETRAIN
from stages.pretrain import PretrainConfig
from stages.runtime import offloading
from stages.runtime.adapters import new_adapter
from stages.runtime.encoder import open_encoder
from stages.runtime.loading import load_base
from stages.runtime.offloading import offload_activations
from stages.runtime.switch import AdapterSwitch, enable_checkpointing
from stages.runtime.whole_model import open_whole
from tests.memory.host import FakeHost
from tests.memory.saved import saved_by_dpo, saved_by_ppo, saved_by_reward, saved_by_sft
from tests.memory.saved_by_trl import saved_by_grpo, saved_by_kto, saved_by_rloo
from tests.memory.shapes import LLAMA_8B
from tests.memory.test_activations import SIZES
from tests.pair_fixtures import FP32
from tests.test_reward_encoder import tiny_encoder
from tests.test_tunings import GIVES, Chain
from tests.tiny import as_checkpoint, stage_context, tiny_model

TRAINERS = {"sft": saved_by_sft, "reward": saved_by_reward, "dpo": saved_by_dpo, "ppo": saved_by_ppo}
TRL = {"kto": saved_by_kto, "grpo": saved_by_grpo, "rloo": saved_by_rloo}
WIDE = {**SIZES, "hidden_size": 256, "intermediate_size": 768, "num_key_value_heads": 2}
SMALL = {"lora_r": 8, "lora_alpha": 8}


@pytest.fixture
def host(monkeypatch):
    return FakeHost().install(monkeypatch)


CASES = [
    pytest.param(
        stage, again, dtype, marks=[] if (stage, dtype) == ("sft", "bfloat16") else [pytest.mark.slow]
    )
    for stage in TRAINERS
    for again in (False, True)
    for dtype in ("float32", "bfloat16")
]


@pytest.mark.parametrize(("stage", "again", "dtype"), CASES)
def test_peak_and_what_waits_are_within_a_tenth_of_the_plan(stage, again, dtype, host, tmp_path):
    plain = TuningConfig(gradient_checkpointing=again, **SMALL)
    tuning = plain.model_copy(update={"activation_offloading": True})

    before = TRAINERS[stage](tmp_path / "a", "llama", WIDE, dtype=dtype, tuning=plain, peak=True)
    assert host.moved == []
    seen = TRAINERS[stage](tmp_path / "b", "llama", WIDE, dtype=dtype, tuning=tuning, peak=True)

    trained = Trained(read_shape(seen.base), rank=8)
    precision = Precision(torch.finfo(getattr(torch, dtype)).bits // 8)
    logits = logits_bytes(trained.shape, seen.answers, with_entropy=stage == "sft")
    sizes = (seen.tokens, seen.row_tokens, seen.answers, seen.key_share)
    step = Pass(*sizes, checkpointing=again, offloading=True)
    assert peak_bytes(trained, precision, step, logits=logits) == pytest.approx(seen.bytes, rel=0.1)
    assert waiting_bytes(trained, precision, step) == pytest.approx(sum(host.moved), rel=0.1)
    # Recomputed layers keep one in full, which is most of what is left in so small a model.
    assert seen.bytes < (0.98 if again else 0.3) * before.bytes


@pytest.mark.parametrize(
    "kind", [pytest.param("kto"), *(pytest.param(k, marks=pytest.mark.slow) for k in TRL)]
)
def test_trl_trainers_hold_less_too(kind, host, tmp_path):
    tuning = TuningConfig(**SMALL)
    before = TRL[kind](tmp_path / "a", "llama", WIDE, dtype="float32", tuning=tuning)

    tuning = tuning.model_copy(update={"activation_offloading": True})
    after = TRL[kind](tmp_path / "b", "llama", WIDE, dtype="float32", tuning=tuning)

    # The rest is what the output head keeps: a float32 a hidden unit and position.
    assert sum(host.moved) == pytest.approx(before.bytes, rel=0.1)
    assert after.bytes < 0.1 * before.bytes


TUNINGS = {
    "lora": {},
    "qlora": {"method": "qlora"},
    "8bit": {"method": "8bit"},
    "lengths": {"use_dora": True},
    "two maps": {"target_modules": ("q_proj", "v_proj")},
    "frozen layers": {"frozen_layers": 2},
    "full": {"method": "full"},
}


def _gradients(base, tuning):
    """Return the gradients of one pass, by name."""
    if tuning.method == "full":
        model, _ = open_whole(base, FP32, tuning)
        if tuning.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
    else:
        model = new_adapter(load_base(base, FP32, tuning), tuning, name="policy", seed=0)
        if tuning.gradient_checkpointing:
            enable_checkpointing(model, AdapterSwitch(model))
    model.train()
    ids = torch.arange(96).reshape(2, 48) % 250
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("name", TUNINGS)
def test_gradients_are_the_same_to_the_bit(name, again, host, tmp_path):
    base = tiny_model(tmp_path / "base", "llama", **{**SIZES, "num_key_value_heads": 2})
    tuning = TuningConfig(gradient_checkpointing=again, **TUNINGS[name], **SMALL)
    expected = _gradients(base, tuning)
    assert host.moved == []

    found = _gradients(base, tuning.model_copy(update={"activation_offloading": True}))

    assert host.came_back > 0
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_no_weight_ever_travels(host, tmp_path):
    base = tiny_model(tmp_path / "base", "llama", **WIDE)
    # Two tokens: whatever is as large as a matrix is one.
    tuning = TuningConfig(activation_offloading=True, **SMALL)
    model = new_adapter(load_base(base, FP32, tuning), tuning, name="policy", seed=0)

    model(input_ids=torch.tensor([[7, 8]]), use_cache=False).logits.sum().backward()

    assert all(size <= 2 * 768 * 4 for size in host.moved)


def test_training_through_every_stage_gives_the_same_bytes(host, tmp_path):
    base = tiny_model(tmp_path / "base", hidden_size=64, intermediate_size=128, head_dim=16)
    plain = TuningConfig(lora_r=4, lora_alpha=8)
    chains = [
        Chain(tmp_path / str(on), base, plain.model_copy(update={"activation_offloading": on}))
        for on in (False, True)
    ]

    for kind, role in GIVES.items():
        moved = len(host.moved)
        one, other = (
            load_file(chain.run(kind).result.outputs[role] / "adapter_model.safetensors") for chain in chains
        )
        assert len(host.moved) > moved, kind
        assert all(torch.equal(one[key], other[key]) for key in one), kind


def test_an_encoder_and_pretraining_offload_too(host, tmp_path):
    encoder = open_encoder(
        tiny_encoder(tmp_path / "bert"), FP32, TuningConfig(activation_offloading=True, **SMALL), seed=0
    )
    ids = torch.arange(120).reshape(2, 60)
    encoder.scores(ids, torch.ones_like(ids).bool(), torch.zeros_like(ids)).sum().backward()
    assert host.came_back > 0

    text = tmp_path / "text.txt"
    text.write_text("some words of a text that goes on for a while\n\n" * 20)
    sizes = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4}
    config = PretrainConfig(
        model=FP32, architecture=sizes, vocab_size=300, max_steps=1, max_length=32, activation_offloading=True
    )
    before = host.came_back
    PRETRAIN.run(stage_context(tmp_path / "run", config, {"text": as_checkpoint(text, ArtifactKind.TEXT)}))
    assert host.came_back > before


def test_on_a_cpu_nothing_moves_and_small_tensors_never_do():
    assert not offloading.is_worth_moving(torch.zeros(5000))
    assert not offloading.is_worth_moving(torch.zeros(1023, device="meta"))
    assert offloading.is_worth_moving(torch.zeros(1024, device="meta"))


class _Body(torch.nn.Module):
    """Multiplies by a repeated mask, twice."""

    def forward(self, x):
        mask = torch.linspace(0, 1, 64)[None, :, None].expand(8, 64, 32)
        first = x * mask
        if x.sum() > 1e6:
            raise ValueError("too large")
        return first * mask


def test_repeated_axes_are_cut_and_a_tensor_kept_twice_is_copied_once(host):
    body = _Body()
    offload_activations(body)
    x = torch.ones(8, 64, 32, requires_grad=True)

    body(x).sum().backward()

    # Twice the same mask of 64 numbers in float32, of 8 * 64 * 32 as it is expanded.
    assert host.moved == [64 * 4]
    expected = torch.linspace(0, 1, 64)[None, :, None].expand(8, 64, 32) ** 2
    assert torch.equal(x.grad, expected)


def test_a_pass_that_fails_leaves_no_hook_behind(host):
    body = _Body()
    offload_activations(body)
    with pytest.raises(ValueError, match="too large"):
        body(torch.full((8, 64, 32), 1e6, requires_grad=True))
    host.moved.clear()

    x = torch.ones(4096, requires_grad=True)
    (x * torch.rand(4096)).sum().backward()

    assert host.moved == []


def test_an_address_that_is_used_again_is_another_tensor(host):
    store = offloading._Store(frozenset())
    kept = []
    for number in range(20):
        tensor = torch.full((4096,), float(number))
        kept.append(store.pack(tensor))
        del tensor

    assert [float(offloading._unpack(one)[0]) for one in kept] == list(range(20))


def test_the_plan_counts_what_waits():
    shape = shape_of(LLAMA_8B)
    work = workload("sft", "lora", batch=8, max_length=4096)
    on = work.tuning.model_copy(update={"activation_offloading": True})

    def planned(tuning):
        return estimate(replace(work, tuning=tuning), shape)

    plain, offloaded = planned(work.tuning), planned(on)
    # The inputs of 32 layers in bfloat16 and the input of the last norm, with its statistics and rotations.
    inputs, norm = 32 * 8 * 4096 * 4096 * 2, 8 * 4096 * (4096 * 4 + 4 + 2 * 128 * 2)
    assert offloaded.waiting == inputs + norm
    assert plain.waiting == 0
    assert plain.total.expected - offloaded.total.expected > 0.7 * inputs
